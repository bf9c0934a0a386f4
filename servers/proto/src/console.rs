//! The console server's objects and requests: terminals that outlive the node they run on.

use crate::Answer;
use crate::once::{Operation, Repeat};
use crate::process::{Pid, Target};
use clustix_ccache::name::Name;
use clustix_ccache::set;
use serde::{Deserialize, Serialize};

/// Linux's struct termios as the kernel has it (`struct ktermios`, 36 bytes with TCGETS).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Termios {
    /// c_iflag.
    pub iflag: u32,
    /// c_oflag.
    pub oflag: u32,
    /// c_cflag.
    pub cflag: u32,
    /// c_lflag.
    pub lflag: u32,
    /// c_line.
    pub line: u8,
    /// c_cc, 19 control characters.
    pub cc: [u8; 19],
}

/// A terminal (set [`set::TTY`]), postcard, at most 16 KiB in all. The fields between `input` and
/// `stopped` are the line discipline's, as n_tty.c has them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tty {
    /// Settings.
    pub termios: Termios,
    /// Rows, columns, x and y pixels.
    pub winsize: [u16; 4],
    /// Foreground process group; 0 if none.
    pub foreground: Pid,
    /// Session it controls; 0 if none. A process's `tty` counts only while this is its session.
    pub session: Pid,
    /// Bytes received and not read, at most [`Tty::INPUT`]: in canonical mode complete lines, then
    /// the line being edited.
    pub input: Vec<u8>,
    /// How many bytes of `input` are complete lines.
    pub canon: u32,
    /// Bit i: `input[i]` ends a line. An end-of-file mark is a NUL with its bit set.
    pub ends: Vec<u8>,
    /// Echo not yet put out, as n_tty's operation codes, at most [`Tty::ECHO`].
    pub echo: Vec<u8>,
    /// Column of the cursor, as output has moved it.
    pub column: u32,
    /// Column where the line being edited starts.
    pub canon_column: u32,
    /// VLNEXT was the last character.
    pub lnext: bool,
    /// Within `\\…/` of ECHOPRT.
    pub erasing: bool,
    /// Outside canonical mode: something was received since that began.
    pub received: bool,
    /// Output is stopped (VSTOP).
    pub stopped: bool,
    /// Hung up: reads end with end-of-file, writes with EIO.
    pub hangup: bool,
    /// The latest output, at most [`Tty::OUTPUT`]; an attached client reads from its own position.
    pub output: Vec<u8>,
    /// Bytes ever put out: `output` ends here.
    pub output_end: u64,
    /// Where the slowest attached client has read to: writers wait while the ring is full.
    pub output_taken: u64,
    /// A client is attached (else output is not waited for).
    pub attached: bool,
    /// Bytes of the client's ever taken.
    pub typed: u64,
    /// The job that it is the terminal of ([`crate::job`]).
    pub job: u64,
    /// The latest turn of that job in which a client attached or detached.
    pub turn: u64,
    /// Signals that steps have brought about, and that are still to be sent: to whom, which.
    pub owed: Vec<(Target, u8)>,
    /// Signals ever taken off `owed`: the number of its first.
    pub owed_from: u64,
}

impl Tty {
    /// Most bytes of input, N_TTY_BUF_SIZE.
    pub const INPUT: usize = 4096;
    /// Most bytes of echo waiting.
    pub const ECHO: usize = 1024;
    /// Most bytes of output kept.
    pub const OUTPUT: usize = 8192;
    /// Part of `OUTPUT` that only echo may use.
    pub const ECHO_RESERVE: usize = 1024;

    /// Output from position `from` on; `None` if part of it is already overwritten (then start at
    /// `output_end - output.len()`).
    pub fn output_since(&self, from: u64) -> Option<&[u8]> {
        let new = usize::try_from(self.output_end.checked_sub(from)?).ok()?;
        self.output.get(self.output.len().checked_sub(new)?..)
    }
}

/// The name of a terminal.
pub const fn tty(number: u32) -> Name {
    Name::numbered(set::TTY, number as u64)
}

