//! The snapshot file: what outlives programs, written by `down`, restored by `up`.
//!
//! All numbers are little-endian.
//!
//! | part | fields |
//! | --- | --- |
//! | header | magic `clustix-snapshot`, format u32, shards u32, created (seconds since 1970) u64 |
//! | object, any number of | tag 1 u8, name u128, layout of its set u16, length u32, XXH3-64 of those fields and the data u64, data |
//! | trailer | tag 0xff u8, number of objects u64, XXH3-64 of everything before the trailer u64 |
//!
//! Nothing follows the trailer. A file that was cut short, altered or made by another version is
//! refused with its name, the byte and the reason.

use clustix_ccache::name::{Name, SHARDS};
use clustix_ccache::set;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: &[u8; 16] = b"clustix-snapshot";
/// Version of the file format.
pub const FORMAT: u32 = 1;
const OBJECT: u8 = 1;
const TRAILER: u8 = 0xff;
/// Bytes of a record's head after its tag, checksum excluded.
const HEAD: usize = 16 + 2 + 4;

/// An object as kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its name.
    pub name: Name,
    /// Version of its set's layout.
    pub layout: u16,
    /// Its payload.
    pub data: Vec<u8>,
}

/// Why a snapshot is refused.
#[derive(Debug, thiserror::Error)]
#[error("snapshot {path}, byte {offset}: {what}; nothing of it is used. Start empty with `clustix up --fresh`, or put a good copy in its place", path = path.display())]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// Where.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// Writes a snapshot under a temporary name; only [`Writer::finish`] makes it the snapshot.
pub struct Writer {
    out: BufWriter<File>,
    whole: Xxh3,
    count: u64,
    bytes: u64,
    temporary: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl Writer {
    /// Begins one beside `path`, which stays as it is until [`Writer::finish`].
    ///
    /// # Errors
    /// Those of creating and writing the file.
    pub fn create(path: &Path, created: u64) -> io::Result<Writer> {
        let temporary = path.with_extension("new");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let mut w = Writer {
            out: BufWriter::with_capacity(1 << 20, file),
            whole: Xxh3::new(),
            count: 0,
            bytes: 0,
            temporary,
            path: path.to_owned(),
            finished: false,
        };
        w.put(MAGIC)?;
        w.put(&FORMAT.to_le_bytes())?;
        w.put(&u32::from(SHARDS).to_le_bytes())?;
        w.put(&created.to_le_bytes())?;
        Ok(w)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.whole.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Adds an object.
    ///
    /// # Errors
    /// Those of writing; an object larger than its set allows.
    pub fn object(&mut self, object: &Object) -> io::Result<()> {
        let head = head(object)?;
        let sum = checksum(&head, &object.data);
        self.put(&[OBJECT])?;
        self.put(&head)?;
        self.put(&sum.to_le_bytes())?;
        self.put(&object.data)?;
        self.count += 1;
        Ok(())
    }

    /// Completes the file, makes it durable and gives it its name. Returns objects and bytes.
    ///
    /// # Errors
    /// Those of writing, fsync(2) and rename(2).
    pub fn finish(mut self) -> io::Result<(u64, u64)> {
        let whole = self.whole.digest();
        self.out.write_all(&[TRAILER])?;
        self.out.write_all(&self.count.to_le_bytes())?;
        self.out.write_all(&whole.to_le_bytes())?;
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.finished = true;
        Ok((self.count, self.bytes + 17))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Half a file under a name that nothing reads; the next `down` would replace it.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn head(object: &Object) -> io::Result<[u8; HEAD]> {
    let length = u32::try_from(object.data.len())
        .ok()
        .filter(|n| *n <= 65_536)
        .ok_or_else(|| io::Error::other(format!("object {} is larger than 64 KiB", object.name)))?;
    let mut head = [0; HEAD];
    head[..16].copy_from_slice(&object.name.0.to_le_bytes());
    head[16..18].copy_from_slice(&object.layout.to_le_bytes());
    head[18..].copy_from_slice(&length.to_le_bytes());
    Ok(head)
}

fn checksum(head: &[u8; HEAD], data: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(head);
    sum.update(data);
    sum.digest()
}

/// Reads a snapshot, object by object.
pub struct Reader<R = BufReader<File>> {
    input: R,
    whole: Xxh3,
    path: PathBuf,
    offset: u64,
    count: u64,
    /// When it was made, seconds since 1970.
    pub created: u64,
    ended: bool,
}

impl Reader {
    /// Opens one; `None` if there is none.
    ///
    /// # Errors
    /// [`Refused`], for a file that cannot be read too.
    pub fn open(path: &Path) -> Result<Option<Reader>, Refused> {
        match File::open(path) {
            Ok(file) => Reader::new(BufReader::with_capacity(1 << 20, file), path).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Refused { path: path.to_owned(), offset: 0, what: e.to_string() }),
        }
    }
}

impl<R: Read> Reader<R> {
    /// Reads from `input`; `path` is for messages.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn new(input: R, path: &Path) -> Result<Reader<R>, Refused> {
        let mut r = Reader {
            input,
            whole: Xxh3::new(),
            path: path.to_owned(),
            offset: 0,
            count: 0,
            created: 0,
            ended: false,
        };
        let magic: [u8; 16] = r.take("the header")?;
        if magic != *MAGIC {
            return Err(r.refuse(0, "this is not a snapshot of Clustix".to_owned()));
        }
        let format = u32::from_le_bytes(r.take("the header")?);
        if format != FORMAT {
            let what =
                format!("its format is version {format}, this program reads version {FORMAT}");
            return Err(r.refuse(16, what));
        }
        let shards = u32::from_le_bytes(r.take("the header")?);
        if shards != u32::from(SHARDS) {
            return Err(r.refuse(20, format!("it has {shards} shards, this program {SHARDS}")));
        }
        r.created = u64::from_le_bytes(r.take("the header")?);
        Ok(r)
    }

    fn refuse(&self, offset: u64, what: String) -> Refused {
        Refused { path: self.path.clone(), offset, what }
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), Refused> {
        let mut have = 0;
        while have < buffer.len() {
            match self.input.read(&mut buffer[have..]) {
                Ok(0) => {
                    let at = self.offset + have as u64;
                    return Err(self.refuse(at, format!("it was cut short in {what}")));
                }
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.refuse(self.offset, e.to_string())),
            }
        }
        self.offset += have as u64;
        Ok(())
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Refused> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        self.whole.update(&bytes);
        Ok(bytes)
    }

    /// The next object; `None` after the last, once the trailer agrees.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn next_object(&mut self) -> Result<Option<Object>, Refused> {
        if self.ended {
            return Ok(None);
        }
        let at = self.offset;
        let mut tag = [0];
        self.fill(&mut tag, "the list of objects")?;
        match tag[0] {
            OBJECT => self.object(at).map(Some),
            TRAILER => self.trailer(at).map(|()| None),
            other => {
                Err(self.refuse(at, format!("it was altered: {other:#x} is no kind of record")))
            }
        }
    }

