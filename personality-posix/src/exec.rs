//! execve(2): from a path to a program that runs, in the same address space.

use crate::call::{Call, step};
use crate::elf::{self, Elf};
use crate::node::Node;
use crate::services::Services;
use crate::state::{Action, AltStack, ProcessContext, bit};
use crate::window::{APP_END, DATA_LEN, Step, kind, op};
use clustix_pd::Region;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::memory::{self, Area, Areas, HIGHEST, PAGE, Source};
use clustix_proto::process;
use clustix_proto::vfs::mode::{S_IFREG, S_ISGID, S_ISUID};
use clustix_vfs::Walked;
use clustix_vfs::permission::EXEC;
use std::sync::atomic::Ordering;

/// Most bytes of arguments and environment together (ARG_MAX).
pub const ARG_MAX: usize = 1 << 20;
/// Most strings of each.
const STRINGS: usize = 32_768;
/// Longest command line that ps shows.
const COMMAND: usize = 1024;
/// Longest path kept for /proc/self/exe.
const EXE: usize = 1024;
/// Interpreters of interpreters, for scripts.
const SCRIPTS: usize = 4;
/// Bytes of stack mapped.
const STACK: u64 = 8 << 20;
/// Where the stack ends: a little below the end of what an app may map.
const STACK_END: u64 = APP_END - 0x1_0000;
/// Where a relocatable program goes, as Linux without randomisation.
const PROGRAM_BASE: u64 = 0x5555_5555_4000;
/// And its interpreter.
const INTERPRETER_BASE: u64 = 0x7dfe_0000_0000;

/// What to run.
pub struct Command {
    /// The path it is started by.
    pub path: Vec<u8>,
    /// Arguments.
    pub argv: Vec<Vec<u8>>,
    /// Environment.
    pub env: Vec<Vec<u8>>,
}

/// A program that is ready to be loaded: nothing that can fail for the app's fault is left to do.
struct Ready {
    command: Command,
    program: Object,
    interpreter: Option<Object>,
    set_uid: Option<u32>,
    set_gid: Option<u32>,
}

struct Object {
    file: Walked,
    elf: Elf,
    image: Region,
    base: u64,
}

async fn head<S: Services>(services: &S, file: &Walked) -> Result<Vec<u8>, Errno> {
    let mut head = vec![0; elf::HEAD];
    let mut have = 0;
    while have < head.len() {
        let n =
            clustix_vfs::read(services.cache(), file.ino, have as u64, &mut head[have..]).await?;
        if n == 0 {
            break;
        }
        have += n;
    }
    head.truncate(have);
    Ok(head)
}

async fn program_file<S: Services>(
    services: &S,
    process: &ProcessContext,
    path: &[u8],
) -> Result<Walked, Errno> {
    let cred = &process.credentials;
    let file = clustix_vfs::walk(services.cache(), cred, process.state.cwd, path, true).await?;
    if file.inode.kind() != S_IFREG || !clustix_vfs::may(cred, &file.inode, EXEC) {
        return Err(EACCES);
    }
    Ok(file)
}

async fn object<S: Services>(
    node: &Node<S>,
    file: Walked,
    elf: Elf,
    base: u64,
) -> Result<Object, Errno> {
    let base = if elf.relocatable { base.wrapping_sub(elf.start()) } else { 0 };
    let (start, end) = (elf.start().wrapping_add(base), elf.end().wrapping_add(base));
    if start < memory::LOWEST || end < start || end > STACK_END - STACK - PAGE {
        return Err(ENOMEM);
    }
    let image = node.images.get(&node.services, &file).await?;
    Ok(Object { file, elf, image, base })
}

