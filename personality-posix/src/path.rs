//! Where a path argument starts, and the few paths that the personality answers itself.

use crate::call::Call;
use crate::fd::Kind;
use crate::services::Services;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::vfs::{Credentials, ROOT};
use clustix_vfs::Walked;

/// "The working directory" as a directory descriptor.
pub const AT_FDCWD: i32 = -100;
/// Do not follow a symbolic link at the end.
pub const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
/// unlinkat: rmdir.
pub const AT_REMOVEDIR: u64 = 0x200;
/// faccessat: use the effective ids.
pub const AT_EACCESS: u64 = 0x200;
/// linkat: follow a symbolic link.
pub const AT_SYMLINK_FOLLOW: u64 = 0x400;
/// An empty path means the descriptor itself.
pub const AT_EMPTY_PATH: u64 = 0x1000;

impl<S: Services> Call<'_, S> {
    /// The directory that `path` starts from, given a directory descriptor.
    pub async fn start(&self, dirfd: i32, path: &[u8]) -> Result<u64, Errno> {
        if path.first() == Some(&b'/') {
            return Ok(ROOT);
        }
        if dirfd == AT_FDCWD {
            return Ok(self.process.state.cwd);
        }
        match self.file(dirfd).await?.1.kind {
            Kind::Dir { ino } => Ok(ino),
            _ => Err(ENOTDIR),
        }
    }

    /// `path` with the personality's own names put in place.
    pub fn own_names(&self, path: Vec<u8>) -> Vec<u8> {
        match path.as_slice() {
            b"/proc/self/exe" => self.process.state.exe.clone(),
            _ => path,
        }
    }

    /// Resolves `path` as the process's effective user.
    pub async fn walk(&self, dirfd: i32, path: &[u8], follow: bool) -> Result<Walked, Errno> {
        let cred = self.process.credentials.clone();
        self.walk_as(&cred, dirfd, path, follow).await
    }

    /// Resolves `path` as `cred`.
    pub async fn walk_as(
        &self,
        cred: &Credentials,
        dirfd: i32,
        path: &[u8],
        follow: bool,
    ) -> Result<Walked, Errno> {
        let start = self.start(dirfd, path).await?;
        clustix_vfs::walk(self.cache(), cred, start, path, follow).await
    }

    /// Arguments `i` (a directory descriptor, or none: the working directory) and `p` (a path).
    pub async fn at(&self, i: Option<usize>, p: usize) -> Result<(u64, Vec<u8>), Errno> {
        let path = self.path(p)?;
        let dirfd = i.map_or(AT_FDCWD, |i| self.int(i));
        Ok((self.start(dirfd, &path).await?, path))
    }
}