    fn object(&mut self, at: u64) -> Result<Object, Refused> {
        self.whole.update(&[OBJECT]);
        let head: [u8; HEAD] = self.take("an object's head")?;
        let sum = u64::from_le_bytes(self.take("an object's head")?);
        let (name, rest) = head.split_at(16);
        let (layout, length) = rest.split_at(2);
        let name = Name(u128::from_le_bytes(name.try_into().unwrap_or_default()));
        let layout = u16::from_le_bytes(layout.try_into().unwrap_or_default());
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
        if length > 65_536 {
            return Err(self.refuse(at, format!("it was altered: an object of {length} bytes")));
        }
        let mut data = vec![0; length as usize];
        self.fill(&mut data, "an object's data")?;
        self.whole.update(&data);
        if checksum(&head, &data) != sum {
            return Err(
                self.refuse(at, "it was altered: an object's checksum does not match".to_owned())
            );
        }
        let Some(set) = set::descriptor(name.set()) else {
            return Err(
                self.refuse(at, format!("object {name} is of a set this program does not know"))
            );
        };
        if layout != set.layout {
            let what = format!(
                "objects of set {} have layout {layout}, this program reads layout {}",
                set.name, set.layout
            );
            return Err(self.refuse(at, what));
        }
        if length > set.capacity || name.shard().0 >= SHARDS || !set.snapshot {
            return Err(self.refuse(at, format!("object {name} cannot be restored")));
        }
        self.count += 1;
        Ok(Object { name, layout, data })
    }