/// A request to the console server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are what the request's doc says
pub enum Request {
    /// Makes a terminal of a job, with a client attached. Replies its number.
    New { winsize: [u16; 4], job: u64 },
    /// A client's keystrokes, through the line discipline (echo, editing, signals); `at`: how many it typed
    /// before, so that those which were taken already are not taken again. Replies how many
    /// bytes were taken; fewer: the input is full, wait for the object to change.
    Input { tty: u32, at: Option<u64>, bytes: Vec<u8> },
    /// A program's output, through OPOST. Replies how many bytes were taken; 0: full, wait for the
    /// object to change.
    Output { tty: u32, bytes: Vec<u8> },
    /// A program reads at most `max` bytes. 0 bytes and `eof` false: nothing yet, wait for the object to change.
    ///
    Read { tty: u32, max: u32 },
    /// The attached client has taken output up to this position.
    Taken { tty: u32, upto: u64 },
    /// A client of the terminal's job attaches (output is kept for it from now on) or detaches, in its turn. Replies
    /// the position where the kept output starts. ENXIO: the terminal is another job's; ESTALE: another client has
    /// come since.
    Attach { tty: u32, job: u64, turn: u64, attached: bool },
    /// TCSETS and its kin.
    SetTermios { tty: u32, termios: Termios, flush_input: bool },
    /// TCFLSH: discards unread input, unsent output.
    Flush { tty: u32, input: bool, output: bool },
    /// TCXONC: TCOOFF stops output (`true`), TCOON starts it.
    Flow { tty: u32, stop: bool },
    /// TIOCSWINSZ; SIGWINCH to the foreground group.
    SetWinsize { tty: u32, winsize: [u16; 4] },
    /// TIOCSPGRP, by a process of `session`: ENOTTY if the terminal is not that session's. That the
    /// group is of that session is the caller's to check.
    SetForeground { tty: u32, session: Pid, pgid: Pid },
    /// The terminal becomes this session's (TIOCSCTTY), its leader's group foreground. EPERM if it is
    /// another's.
    SetSession { tty: u32, session: Pid },
    /// The session's leader ended, or gave the terminal up (TIOCNOTTY): SIGHUP and SIGCONT to the
    /// foreground group; the terminal is no session's.
    Release { tty: u32, session: Pid },
    /// The client of the terminal's job went away: SIGHUP and SIGCONT to the session's leader and foreground
    /// group; reads end with end-of-file, writes with EIO. ENXIO: the terminal is another job's.
    Hangup { tty: u32, job: u64 },
    /// The terminal is no longer needed, if it is this job's.
    Remove { tty: u32, job: u64 },
}

impl Request {
    /// The terminal that is there already, and that it concerns alone.
    pub const fn tty(&self) -> Option<u32> {
        match self {
            Request::New { .. } => None,
            Request::Input { tty, .. }
            | Request::Output { tty, .. }
            | Request::Read { tty, .. }
            | Request::Taken { tty, .. }
            | Request::Attach { tty, .. }
            | Request::SetTermios { tty, .. }
            | Request::Flush { tty, .. }
            | Request::Flow { tty, .. }
            | Request::SetWinsize { tty, .. }
            | Request::SetForeground { tty, .. }
            | Request::SetSession { tty, .. }
            | Request::Release { tty, .. }
            | Request::Hangup { tty, .. }
            | Request::Remove { tty, .. } => Some(*tty),
        }
    }
}

impl Operation for Request {
    fn repeat(&self) -> Repeat {
        match self {
            Request::New { .. }
            | Request::Input { .. }
            | Request::Output { .. }
            | Request::Read { .. }
            | Request::SetTermios { .. }
            | Request::Flush { .. }
            | Request::Flow { .. }
            | Request::SetWinsize { .. }
            | Request::SetForeground { .. }
            | Request::SetSession { .. }
            | Request::Release { .. }
            | Request::Hangup { .. } => Repeat::ByNumber,
            // Positions and clients only go on; a terminal is removed by who made it.
            Request::Taken { .. } | Request::Attach { .. } | Request::Remove { .. } => {
                Repeat::Harmless
            }
        }
    }
}

/// The console server's reply.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// A number: bytes taken, the terminal.
    pub value: u64,
    /// Bytes read.
    pub bytes: Vec<u8>,
    /// End of file.
    pub eof: bool,
}

/// As every server's.
pub type Response = Answer<Reply>;
