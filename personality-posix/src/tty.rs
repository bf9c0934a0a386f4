//! Terminals, from a program's side: reads and writes with job control, and ioctl(2).

use crate::call::{Call, RESTART};
use crate::fd::{self, Kind, flags::*};
use crate::services::Services;
use crate::state::bit;
use clustix_ccache::cache::{Cache, Version, Waited};
use clustix_pd::exec;
use clustix_process::pipe::{self, End};
use clustix_proto::console::{self, Request, Termios, Tty};
use clustix_proto::errno::*;
use clustix_proto::process::{self, Target};
use clustix_proto::{Answer, Errno};

const ICANON: u32 = 2;
const TOSTOP: u32 = 0o400;
const VTIME: usize = 5;
const VMIN: usize = 6;
const SIGTTIN: u8 = 21;
const SIGTTOU: u8 = 22;

/// Most bytes handed to the console server at once.
const STEP: usize = 4096;

/// A terminal as it is now, and its version.
pub async fn look<C: Cache>(cache: &C, tty: u32) -> Answer<(Tty, Version)> {
    let mut buf = Vec::new();
    let version = cache.get(console::tty(tty), &mut buf).await?;
    if !version.exists() {
        return Err(EIO);
    }
    Ok((postcard::from_bytes(&buf).map_err(|_| EIO)?, version))
}

/// Job control: a process in the background of its controlling terminal gets `signal` instead.
async fn foreground<S: Services>(
    call: &Call<'_, S>,
    tty: u32,
    now: &Tty,
    signal: u8,
) -> Result<(), Errno> {
    let me = call.process_object().await?;
    if me.tty != Some(tty) || me.sid != now.session || me.pgid == now.foreground {
        return Ok(());
    }
    let state = &call.process.state;
    let ignored = state.mask & bit(signal) != 0 || state.action(signal).handler == 1;
    if ignored {
        return if signal == SIGTTIN { Err(EIO) } else { Ok(()) };
    }
    let orphaned = process::Request::Orphaned { pid: me.pid };
    if call.services().process(&orphaned).await? == process::Reply::Pid(1) {
        return Err(EIO);
    }
    let kill = process::Request::Kill { sender: me.pid, target: Target::Group(me.pgid), signal };
    call.services().process(&kill).await?;
    Err(RESTART)
}

/// What is to be done after a step of a read.
pub(crate) enum Next {
    /// The read is over.
    End,
    /// Another step: there may be more.
    Step,
    /// Wait for the terminal to change.
    Sleep,
}

/// A read of a terminal under way.
pub(crate) struct Reading {
    pub(crate) tty: u32,
    max: usize,
    /// What came so far.
    pub(crate) out: Vec<u8>,
    /// When it ends with what it has (VTIME).
    pub(crate) deadline: Option<u64>,
}

impl Reading {
    /// A read of at most `max` bytes.
    pub(crate) fn new(tty: u32, max: usize, deadline: Option<u64>) -> Reading {
        Reading { tty, max, out: Vec::new(), deadline }
    }

    /// Takes what there is from the terminal, which is `now`.
    pub(crate) async fn step<S: Services>(&mut self, services: &S, now: &Tty) -> Answer<Next> {
        let (tty, max, out) = (self.tty, self.max, &mut self.out);
        let want = (max - out.len()).min(STEP) as u32;
        let reply = services.console(&Request::Read { tty, max: want }).await?;
        let came = !reply.bytes.is_empty();
        out.extend_from_slice(&reply.bytes);
        let canonical = now.termios.lflag & ICANON != 0;
        let (least, time) = if canonical {
            (1, 0)
        } else {
            (usize::from(now.termios.cc[VMIN]).min(max), u64::from(now.termios.cc[VTIME]))
        };
        if reply.eof || max == 0 || out.len() >= max || (came && canonical) {
            return Ok(Next::End);
        }
        if out.len() >= least && (!out.is_empty() || time == 0) {
            return Ok(Next::End);
        }
        // VTIME is in tenths of a second: between bytes, or from the start if VMIN is 0.
        if time > 0 && (came || (least == 0 && self.deadline.is_none())) {
            self.deadline = Some(exec::now_ns() + time * 100_000_000);
        }
        Ok(if came { Next::Step } else { Next::Sleep })
    }
}

/// Reads at most `max` bytes.
pub async fn read<S: Services>(
    call: &mut Call<'_, S>,
    tty: u32,
    max: usize,
    nonblocking: bool,
) -> Result<Vec<u8>, Errno> {
    let mut reading = Reading::new(tty, max, None);
    loop {
        let (now, version) = look(call.cache(), tty).await?;
        foreground(call, tty, &now, SIGTTIN).await?;
        match reading.step(call.services(), &now).await? {
            Next::End => return Ok(reading.out),
            _ if nonblocking => {
                return if reading.out.is_empty() { Err(EAGAIN) } else { Ok(reading.out) };
            }
            Next::Step => continue,
            Next::Sleep => {}
        }
        call.progress[0] = reading.out.len() as u64;
        match call.sleep_on(&[(console::tty(tty), version)], reading.deadline).await {
            Ok(Waited::TimedOut) => return Ok(reading.out),
            Ok(Waited::Changed) => {}
            Err(_) if !reading.out.is_empty() => return Ok(reading.out),
            Err(e) => return Err(e),
        }
    }
}

