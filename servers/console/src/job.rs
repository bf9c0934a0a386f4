//! Job control's question: may this process use its controlling terminal now? (tcsetpgrp(3),
//! Linux's `tty_check_change` and `job_control`.)

use crate::termios::TOSTOP;
use clustix_proto::console::Tty;
use clustix_proto::process::Process;

/// SIGTTIN.
pub const SIGTTIN: u8 = 21;
/// SIGTTOU.
pub const SIGTTOU: u8 = 22;

/// What a process is about to do with a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// read(2).
    Read,
    /// write(2).
    Write,
    /// tcsetattr(3), tcsetpgrp(3), TIOCSWINSZ and what else changes it.
    Control,
}

/// What job control says to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on.
    Go,
    /// Send this signal to the process's own group; then restart the call (ERESTARTSYS).
    Signal(u8),
    /// EIO.
    Fail,
}

/// The signal a background process would get for this use; `None` if it may go on.
pub fn wanted(t: &Tty, p: &Process, what: Use) -> Option<u8> {
    let its_own = t.session != 0 && t.session == p.sid;
    if !its_own || t.foreground == 0 || t.foreground == p.pgid {
        return None;
    }
    match what {
        Use::Read => Some(SIGTTIN),
        Use::Write if t.termios.lflag & TOSTOP == 0 => None,
        Use::Write | Use::Control => Some(SIGTTOU),
    }
}

/// The verdict on `signal`, which [`wanted`] named. `deaf`: the thread blocks or ignores it;
/// `orphaned`: the process's group is orphaned (ask the process server).
pub fn verdict(signal: u8, deaf: bool, orphaned: bool) -> Verdict {
    match (signal, deaf, orphaned) {
        (SIGTTIN, true, _) | (SIGTTIN, _, true) => Verdict::Fail,
        (_, true, _) => Verdict::Go,
        (_, false, true) => Verdict::Fail,
        (signal, false, false) => Verdict::Signal(signal),
    }
}
