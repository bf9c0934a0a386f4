//! Descriptors: open(2), close(2), dup(2), fcntl(2), pipe(2), and what ends with the last one.

use crate::call::Call;
use crate::fd::{self, Entry, FdTable, Kind, MAX_FDS, OpenFile, flags::*};
use crate::node::Node;
use crate::path::*;
use crate::services::Services;
use clustix_ccache::cache::Cache;
use clustix_drivers::CharDevice;
use clustix_process::pipe::{self, End};
use clustix_proto::errno::*;
use clustix_proto::process::{self, Pid};
use clustix_proto::vfs::{Request, SetAttr, mode};
use clustix_proto::{Answer, Errno};
use clustix_vfs::Walked;

impl<S: Services> Call<'_, S> {
    /// The calling process's descriptor table.
    pub async fn table(&self) -> Result<FdTable, Errno> {
        fd::table(self.cache(), self.process.pid).await
    }

    /// Writes the calling process's descriptor table.
    pub async fn set_table(&self, table: &FdTable) -> Result<(), Errno> {
        fd::set_table(self.cache(), self.process.pid, table).await
    }

    /// The open file description of a descriptor: its number and contents. EBADF.
    pub async fn file(&self, fd: i32) -> Result<(u64, OpenFile), Errno> {
        let entry = self.table().await?.get(fd)?;
        Ok((entry.file, self.node.files.get(self.cache(), entry.file).await?))
    }

    /// The calling process's object.
    pub async fn process_object(&self) -> Result<process::Process, Errno> {
        fd::load(self.cache(), process::name::process(self.process.pid)).await?.ok_or(ESRCH)
    }

    /// Soft limit of descriptors.
    fn max_fds(&self) -> usize {
        (self.process.state.limits[7].0 as usize).min(MAX_FDS)
    }

    /// Makes a description and a descriptor for something that is open already; on failure what it
    /// leads to is closed.
    pub async fn install(&self, kind: Kind, flags: u32) -> Result<i64, Errno> {
        let number = match self.node.files.create(self.cache(), kind, flags & !O_CLOEXEC).await {
            Ok(n) => n,
            Err(e) => {
                close_kind(self.node, kind).await?;
                return Err(e);
            }
        };
        let added = async {
            let mut table = self.table().await?;
            let entry = Entry { file: number, cloexec: flags & O_CLOEXEC != 0 };
            let fd = table.add(0, entry)?;
            if fd as usize >= self.max_fds() {
                return Err(EMFILE);
            }
            self.set_table(&table).await?;
            Ok(i64::from(fd))
        };
        match added.await {
            Ok(fd) => Ok(fd),
            Err(e) => {
                drop_reference(self.node, number).await?;
                Err(e)
            }
        }
    }
}

/// Closes what an open file description led to.
pub(crate) async fn close_kind<S: Services>(node: &Node<S>, kind: Kind) -> Answer<()> {
    let mut closed = Ok(());
    if let Kind::Pipe { pipe, read, write, .. } = kind {
        let life = node.services.life();
        for (end, held) in [(End::Read, read), (End::Write, write)] {
            if held {
                // One that fails keeps the other from nothing.
                closed = closed.and(pipe::close(node.services.cache(), pipe, end, life).await);
            }
        }
    }
    if let Some(ino) = kind.ino() {
        node.openers.close(&node.services, ino).await;
    }
    closed
}

/// Drops one reference to a description, and closes what it led to with the last.
pub async fn drop_reference<S: Services>(node: &Node<S>, file: u64) -> Answer<()> {
    match node.files.release(node.services.cache(), file).await? {
        Some(last) => close_kind(node, last.kind).await,
        None => Ok(()),
    }
}

/// Closes all of a process's descriptors (it ended): every one, whatever fails.
pub async fn close_all<S: Services>(node: &Node<S>, pid: Pid) -> Answer<()> {
    let cache = node.services.cache();
    let table = fd::table(cache, pid).await?;
    let gone = fd::discard(cache, process::name::fdtable(pid)).await;
    for entry in table.entries.into_iter().flatten() {
        if let Err(e) = drop_reference(node, entry.file).await {
            tracing::warn!("closing a descriptor of process {pid}: {e}");
        }
    }
    gone
}

