//! The console server's objects and requests: terminals that outlive the node they run on.

use crate::Answer;
use crate::process::Pid;
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

/// A terminal (set [`set::TTY`]), postcard, at most 16 KiB in all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Tty {
    /// Settings.
    pub termios: Termios,
    /// Rows, columns, x and y pixels.
    pub winsize: [u16; 4],
    /// Foreground process group; 0 if none.
    pub foreground: Pid,
    /// Session it controls; 0 if none.
    pub session: Pid,
    /// Line being edited (canonical mode), at most 4096 bytes.
    pub editing: Vec<u8>,
    /// Bytes ready to be read, at most 4096; canonical lines end with their delimiter.
    pub input: Vec<u8>,
    /// Positions in `input` after which a line ends (canonical mode).
    pub lines: Vec<u32>,
    /// End-of-file (VEOF on an empty line) pending, or the terminal was hung up.
    pub hangup: bool,
    /// The latest output, at most 8 KiB; an attached client reads from its own position.
    pub output: Vec<u8>,
    /// Bytes ever put out: `output` ends here.
    pub output_end: u64,
    /// Where the slowest attached client has read to: writers wait while the ring is full.
    pub output_taken: u64,
    /// A client is attached (else output is not waited for).
    pub attached: bool,
}

/// The name of a terminal.
pub const fn tty(number: u32) -> Name {
    Name::numbered(set::TTY, number as u64)
}

/// A request to the console server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Makes a terminal. Replies its number. Not idempotent.
    New { winsize: [u16; 4] },
    /// A client's keystrokes, through the line discipline (echo, editing, signals). Replies how many
    /// bytes were taken. Not idempotent.
    Input { tty: u32, bytes: Vec<u8> },
    /// A program's output, through OPOST. Replies how many bytes were taken; 0: full, wait for the
    /// object to change. Not idempotent.
    Output { tty: u32, bytes: Vec<u8> },
    /// A program reads at most `max` bytes. 0 bytes and `eof` false: nothing yet, wait for the object to change.
    /// Not idempotent.
    Read { tty: u32, max: u32 },
    /// The attached client has taken output up to this position. Idempotent.
    Taken { tty: u32, upto: u64 },
    /// TCSETS and its kin. Idempotent.
    SetTermios { tty: u32, termios: Termios, flush_input: bool },
    /// TIOCSWINSZ; SIGWINCH to the foreground group. Idempotent.
    SetWinsize { tty: u32, winsize: [u16; 4] },
    /// TIOCSPGRP. Idempotent.
    SetForeground { tty: u32, pgid: Pid },
    /// The terminal becomes this session's (TIOCSCTTY). Idempotent.
    SetSession { tty: u32, session: Pid },
    /// The client went away: SIGHUP and SIGCONT to the session's leader and foreground group; reads
    /// end with end-of-file, writes with EIO. Idempotent.
    Hangup { tty: u32 },
    /// The terminal is no longer needed. Idempotent.
    Remove { tty: u32 },
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