async fn prepare<S: Services>(
    node: &Node<S>,
    process: &ProcessContext,
    mut command: Command,
) -> Result<Ready, Errno> {
    let services = &node.services;
    let mut path = command.path.clone();
    for _ in 0..=SCRIPTS {
        let file = program_file(services, process, &path).await?;
        let head = head(services, &file).await?;
        if let Some((interpreter, argument)) = elf::script(&head) {
            let rest = command.argv.split_off(command.argv.len().min(1));
            command.argv = vec![interpreter.clone()];
            command.argv.extend(argument);
            command.argv.push(std::mem::replace(&mut path, interpreter));
            command.argv.extend(rest);
            continue;
        }
        let elf = elf::parse(&head, file.inode.size).map_err(|_| ENOEXEC)?;
        let mode = file.inode.mode;
        let set_uid = (mode & S_ISUID != 0).then_some(file.inode.uid);
        let set_gid = (mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP).then_some(file.inode.gid);
        let mut interpreter = None;
        if let Some((offset, len)) = elf.interpreter {
            let mut name = vec![0; len];
            let n = clustix_vfs::read(services.cache(), file.ino, offset, &mut name).await?;
            if n != len || name.pop() != Some(0) || name.contains(&0) {
                return Err(ENOEXEC);
            }
            let file = program_file(services, process, &name).await?;
            let head = crate::exec::head(services, &file).await?;
            let elf = elf::parse(&head, file.inode.size).map_err(|_| ELIBBAD)?;
            interpreter = Some(object(node, file, elf, INTERPRETER_BASE).await?);
        }
        let program = object(node, file, elf, PROGRAM_BASE).await?;
        command.path = path;
        return Ok(Ready { command, program, interpreter, set_uid, set_gid });
    }
    Err(ELOOP)
}

const S_IXGRP: u32 = 0o010;
/// ELIBBAD: the interpreter is corrupt.
const ELIBBAD: Errno = Errno(80);

impl Object {
    /// Steps that map it (the image is the held descriptor), and the areas they make.
    fn map(&self, steps: &mut Vec<Step>, areas: &mut Vec<Area>) {
        let page = |a: u64| a & !(PAGE - 1);
        for s in &self.elf.segments {
            let at = s.start.wrapping_add(self.base);
            let start = page(at);
            let file_end = at + s.file_len;
            let mem_end = (at + s.mem_len).next_multiple_of(PAGE);
            let mut mapped = start;
            if s.file_len > 0 {
                mapped = file_end.next_multiple_of(PAGE);
                let offset = page(s.offset);
                // The rest of the last page is zeroes, if the segment goes on in memory.
                let zero = if s.mem_len > s.file_len { mapped - file_end } else { 0 };
                let prot = u64::from(s.prot);
                let during = if zero > 0 { prot | 2 } else { prot };
                steps.push(step(op::MAP_FILE, [start, mapped - start, during, offset]));
                if zero > 0 {
                    steps.push(step(op::ZERO, [file_end, zero, 0, 0]));
                }
                if during != prot {
                    steps.push(step(op::PROTECT, [start, mapped - start, prot, 0]));
                }
                let source = Source::File { ino: self.file.ino, offset };
                areas.push(Area { start, end: mapped, prot: s.prot, source });
            }
            if mem_end > mapped {
                steps.push(step(op::MAP, [mapped, mem_end - mapped, u64::from(s.prot), 0]));
                let source = Source::Anonymous;
                areas.push(Area { start: mapped, end: mem_end, prot: s.prot, source });
            }
        }
    }
    fn entry(&self) -> u64 {
        self.elf.entry.wrapping_add(self.base)
    }
}

/// The initial stack: its bytes, and the stack pointer at their start.
fn stack(
    ready: &Ready,
    process: &ProcessContext,
    ids: &process::Process,
) -> Result<(Vec<u8>, u64), Errno> {
    const AT: [u64; 20] = [3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 23, 25, 26, 31, 51, 0];
    let command = &ready.command;
    let mut strings = Vec::new();
    let mut put = |bytes: &[u8]| {
        let at = strings.len() as u64;
        strings.extend_from_slice(bytes);
        strings.push(0);
        at
    };
    let argv: Vec<u64> = command.argv.iter().map(|a| put(a)).collect();
    let env: Vec<u64> = command.env.iter().map(|e| put(e)).collect();
    let (path, platform) = (put(&command.path), put(b"x86_64"));
    let random = strings.len() as u64;
    strings.extend_from_slice(&crate::misc::random_bytes(16)?);
    let words = 1 + argv.len() + 1 + env.len() + 1 + 2 * AT.len();
    let total = (words * 8 + strings.len()).next_multiple_of(16) as u64;
    if total > STACK / 4 {
        return Err(E2BIG);
    }
    let sp = STACK_END - total;
    let base = sp + words as u64 * 8;
    let mut out: Vec<u8> = Vec::with_capacity(total as usize);
    let mut word = |w: u64| out.extend_from_slice(&w.to_le_bytes());
    word(argv.len() as u64);
    argv.iter().for_each(|a| word(base + a));
    word(0);
    env.iter().for_each(|e| word(base + e));
    word(0);
    let elf = &ready.program.elf;
    let [hwcap, hwcap2] = crate::host::facts().hwcap;
    let secure = ids.uid[0] != ids.uid[1] || ids.gid[0] != ids.gid[1];
    for kind in AT {
        word(kind);
        word(match kind {
            3 if elf.headers == 0 => 0,
            3 => elf.headers.wrapping_add(ready.program.base), // AT_PHDR
            4 => 56,                                           // AT_PHENT
            5 => u64::from(elf.header_count),                  // AT_PHNUM
            6 => PAGE,                                         // AT_PAGESZ
            7 => ready.interpreter.as_ref().map_or(0, |i| i.base), // AT_BASE
            9 => ready.program.entry(),                        // AT_ENTRY
            11 => u64::from(ids.uid[0]),                       // AT_UID
            12 => u64::from(ids.uid[1]),                       // AT_EUID
            13 => u64::from(ids.gid[0]),                       // AT_GID
            14 => u64::from(ids.gid[1]),                       // AT_EGID
            15 => base + platform,                             // AT_PLATFORM
            16 => hwcap,                                       // AT_HWCAP
            17 => 100,                                         // AT_CLKTCK
            23 => u64::from(secure),                           // AT_SECURE
            25 => base + random,                               // AT_RANDOM
            26 => hwcap2,                                      // AT_HWCAP2
            31 => base + path,                                 // AT_EXECFN
            51 => 3632,                                        // AT_MINSIGSTKSZ
            _ => 0,
        });
    }
    out.extend_from_slice(&strings);
    out.resize(total as usize, 0);
    let _ = process;
    Ok((out, sp))
}