/// Writes `bytes`: how many went in.
pub async fn write<S: Services>(
    call: &mut Call<'_, S>,
    tty: u32,
    bytes: &[u8],
    nonblocking: bool,
) -> Result<usize, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let (now, version) = look(call.cache(), tty).await?;
        if now.termios.lflag & TOSTOP != 0 {
            foreground(call, tty, &now, SIGTTOU).await?;
        }
        let piece = bytes[done..bytes.len().min(done + STEP)].to_vec();
        let reply = call.services().console(&Request::Output { tty, bytes: piece }).await;
        let n = match reply {
            Ok(r) => r.value as usize,
            Err(e) => return if done > 0 { Ok(done) } else { Err(e) },
        };
        let n = n.min(bytes.len() - done);
        done += n;
        call.progress[0] += n as u64;
        if n > 0 {
            continue;
        }
        if nonblocking {
            return if done > 0 { Ok(done) } else { Err(EAGAIN) };
        }
        match call.sleep_on(&[(console::tty(tty), version)], None).await {
            Err(_) if done > 0 => return Ok(done),
            other => other?,
        };
    }
    Ok(done)
}

/// `struct termios` as TCGETS has it, 36 bytes.
fn termios_out(t: &Termios) -> Vec<u8> {
    let mut b = Vec::with_capacity(36);
    for w in [t.iflag, t.oflag, t.cflag, t.lflag] {
        b.extend_from_slice(&w.to_le_bytes());
    }
    b.push(t.line);
    b.extend_from_slice(&t.cc);
    b
}

fn termios_in(b: &[u8]) -> Option<Termios> {
    let word = |i: usize| Some(u32::from_le_bytes(b.get(i..i + 4)?.try_into().ok()?));
    Some(Termios {
        iflag: word(0)?,
        oflag: word(4)?,
        cflag: word(8)?,
        lflag: word(12)?,
        line: *b.get(16)?,
        cc: b.get(17..36)?.try_into().ok()?,
    })
}

/// ioctl(2): what any descriptor knows, then what terminals know.
pub async fn sys_ioctl<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    const FIONBIO: u32 = 0x5421;
    const FIONREAD: u32 = 0x541b;
    const FIOCLEX: u32 = 0x5451;
    const FIONCLEX: u32 = 0x5450;
    let fd = call.int(0);
    let request = call.args[1] as u32;
    let (number, file) = call.file(fd).await?;
    if file.flags & O_PATH != 0 {
        return Err(EBADF);
    }
    match request {
        FIOCLEX | FIONCLEX => {
            let mut table = call.table().await?;
            let mut entry = table.get(fd)?;
            entry.cloexec = request == FIOCLEX;
            table.set(fd as usize, entry);
            call.set_table(&table).await?;
            return Ok(0);
        }
        FIONBIO => {
            let on = call.read_user(call.args[2], 4).await?.iter().any(|b| *b != 0);
            let set = |f: &mut fd::OpenFile| {
                f.flags = if on { f.flags | O_NONBLOCK } else { f.flags & !O_NONBLOCK }
            };
            call.node.files.update(call.cache(), number, set).await?;
            return Ok(0);
        }
        FIONREAD => {
            let bytes = match file.kind {
                Kind::Pipe { pipe, .. } => {
                    pipe::poll(call.cache(), pipe, End::Read).await?.bytes as i32
                }
                Kind::File { ino } => {
                    let size = clustix_vfs::stat(call.cache(), ino).await?.inode.size;
                    size.saturating_sub(file.offset).min(i32::MAX as u64) as i32
                }
                Kind::Tty { tty, .. } => readable(&look(call.cache(), tty).await?.0) as i32,
                _ => return Err(ENOTTY),
            };
            call.out(2, &bytes.to_le_bytes());
            return Ok(0);
        }
        _ => {}
    }
    match file.kind {
        Kind::Tty { tty, .. } => terminal(call, tty, request).await,
        _ => Err(ENOTTY),
    }
}

/// Bytes that a read would get now.
pub fn readable(t: &Tty) -> usize {
    if t.termios.lflag & ICANON != 0 { t.canon as usize } else { t.input.len() }
}