/// Closes what execve(2) closes.
pub async fn close_on_exec<S: Services>(node: &Node<S>, pid: Pid) -> Answer<()> {
    let cache = node.services.cache();
    let mut table = fd::table(cache, pid).await?;
    let closed = table.take_cloexec();
    if closed.is_empty() {
        return Ok(());
    }
    fd::set_table(cache, pid, &table).await?;
    for entry in closed {
        drop_reference(node, entry.file).await?;
    }
    Ok(())
}

/// Gives a forked child its parent's descriptors.
pub async fn inherit<S: Services>(node: &Node<S>, parent: Pid, child: Pid) -> Answer<()> {
    let cache = node.services.cache();
    let table = fd::table(cache, parent).await?;
    for entry in table.entries.iter().flatten() {
        node.files.update(cache, entry.file, |f| f.refs += 1).await?;
    }
    fd::set_table(cache, child, &table).await
}

/// Most attempts to open a file that others keep replacing.
const ATTEMPTS: usize = 64;

/// Opens `path` for the calling process and gives it a descriptor.
async fn open<S: Services>(
    call: &mut Call<'_, S>,
    dirfd: i32,
    path: Vec<u8>,
    flags: u32,
    create_mode: u32,
) -> Result<i64, Errno> {
    if let Some(fd) = own_descriptor(&path) {
        return reopen(call, fd, flags).await;
    }
    let path = call.own_names(path);
    let start = call.start(dirfd, &path).await?;
    let cred = call.process.credentials.clone();
    let follow = flags & O_NOFOLLOW == 0 && flags & (O_CREAT | O_EXCL) != O_CREAT | O_EXCL;
    for _ in 0..ATTEMPTS {
        let found = clustix_vfs::walk(call.cache(), &cred, start, &path, follow).await;
        let (found, created) = match found {
            Ok(_) if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL => return Err(EEXIST),
            Ok(found) => (found, false),
            Err(ENOENT) if flags & O_CREAT != 0 => {
                let request = Request::Create {
                    cred: cred.clone(),
                    dir: start,
                    path: path.clone(),
                    mode: create_mode & 0o7777 & !call.process.state.umask,
                    exclusive: flags & O_EXCL != 0,
                };
                let ino = call.services().vfs(&request).await?;
                match clustix_vfs::stat(call.cache(), ino).await {
                    // Whoever creates a file may use it as asked, whatever its mode.
                    Ok(found) => (found, true),
                    Err(ENOENT) => continue,
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        };
        match open_inode(call, &found, flags, created).await {
            // Removed between the walk and the open: walk again.
            Err(ENOENT) => continue,
            other => return other,
        }
    }
    Err(ENOENT)
}

/// Access checks and opening of an inode that was found.
async fn open_inode<S: Services>(
    call: &mut Call<'_, S>,
    found: &Walked,
    flags: u32,
    created: bool,
) -> Result<i64, Errno> {
    let inode = &found.inode;
    let ino = found.ino;
    let noted = inode.openers & 1 << (call.cache().node() & 15) != 0;
    let access = flags & O_ACCMODE;
    let path_only = flags & O_PATH != 0;
    if inode.kind() == mode::S_IFLNK && !path_only {
        return Err(ELOOP);
    }
    if flags & O_DIRECTORY != 0 && !inode.is_dir() {
        return Err(ENOTDIR);
    }
    if inode.is_dir() && !path_only && (access != O_RDONLY || flags & O_CREAT != 0) {
        return Err(EISDIR);
    }
    if !created && !path_only {
        let rights = match access {
            O_RDONLY => 4,
            O_WRONLY => 2,
            _ => 6,
        } | if flags & O_TRUNC != 0 { 2 } else { 0 };
        if !clustix_vfs::may(&call.process.credentials, inode, rights) {
            return Err(EACCES);
        }
    }
    let kept = flags & !(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC);
    let node = call.node;
    match inode.kind() {
        _ if path_only => {
            node.openers.open(call.services(), ino, noted).await?;
            let kind = if inode.is_dir() { Kind::Dir { ino } } else { Kind::File { ino } };
            call.install(kind, kept).await
        }
        mode::S_IFDIR => {
            node.openers.open(call.services(), ino, noted).await?;
            call.install(Kind::Dir { ino }, kept).await
        }
        mode::S_IFREG => {
            node.openers.open(call.services(), ino, noted).await?;
            if flags & O_TRUNC != 0 && inode.size > 0 {
                let attr = SetAttr { size: Some(0), ..SetAttr::default() };
                let cred = call.process.credentials.clone();
                let request = Request::SetAttr { cred, ino, attr };
                if let Err(e) = call.services().vfs(&request).await {
                    node.openers.close(call.services(), ino).await;
                    return Err(e);
                }
            }
            call.install(Kind::File { ino }, kept).await
        }
        mode::S_IFIFO => open_fifo(call, ino, noted, kept).await,
        mode::S_IFCHR => {
            let (major, minor) = ((inode.rdev >> 32) as u32, inode.rdev as u32);
            let device = clustix_drivers::device(major, minor).ok_or(ENXIO)?;
            let kind = match device {
                CharDevice::ControllingTerminal => {
                    let tty = call.process_object().await?.tty.ok_or(ENXIO)?;
                    Kind::Tty { tty, ino }
                }
                CharDevice::Console => Kind::Tty { tty: 0, ino },
                CharDevice::Terminal(tty) => Kind::Tty { tty, ino },
                _ => Kind::Char { major, minor, ino },
            };
            if let Kind::Tty { tty, .. } = kind {
                let name = clustix_proto::console::tty(tty);
                let mut buf = Vec::new();
                if !call.cache().get(name, &mut buf).await?.exists() {
                    return Err(ENXIO);
                }
            }
            node.openers.open(call.services(), ino, noted).await?;
            call.install(kind, kept).await
        }
        mode::S_IFSOCK | mode::S_IFBLK => Err(ENXIO),
        _ => Err(EIO),
    }
}

/// fifo(7): an open waits for the other side unless O_NONBLOCK or O_RDWR.
async fn open_fifo<S: Services>(
    call: &mut Call<'_, S>,
    ino: u64,
    noted: bool,
    flags: u32,
) -> Result<i64, Errno> {
    let number = process::fifo(ino);
    let life = call.services().life();
    let cache = call.cache();
    let (read, write) = match flags & O_ACCMODE {
        O_RDONLY => (true, false),
        O_WRONLY => (false, true),
        _ => (true, true),
    };
    let kind = Kind::Pipe { pipe: number, read, write, ino };
    call.node.openers.open(call.services(), ino, noted).await?;
    let opened = async {
        if read && write {
            pipe::open(cache, number, End::Read, life).await?;
            return pipe::open(cache, number, End::Write, life).await;
        }
        let end = if read { End::Read } else { End::Write };
        pipe::open(cache, number, end, life).await
    };
    let others = match opened.await {
        Ok(n) => n,
        Err(e) => {
            call.node.openers.close(call.services(), ino).await;
            return Err(e);
        }
    };
    if !(read && write) {
        let end = if read { End::Read } else { End::Write };
        let waited = async {
            loop {
                let Some(on) = pipe::arrived(cache, number, end, others).await? else {
                    return Ok(());
                };
                if flags & O_NONBLOCK != 0 {
                    return if write { Err(ENXIO) } else { Ok(()) };
                }
                call.sleep_on(&[on], None).await?;
            }
        };
        if let Err(e) = waited.await {
            close_kind(call.node, kind).await?;
            return Err(e);
        }
    }
    call.install(kind, flags).await
}

/// The descriptor that a name like /dev/fd/3 or /dev/stdin means.
fn own_descriptor(path: &[u8]) -> Option<i32> {
    match path {
        b"/dev/stdin" => return Some(0),
        b"/dev/stdout" => return Some(1),
        b"/dev/stderr" => return Some(2),
        _ => {}
    }
    let digits = path.strip_prefix(b"/dev/fd/").or_else(|| path.strip_prefix(b"/proc/self/fd/"))?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|fd| *fd >= 0)
}

/// Opens again what a descriptor of the calling process leads to.
async fn reopen<S: Services>(call: &mut Call<'_, S>, fd: i32, flags: u32) -> Result<i64, Errno> {
    let (_, file) = call.file(fd).await.map_err(|_| ENOENT)?;
    let life = call.services().life();
    match file.kind {
        Kind::Pipe { pipe, ino, .. } => {
            let read = flags & O_ACCMODE != O_WRONLY;
            let write = flags & O_ACCMODE != O_RDONLY;
            if ino != 0 {
                call.node.openers.open(call.services(), ino, false).await?;
            }
            for (end, wanted) in [(End::Read, read), (End::Write, write)] {
                if wanted {
                    pipe::open(call.cache(), pipe, end, life).await?;
                }
            }
            call.install(Kind::Pipe { pipe, read, write, ino }, flags).await
        }
        kind => match kind.ino() {
            Some(ino) => {
                let found = clustix_vfs::stat(call.cache(), ino).await?;
                open_inode(call, &found, flags & !(O_CREAT | O_EXCL), false).await
            }
            None => call.install(kind, flags).await,
        },
    }
}

/// open(2).
pub async fn sys_open<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (path, flags, mode) = (call.path(0)?, call.args[1] as u32, call.args[2] as u32);
    open(call, AT_FDCWD, path, flags, mode).await
}