/// Loads a program into the process's address space: when this returns, the app's next instruction is
/// the program's first, once it is let go. Errors leave the old program as it was, but for `Err(ESRCH)`:
/// the address space is gone.
pub async fn load<S: Services>(
    node: &Node<S>,
    process: &mut ProcessContext,
    command: Command,
) -> Result<(), Errno> {
    let ready = prepare(node, process, command).await?;
    let services = &node.services;
    let mut ids: process::Process =
        crate::fd::load(services.cache(), process::name::process(process.pid))
            .await?
            .ok_or(ESRCH)?;
    let raised = ready.set_uid.is_some_and(|u| u != ids.uid[1])
        || ready.set_gid.is_some_and(|g| g != ids.gid[1]);
    if let Some(uid) = ready.set_uid {
        (ids.uid[1], ids.uid[2]) = (uid, uid);
    }
    if let Some(gid) = ready.set_gid {
        (ids.gid[1], ids.gid[2]) = (gid, gid);
    }
    let (contents, sp) = stack(&ready, process, &ids)?;
    let fresh = match raised {
        // Whoever forked this process may still hold its window: rights that it did not have must
        // not be used through that.
        true => Some(services.stubs().spawn()?),
        false => None,
    };
    // From here on the old program is lost.
    match fresh {
        Some(stub) => {
            let old = process.running.stub.swap(stub.id, Ordering::AcqRel);
            process.state.stub.1 = stub.id;
            services.stubs().kill(old);
            process.window = stub.window;
            process.answered.store(0, Ordering::Relaxed);
            if process.next_request().await?.kind != kind::HELLO {
                return Err(ESRCH);
            }
            let pid = process.window.word(crate::window::at::PID);
            pid.store(process.pid, Ordering::Relaxed);
        }
        None => lost(process.program(&[], &[step(op::UNMAP, [0, APP_END, 0, 0])]).await)?,
    }
    let mut areas = Vec::new();
    for object in [Some(&ready.program), ready.interpreter.as_ref()].into_iter().flatten() {
        lost(services.stubs().send(&object.image, process.stub()))?;
        let mut steps = vec![step(op::RECEIVE, [0; 4])];
        object.map(&mut steps, &mut areas);
        steps.push(step(op::DROP, [0; 4]));
        for some in steps.chunks(128) {
            // A held descriptor lasts over the programs of one conversation.
            lost(process.program(&[], some).await)?;
        }
    }
    let prot = if ready.program.elf.executable_stack { 7 } else { 3 };
    let start = STACK_END - STACK;
    areas.push(Area { start, end: STACK_END, prot, source: Source::Stack });
    // Nobody may be given what the filter keeps free below the stub.
    areas.push(Area { start: APP_END, end: HIGHEST, prot: 0, source: Source::Anonymous });
    let map = [step(op::MAP, [start, STACK, u64::from(prot), 0])];
    lost(process.program(&[], &map).await)?;
    for (i, chunk) in contents.chunks(DATA_LEN).enumerate() {
        let to = sp + (i * DATA_LEN) as u64;
        let out = [step(op::COPY_OUT, [0, to, chunk.len() as u64, 0])];
        lost(process.program(chunk, &out).await)?;
    }
    let entry = ready.interpreter.as_ref().unwrap_or(&ready.program).entry();
    let go = [step(op::SET_FS, [0; 4]), step(op::LOAD, [entry, sp, 0, 0])];
    lost(process.program(&[], &go).await)?;

    areas.sort_by_key(|a| a.start);
    let brk = (ready.program.elf.end().wrapping_add(ready.program.base)).next_multiple_of(PAGE);
    let areas = Areas { areas, brk_start: brk, brk };
    lost(services.memory(&memory::Request::Replace { space: process.pid, areas }).await)?;
    let mut shown: Vec<u8> = Vec::new();
    for a in &ready.command.argv {
        shown.extend_from_slice(a);
        shown.push(0);
    }
    shown.truncate(COMMAND);
    let (euid, egid) = (ids.uid[1], ids.gid[1]);
    let told = process::Request::Exec { pid: process.pid, command: shown, euid, egid };
    lost(services.process(&told).await)?;
    process.credentials = ids.credentials();
    let mut exe = ready.command.path.clone();
    if exe.first() != Some(&b'/')
        && let Ok(mut full) = clustix_vfs::path_of(services.cache(), process.state.cwd).await
    {
        full.push(b'/');
        full.append(&mut exe);
        exe = full;
    }
    forget(process, exe);
    crate::lifecycle::exec(node, process).await?;
    lost(process.save(services.cache()).await)
}