async fn terminal<S: Services>(
    call: &mut Call<'_, S>,
    tty: u32,
    request: u32,
) -> Result<i64, Errno> {
    let (now, version) = look(call.cache(), tty).await?;
    let me = call.process_object().await?;
    let mine = me.tty == Some(tty) && me.sid == now.session;
    let ask = match request {
        // TCGETS
        0x5401 => {
            call.out(2, &termios_out(&now.termios));
            return Ok(0);
        }
        // TCSETS, TCSETSW, TCSETSF
        0x5402..=0x5404 => {
            foreground(call, tty, &now, SIGTTOU).await?;
            let b = call.read_user(call.args[2], 36).await?;
            if request != 0x5402 {
                drain(call, tty, now, version).await?;
            }
            let termios = termios_in(&b).ok_or(EFAULT)?;
            Request::SetTermios { tty, termios, flush_input: request == 0x5404 }
        }
        // TCSBRK (with an argument: drain), TCSBRKP
        0x5409 | 0x5425 => {
            drain(call, tty, now, version).await?;
            return Ok(0);
        }
        // TCXONC: TCOOFF, TCOON
        0x540a if call.args[2] < 2 => Request::Flow { tty, stop: call.args[2] == 0 },
        // TCFLSH
        0x540b if call.args[2] < 3 => {
            Request::Flush { tty, input: call.args[2] != 1, output: call.args[2] != 0 }
        }
        // TIOCSCTTY
        0x540e => {
            if me.sid != me.pid || me.tty.is_some_and(|t| t != tty) {
                return Err(EPERM);
            }
            call.services().console(&Request::SetSession { tty, session: me.sid }).await?;
            let set = process::Request::SetTty { pid: me.pid, tty: Some(tty) };
            call.services().process(&set).await?;
            return Ok(0);
        }
        // TIOCNOTTY
        0x5422 => {
            if me.tty != Some(tty) {
                return Err(ENOTTY);
            }
            let drop = process::Request::SetTty { pid: me.pid, tty: None };
            call.services().process(&drop).await?;
            if me.sid == me.pid {
                call.services().console(&Request::Release { tty, session: me.sid }).await?;
            }
            return Ok(0);
        }
        // TIOCGPGRP
        0x540f => {
            if !mine {
                return Err(ENOTTY);
            }
            call.out(2, &now.foreground.to_le_bytes());
            return Ok(0);
        }
        // TIOCSPGRP
        0x5410 => {
            if !mine {
                return Err(ENOTTY);
            }
            foreground(call, tty, &now, SIGTTOU).await?;
            let b = call.read_user(call.args[2], 4).await?;
            let pgid = i32::from_le_bytes(b.as_slice().try_into().map_err(|_| EFAULT)?);
            let pgid = u32::try_from(pgid).map_err(|_| EINVAL)?;
            let group: Option<process::Group> =
                fd::load(call.cache(), process::name::group(pgid)).await?;
            if group.ok_or(ESRCH)?.sid != me.sid {
                return Err(EPERM);
            }
            Request::SetForeground { tty, session: me.sid, pgid }
        }
        // TIOCGSID
        0x5429 => {
            if !mine {
                return Err(ENOTTY);
            }
            call.out(2, &now.session.to_le_bytes());
            return Ok(0);
        }
        // TIOCOUTQ
        0x5411 => {
            let left = now.output_end.saturating_sub(now.output_taken) as i32;
            call.out(2, &left.to_le_bytes());
            return Ok(0);
        }
        // TIOCGWINSZ
        0x5413 => {
            let b: Vec<u8> = now.winsize.iter().flat_map(|v| v.to_le_bytes()).collect();
            call.out(2, &b);
            return Ok(0);
        }
        // TIOCSWINSZ
        0x5414 => {
            let b = call.read_user(call.args[2], 8).await?;
            let mut winsize = [0; 4];
            for (w, c) in winsize.iter_mut().zip(b.chunks_exact(2)) {
                *w = u16::from_le_bytes([c[0], c[1]]);
            }
            Request::SetWinsize { tty, winsize }
        }
        _ => return Err(ENOTTY),
    };
    call.services().console(&ask).await?;
    Ok(0)
}

/// Waits until the attached client has taken all output.
async fn drain<S: Services>(
    call: &mut Call<'_, S>,
    tty: u32,
    mut now: Tty,
    mut version: Version,
) -> Result<(), Errno> {
    while now.attached && !now.hangup && now.output_taken < now.output_end {
        call.sleep_on(&[(console::tty(tty), version)], None).await?;
        (now, version) = look(call.cache(), tty).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn termios_survive_the_round_trip() {
        let t = Termios { iflag: 1, oflag: 2, cflag: 3, lflag: 4, line: 5, cc: [9; 19] };
        let b = termios_out(&t);
        assert_eq!(b.len(), 36);
        assert_eq!(termios_in(&b), Some(t));
        assert_eq!(termios_in(&b[..35]), None);
    }
}