/// openat(2).
pub async fn sys_openat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (path, flags, mode) = (call.path(1)?, call.args[2] as u32, call.args[3] as u32);
    open(call, call.int(0), path, flags, mode).await
}

/// creat(2).
pub async fn sys_creat<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (path, mode) = (call.path(0)?, call.args[1] as u32);
    open(call, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode).await
}

/// close(2).
pub async fn sys_close<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let mut table = call.table().await?;
    let entry = table.take(call.int(0))?;
    call.set_table(&table).await?;
    drop_reference(call.node, entry.file).await?;
    Ok(0)
}

/// close_range(2).
pub async fn sys_close_range<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const CLOEXEC: u64 = 4;
    let (first, last, flags) = (call.args[0] as u32, call.args[1] as u32, call.args[2]);
    if first > last || flags & !(CLOEXEC | 2) != 0 {
        return Err(EINVAL);
    }
    let mut table = call.table().await?;
    let mut closed = Vec::new();
    let end = (last as usize).saturating_add(1).min(table.entries.len());
    for fd in first as usize..end {
        if flags & CLOEXEC != 0 {
            if let Some(e) = &mut table.entries[fd] {
                e.cloexec = true;
            }
        } else {
            closed.extend(table.entries[fd].take());
        }
    }
    call.set_table(&table).await?;
    for entry in closed {
        drop_reference(call.node, entry.file).await?;
    }
    Ok(0)
}