    fn trailer(&mut self, at: u64) -> Result<(), Refused> {
        let whole = self.whole.digest();
        let count = u64::from_le_bytes(self.take("the trailer")?);
        let sum = u64::from_le_bytes(self.take("the trailer")?);
        if count != self.count {
            let what = format!("it was altered: {} objects instead of {count}", self.count);
            return Err(self.refuse(at, what));
        }
        if sum != whole {
            return Err(
                self.refuse(at, "it was altered: the whole's checksum does not match".to_owned())
            );
        }
        match self.input.read(&mut [0]) {
            Ok(0) => {
                self.ended = true;
                Ok(())
            }
            Ok(_) => {
                Err(self
                    .refuse(self.offset, "it was altered: something follows its end".to_owned()))
            }
            Err(e) => Err(self.refuse(self.offset, e.to_string())),
        }
    }
}

/// Reads a whole snapshot and checks it; objects, payload bytes and when it was made. `None` if there is none.
///
/// # Errors
/// [`Refused`].
pub fn verify(path: &Path) -> Result<Option<(u64, u64, u64)>, Refused> {
    let Some(mut reader) = Reader::open(path)? else { return Ok(None) };
    let (mut objects, mut bytes) = (0, 0);
    while let Some(object) = reader.next_object()? {
        objects += 1;
        bytes += object.data.len() as u64;
    }
    Ok(Some((objects, bytes, reader.created)))
}

/// A checksum that tells two sets of objects apart, whatever their order (for tests and `--json`).
pub fn digest(objects: &[Object]) -> u64 {
    objects.iter().fold(0, |sum: u64, o| {
        let mut bytes = o.name.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&o.data);
        sum.wrapping_add(xxh3_64(&bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_ccache::name::Shard;
    use proptest::prelude::*;

    fn object() -> impl Strategy<Value = Object> {
        let kept: Vec<_> = set::SETS.iter().filter(|s| s.snapshot).collect();
        (
            proptest::sample::select(kept),
            0..SHARDS,
            any::<u64>(),
            proptest::collection::vec(any::<u8>(), 0..200),
        )
            .prop_map(|(s, shard, id, data)| Object {
                name: Name::new(s.id, Shard(shard), id.into()),
                layout: s.layout,
                data,
            })
    }

    fn write(objects: &[Object]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let mut w = Writer::create(&path, 7).unwrap();
        for o in objects {
            w.object(o).unwrap();
        }
        let (count, bytes) = w.finish().unwrap();
        let file = std::fs::read(&path).unwrap();
        assert_eq!((count as usize, bytes as usize), (objects.len(), file.len()));
        file
    }

    fn read(bytes: &[u8]) -> Result<Vec<Object>, Refused> {
        let mut r = Reader::new(bytes, Path::new("/state/snapshot"))?;
        let mut objects = Vec::new();
        while let Some(o) = r.next_object()? {
            objects.push(o);
        }
        Ok(objects)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(objects in proptest::collection::vec(object(), 0..20)) {
            prop_assert_eq!(read(&write(&objects)).unwrap(), objects);
        }

        #[test]
        fn a_changed_byte_is_refused(
            objects in proptest::collection::vec(object(), 0..5),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut file = write(&objects);
            let at = at.index(file.len());
            // The time it was made is for people; any value of it is as good, but for the checksum.
            file[at] ^= flip;
            let refused = read(&file).unwrap_err();
            prop_assert!(refused.to_string().contains("/state/snapshot, byte "));
        }

        #[test]
        fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&noise).is_err());
        }
    }

    #[test]
    fn a_file_cut_at_any_byte_is_refused() {
        let objects: Vec<Object> = (0..5)
            .map(|i| Object {
                name: Name::numbered(set::INODE, i),
                layout: 1,
                data: vec![i as u8; 40 * i as usize],
            })
            .collect();
        let file = write(&objects);
        for cut in 0..file.len() {
            let refused = read(&file[..cut]).unwrap_err();
            assert!(refused.what.contains("cut short"), "{cut}: {refused}");
            assert_eq!(refused.offset, cut as u64);
        }
        let mut longer = file.clone();
        longer.push(0);
        assert!(read(&longer).unwrap_err().what.contains("follows"));
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let mut file = write(&[]);
        file[16] = 9;
        assert!(read(&file).unwrap_err().what.contains("version 9"));
        let other =
            write(&[Object { name: Name::numbered(set::INODE, 1), layout: 3, data: vec![1] }]);
        assert!(read(&other).unwrap_err().what.contains("layout 3"));
    }

    #[test]
    fn an_unfinished_one_leaves_nothing_and_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        Writer::create(&path, 1).unwrap().finish().unwrap();
        let w = Writer::create(&path, 2).unwrap();
        drop(w);
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(verify(&path).unwrap(), Some((0, 0, 1)));
    }
}
