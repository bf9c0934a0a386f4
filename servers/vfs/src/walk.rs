//! Path resolution (path_resolution(7)) on cached objects.

use crate::{dir, object, permission};
use clustix_ccache::cache::{Cache, Version};
use clustix_proto::Answer;
use clustix_proto::errno::{EACCES, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
use clustix_proto::object::Attempts;
use clustix_proto::vfs::{Credentials, Inode, PATH_MAX, ROOT, SYMLINK_DEPTH};

/// An inode as a walk found it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walked {
    /// Its number.
    pub ino: u64,
    /// Its contents.
    pub inode: Inode,
    /// The version that had them.
    pub version: Version,
}

/// What the last component of a path is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Last {
    /// A name to look up, of any length (looking up one that is too long is ENAMETOOLONG).
    Name(Vec<u8>),
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// There is none: the path is all slashes.
    Root,
}

/// A path up to its last component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    /// The directory that the last component is looked up in; search permission was checked.
    pub dir: Walked,
    /// That component.
    pub last: Last,
    /// Whether slashes follow it.
    pub slash: bool,
}

/// Resolves `path` from `start` ([`ROOT`] for absolute paths) as `cred`: ENOENT, ENOTDIR, EACCES (no
/// search permission on a directory passed), ELOOP (more than 40 links), ENAMETOOLONG. A symbolic
/// link at the end is followed if `follow_last` or if slashes follow it.
pub async fn walk<C: Cache>(
    cache: &C,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    follow_last: bool,
) -> Answer<Walked> {
    check_path(path)?;
    let mut attempts = Attempts::new();
    loop {
        let mut walker = Walker::begin(cache, cred, start, path, 0).await?;
        match walker.walk_to_end(follow_last).await? {
            Some(found) => return Ok(found),
            // A name was read whose inode is gone: the name has changed since, or is damaged.
            None => attempts.again().await.map_err(|_| EIO)?,
        }
    }
}

/// Resolves `path` up to its last component. `links` counts symbolic links followed so far, for a
/// caller who goes on with the target of one.
pub async fn walk_parent<C: Cache>(
    cache: &C,
    cred: &Credentials,
    start: u64,
    path: &[u8],
    links: &mut usize,
) -> Answer<Parent> {
    check_path(path)?;
    let mut attempts = Attempts::new();
    loop {
        let mut walker = Walker::begin(cache, cred, start, path, *links).await?;
        match walker.walk_to_parent().await? {
            Some(parent) => {
                *links = walker.links;
                return Ok(parent);
            }
            None => attempts.again().await.map_err(|_| EIO)?,
        }
    }
}

/// The absolute path of directory `ino`, for getcwd(2): ENOENT if it was removed.
pub async fn path_of<C: Cache>(cache: &C, ino: u64) -> Answer<Vec<u8>> {
    let mut attempts = Attempts::new();
    'again: loop {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let (mut at, mut len) = (ino, 0);
        while at != ROOT {
            let inode = crate::stat(cache, at).await?.inode;
            if !inode.is_dir() {
                return Err(ENOTDIR);
            }
            if inode.nlink == 0 {
                return Err(ENOENT);
            }
            match dir::name_of(cache, inode.parent, at).await {
                Ok(Some(name)) => {
                    len += name.len() + 1;
                    parts.push(name);
                }
                // Renamed or removed between the two reads.
                Ok(None) | Err(ENOENT) => {
                    attempts.again().await?;
                    continue 'again;
                }
                Err(e) => return Err(e),
            }
            // Also ends a chase around a tree that renames keep changing.
            if len >= PATH_MAX {
                return Err(ENAMETOOLONG);
            }
            at = inode.parent;
        }
        let mut path = Vec::with_capacity(len + 1);
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        return Ok(path);
    }
}

fn check_path(path: &[u8]) -> Answer<()> {
    if path.is_empty() {
        return Err(ENOENT);
    }
    if path.len() >= PATH_MAX {
        return Err(ENAMETOOLONG);
    }
    Ok(())
}