/// Makes `fd` at the lowest free place from `from` on refer to what `old` does.
async fn duplicate<S: Services>(
    call: &mut Call<'_, S>,
    old: i32,
    from: usize,
    cloexec: bool,
) -> Result<i64, Errno> {
    let mut table = call.table().await?;
    let file = table.get(old)?.file;
    let fd = table.add(from, Entry { file, cloexec })?;
    if fd as usize >= call.max_fds() {
        return Err(EMFILE);
    }
    call.node.files.update(call.cache(), file, |f| f.refs += 1).await?;
    call.set_table(&table).await?;
    Ok(i64::from(fd))
}

/// dup(2).
pub async fn sys_dup<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    duplicate(call, call.int(0), 0, false).await
}

async fn dup_to<S: Services>(
    call: &mut Call<'_, S>,
    old: i32,
    new: i32,
    cloexec: bool,
) -> Result<i64, Errno> {
    let mut table = call.table().await?;
    let file = table.get(old)?.file;
    let at = usize::try_from(new).ok().filter(|n| *n < call.max_fds()).ok_or(EBADF)?;
    call.node.files.update(call.cache(), file, |f| f.refs += 1).await?;
    let replaced = table.set(at, Entry { file, cloexec });
    call.set_table(&table).await?;
    if let Some(old) = replaced {
        drop_reference(call.node, old.file).await?;
    }
    Ok(i64::from(new))
}