/// An error past the point of no return: the process is to be killed.
fn lost<T>(r: Result<T, Errno>) -> Result<(), Errno> {
    r.map(|_| ()).map_err(|_| ESRCH)
}

/// What exec resets: handlers, the alternate stack, the name.
fn forget(process: &mut ProcessContext, exe: Vec<u8>) {
    let state = &mut process.state;
    state.actions.retain_mut(|(_, a)| {
        *a = Action { handler: a.handler, ..Action::default() };
        a.handler == 1
    });
    state.stack = AltStack { sp: 0, flags: 2, size: 0 };
    state.dumpable = true;
    let name = exe.rsplit(|b| *b == b'/').next().unwrap_or(b"");
    state.comm = [0; 16];
    let len = name.len().min(15);
    state.comm[..len].copy_from_slice(&name[..len]);
    state.mask &= !(bit(9) | bit(19));
    // The whole state must fit its object.
    state.exe = if exe.len() <= EXE { exe } else { Vec::new() };
}

async fn strings<S: Services>(
    call: &mut Call<'_, S>,
    array: u64,
    budget: &mut usize,
) -> Result<Vec<Vec<u8>>, Errno> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    if array == 0 {
        return Ok(all);
    }
    loop {
        let from = all.len() as u64;
        let steps = [step(op::STRINGS_IN, [array, 0, DATA_LEN as u64, from])];
        let result = call.program(&[], &steps).await?[0] as u64;
        let (count, ended, len) =
            ((result & 0x7fff_ffff) as usize, result & 1 << 31 != 0, (result >> 32) as usize);
        *budget = budget.checked_sub(len + count * 8).ok_or(E2BIG)?;
        let mut bytes = vec![0; len.min(DATA_LEN)];
        if !call.process.window.read(crate::window::at::DATA, &mut bytes) {
            return Err(EFAULT);
        }
        let mut parts = bytes.split(|b| *b == 0);
        for _ in 0..count {
            all.push(parts.next().ok_or(EFAULT)?.to_vec());
        }
        if ended {
            return Ok(all);
        }
        if count == 0 || all.len() > STRINGS {
            return Err(E2BIG);
        }
    }
}

/// execve(2).
pub async fn sys_execve<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let path = call.own_names(call.path(0)?);
    if path.is_empty() {
        return Err(ENOENT);
    }
    // As Linux: the file first, then the arguments.
    program_file(call.services(), call.process, &path).await?;
    let mut budget = ARG_MAX;
    let (argv, env) = (call.args[1], call.args[2]);
    let mut argv = strings(call, argv, &mut budget).await?;
    let env = strings(call, env, &mut budget).await?;
    if argv.is_empty() {
        // As Linux since 5.18.
        argv.push(Vec::new());
    }
    match load(call.node, call.process, Command { path, argv, env }).await {
        Ok(()) => {
            call.keep_registers = true;
            Ok(0)
        }
        Err(ESRCH) => {
            call.process.exiting = Some(9);
            Err(ESRCH)
        }
        Err(e) => Err(e),
    }
}