struct Walker<'a, C> {
    cache: &'a C,
    cred: &'a Credentials,
    at: Walked,
    /// What is still to be resolved, `position` on.
    path: Vec<u8>,
    position: usize,
    links: usize,
    block: Vec<u8>,
}

/// One component of the path.
struct Component {
    name: Vec<u8>,
    slash: bool,
    last: bool,
}

impl<'a, C: Cache> Walker<'a, C> {
    async fn begin(
        cache: &'a C,
        cred: &'a Credentials,
        start: u64,
        path: &[u8],
        links: usize,
    ) -> Answer<Self> {
        let start = if path.first() == Some(&b'/') { ROOT } else { start };
        let at = crate::stat(cache, start).await?;
        let block = Vec::new();
        Ok(Walker { cache, cred, at, path: path.to_vec(), position: 0, links, block })
    }

    fn next(&mut self) -> Option<Component> {
        let rest = &self.path[self.position..];
        let begin = rest.iter().position(|b| *b != b'/')?;
        let rest = &rest[begin..];
        let len = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
        let name = rest[..len].to_vec();
        let after = rest[len..].iter().position(|b| *b != b'/');
        self.position += begin + len;
        Some(Component { name, slash: rest.len() > len, last: after.is_none() })
    }

    /// Whether the directory it stands in may be searched.
    fn search(&self) -> Answer<()> {
        if !self.at.inode.is_dir() {
            return Err(ENOTDIR);
        }
        if !permission::may(self.cred, &self.at.inode, permission::EXEC) {
            return Err(EACCES);
        }
        Ok(())
    }

    /// `false`: the tree changed under the walk, begin again.
    async fn enter(&mut self, c: &Component, follow: bool) -> Answer<bool> {
        let ino = match &c.name[..] {
            b"." => return Ok(true),
            b".." => self.at.inode.parent,
            name => match dir::lookup_with(self.cache, self.at.ino, name, &mut self.block).await? {
                Some((ino, _)) => ino,
                None => return Err(ENOENT),
            },
        };
        let Some(found) = object::inode(self.cache, ino).await? else { return Ok(false) };
        if !found.inode.is_symlink() || !follow {
            self.at = found;
            return Ok(true);
        }
        self.links += 1;
        if self.links > SYMLINK_DEPTH {
            return Err(ELOOP);
        }
        // A dangling inode number was dealt with above; a link removed just now: begin again.
        let mut target = match crate::readlink(self.cache, ino).await {
            Ok(target) => target,
            Err(ENOENT) | Err(EIO) => return Ok(false),
            Err(e) => return Err(e),
        };
        if target.first() == Some(&b'/') {
            self.at = crate::stat(self.cache, ROOT).await?;
        }
        target.extend_from_slice(&self.path[self.position..]);
        self.path = target;
        self.position = 0;
        Ok(true)
    }

    async fn walk_to_end(&mut self, follow_last: bool) -> Answer<Option<Walked>> {
        while let Some(c) = self.next() {
            self.search()?;
            if !self.enter(&c, follow_last || !c.last || c.slash).await? {
                return Ok(None);
            }
            // The slashes still stand in `path` if a link was put in its place.
            if c.last && c.slash && self.next_is_none() && !self.at.inode.is_dir() {
                return Err(ENOTDIR);
            }
        }
        Ok(Some(self.at.clone()))
    }

    fn next_is_none(&self) -> bool {
        self.path[self.position..].iter().all(|b| *b == b'/')
    }

    async fn walk_to_parent(&mut self) -> Answer<Option<Parent>> {
        loop {
            let Some(c) = self.next() else {
                return Ok(Some(Parent { dir: self.at.clone(), last: Last::Root, slash: false }));
            };
            self.search()?;
            if c.last {
                let last = match &c.name[..] {
                    b"." => Last::Dot,
                    b".." => Last::DotDot,
                    _ => Last::Name(c.name),
                };
                return Ok(Some(Parent { dir: self.at.clone(), last, slash: c.slash }));
            }
            if !self.enter(&c, true).await? {
                return Ok(None);
            }
        }
    }
}
