//! Images of files as sealed memory regions, for exec and private file mappings: one per file
//! version and node, so that exec does not copy a library each time.

use crate::services::Services;
use clustix_pd::Region;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::vfs::{PAGE_SIZE, Time};
use clustix_vfs::Walked;
use std::sync::{Mutex, MutexGuard};

/// Most images kept.
const KEPT: usize = 64;
/// Most bytes of images kept, beyond the latest.
const KEPT_BYTES: usize = 256 << 20;
/// Largest file that can be mapped.
pub const LARGEST: u64 = 1 << 30;
/// Bytes read at once.
const CHUNK: usize = 64 * PAGE_SIZE;

/// What tells one state of a file's data from another. Not the object's version: that changes with
/// every open and read too.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    ino: u64,
    size: u64,
    changed: [Time; 2],
}

impl Key {
    fn of(file: &Walked) -> Key {
        let i = &file.inode;
        Key { ino: file.ino, size: i.size, changed: [i.mtime, i.ctime] }
    }
}

struct Kept {
    key: Key,
    region: Region,
}

/// The images that this node keeps, latest last.
#[derive(Default)]
pub struct Images(Mutex<Vec<Kept>>);

impl Images {
    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Number of images kept.
    pub fn len(&self) -> usize {
        self.kept().len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The image of a file as it was when it was walked to, whole pages. ENOMEM past [`LARGEST`];
    /// ETXTBSY if the file changes all the time.
    pub async fn get<S: Services>(&self, services: &S, file: &Walked) -> Result<Region, Errno> {
        let key = Key::of(file);
        {
            let mut kept = self.kept();
            let found = kept.iter().position(|k| k.key == key);
            if let Some(i) = found {
                let k = kept.remove(i);
                let region = k.region.clone();
                kept.push(k);
                return Ok(region);
            }
        }
        let size = file.inode.size;
        if size > LARGEST {
            return Err(ENOMEM);
        }
        let len = (size as usize).next_multiple_of(PAGE_SIZE).max(PAGE_SIZE);
        let stubs = services.stubs();
        let region = stubs.region(len)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while at < size as usize {
            let n = clustix_vfs::read(services.cache(), file.ino, at as u64, &mut chunk).await?;
            if n == 0 {
                break;
            }
            let n = n.min(size as usize - at);
            if !region.write(at, &chunk[..n]) {
                return Err(EIO);
            }
            at += n;
        }
        // What was read is one state of the file only if it is still that one.
        if Key::of(&clustix_vfs::stat(services.cache(), file.ino).await?) != key {
            return Err(ETXTBSY);
        }
        stubs.seal(&region)?;
        let mut kept = self.kept();
        kept.retain(|k| k.key.ino != file.ino);
        kept.push(Kept { key, region: region.clone() });
        while kept.len() > KEPT
            || kept.len() > 1 && kept.iter().map(|k| k.region.len()).sum::<usize>() > KEPT_BYTES
        {
            kept.remove(0);
        }
        Ok(region)
    }
}