/// dup2(2).
pub async fn sys_dup2<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (old, new) = (call.int(0), call.int(1));
    if old == new {
        call.table().await?.get(old)?;
        return Ok(i64::from(new));
    }
    dup_to(call, old, new, false).await
}

/// dup3(2).
pub async fn sys_dup3<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let (old, new, flags) = (call.int(0), call.int(1), call.args[2] as u32);
    if old == new || flags & !O_CLOEXEC != 0 {
        return Err(EINVAL);
    }
    dup_to(call, old, new, flags & O_CLOEXEC != 0).await
}

/// fcntl(2): descriptors and status flags. Record locks are refused with EINVAL.
pub async fn sys_fcntl<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const CHANGEABLE: u32 = O_APPEND | O_NONBLOCK | 0o20000 | 0o40000 | 0o1000000;
    let (fd, command, arg) = (call.int(0), call.int(1), call.args[2]);
    let (number, file) = call.file(fd).await?;
    match command {
        // F_DUPFD, F_DUPFD_CLOEXEC
        0 | 1030 => {
            let from = arg as usize;
            if from >= call.max_fds() {
                return Err(EINVAL);
            }
            duplicate(call, fd, from, command == 1030).await
        }
        // F_GETFD
        1 => Ok(i64::from(call.table().await?.get(fd)?.cloexec)),
        // F_SETFD
        2 => {
            let mut table = call.table().await?;
            let mut entry = table.get(fd)?;
            entry.cloexec = arg & 1 != 0;
            table.set(fd as usize, entry);
            call.set_table(&table).await?;
            Ok(0)
        }
        // F_GETFL
        3 => Ok(i64::from(file.flags | O_LARGEFILE)),
        // F_SETFL
        4 => {
            let flags = file.flags & !CHANGEABLE | arg as u32 & CHANGEABLE;
            call.node.files.update(call.cache(), number, |f| f.flags = flags).await?;
            Ok(0)
        }
        // F_GETPIPE_SZ
        1032 => match file.kind {
            Kind::Pipe { .. } => Ok(process::Pipe::CAPACITY as i64),
            _ => Err(EBADF),
        },
        _ => Err(EINVAL),
    }
}

async fn make_pipe<S: Services>(call: &mut Call<'_, S>, flags: u32) -> Result<i64, Errno> {
    if flags & !(O_CLOEXEC | O_NONBLOCK) != 0 {
        return Err(EINVAL);
    }
    let life = call.services().life();
    let pipe = pipe::create(call.cache(), life).await?;
    let (r, w) = ((true, false), (false, true));
    let kind = |(read, write)| Kind::Pipe { pipe, read, write, ino: 0 };
    let reader = match call.install(kind(r), flags | O_RDONLY).await {
        Ok(fd) => fd,
        Err(e) => {
            close_kind(call.node, kind(w)).await?;
            return Err(e);
        }
    };
    let writer = match call.install(kind(w), flags | O_WRONLY).await {
        Ok(fd) => fd,
        Err(e) => {
            let mut table = call.table().await?;
            let entry = table.take(reader as i32)?;
            call.set_table(&table).await?;
            drop_reference(call.node, entry.file).await?;
            return Err(e);
        }
    };
    let mut out = [0; 8];
    out[..4].copy_from_slice(&(reader as i32).to_le_bytes());
    out[4..].copy_from_slice(&(writer as i32).to_le_bytes());
    call.out(0, &out);
    Ok(0)
}

/// pipe(2).
pub async fn sys_pipe<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    make_pipe(call, 0).await
}

/// pipe2(2).
pub async fn sys_pipe2<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    make_pipe(call, call.args[1] as u32).await
}

/// umask(2).
pub async fn sys_umask<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let old = std::mem::replace(&mut call.process.state.umask, call.args[0] as u32 & 0o777);
    call.save().await?;
    Ok(i64::from(old))
}
