//! Who may do what to an inode (path_resolution(7), capabilities(7)): user 0 stands for the capabilities.

use clustix_proto::vfs::{Credentials, Inode, mode::*};

/// The right to read.
pub const READ: u32 = 4;
/// The right to write; for a directory, to change its names.
pub const WRITE: u32 = 2;
/// The right to execute; for a directory, to search it.
pub const EXEC: u32 = 1;

/// Whether `cred` belongs to `gid`.
pub fn in_group(cred: &Credentials, gid: u32) -> bool {
    cred.gid == gid || cred.groups.contains(&gid)
}

/// Whether `cred` has all of `rights` ([`READ`] | [`WRITE`] | [`EXEC`]) to the inode.
pub fn may(cred: &Credentials, inode: &Inode, rights: u32) -> bool {
    if cred.uid == 0 {
        return rights & EXEC == 0 || inode.is_dir() || inode.mode & 0o111 != 0;
    }
    let class = if cred.uid == inode.uid {
        inode.mode >> 6
    } else if in_group(cred, inode.gid) {
        inode.mode >> 3
    } else {
        inode.mode
    };
    rights & !class & 7 == 0
}

/// Whether the sticky bit of directory `dir` keeps `cred` from removing or renaming `inode` in it.
pub fn sticky(cred: &Credentials, dir: &Inode, inode: &Inode) -> bool {
    dir.mode & S_ISVTX != 0 && cred.uid != 0 && cred.uid != inode.uid && cred.uid != dir.uid
}

/// Whether `cred` acts as the inode's owner (chmod, chosen times).
pub fn owns(cred: &Credentials, inode: &Inode) -> bool {
    cred.uid == 0 || cred.uid == inode.uid
}

/// The mode after `cred` changed the file's data: set-id bits go, unless it is the superuser.
pub fn without_set_id(cred: &Credentials, inode: &Inode) -> u32 {
    if cred.uid == 0 || !inode.is_regular() { inode.mode } else { strip_set_id(cred, inode) }
}

/// The mode without its set-id bits, whoever asks (chown(2)). Set-group-id without group execution
/// once meant mandatory locking; it stays for those in the group.
pub fn strip_set_id(cred: &Credentials, inode: &Inode) -> u32 {
    let stays = inode.mode & 0o010 == 0 && (cred.uid == 0 || in_group(cred, inode.gid));
    inode.mode & !(S_ISUID | if stays { 0 } else { S_ISGID })
}
