//! Linux's termios bits (asm-generic/termbits.h), and the settings of a new terminal.

use clustix_proto::console::Termios;

macro_rules! bits {
    ($($name:ident = $value:literal;)*) => { $(#[allow(missing_docs)] pub const $name: u32 = $value;)* };
}

bits! {
    ISTRIP = 0o40; INLCR = 0o100; IGNCR = 0o200; ICRNL = 0o400; IUCLC = 0o1000; IXON = 0o2000;
    IXANY = 0o4000; IUTF8 = 0o40000; PARMRK = 0o10;
    OPOST = 0o1; OLCUC = 0o2; ONLCR = 0o4; OCRNL = 0o10; ONOCR = 0o20; ONLRET = 0o40;
    TABDLY = 0o14000; XTABS = 0o14000;
    ISIG = 0o1; ICANON = 0o2; ECHO = 0o10; ECHOE = 0o20; ECHOK = 0o40; ECHONL = 0o100;
    NOFLSH = 0o200; TOSTOP = 0o400; ECHOCTL = 0o1000; ECHOPRT = 0o2000; ECHOKE = 0o4000;
    IEXTEN = 0o100000; EXTPROC = 0o200000;
}

/// Indices of `c_cc`.
#[allow(missing_docs)]
pub mod cc {
    pub const VINTR: usize = 0;
    pub const VQUIT: usize = 1;
    pub const VERASE: usize = 2;
    pub const VKILL: usize = 3;
    pub const VEOF: usize = 4;
    pub const VTIME: usize = 5;
    pub const VMIN: usize = 6;
    pub const VSTART: usize = 8;
    pub const VSTOP: usize = 9;
    pub const VSUSP: usize = 10;
    pub const VEOL: usize = 11;
    pub const VREPRINT: usize = 12;
    pub const VWERASE: usize = 14;
    pub const VLNEXT: usize = 15;
    pub const VEOL2: usize = 16;
}

/// Settings of a new terminal: Linux's `tty_std_termios`.
pub const STANDARD: Termios = Termios {
    iflag: ICRNL | IXON,
    oflag: OPOST | ONLCR,
    // B38400 | CS8 | CREAD | HUPCL
    cflag: 0o17 | 0o60 | 0o200 | 0o2000,
    lflag: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
    line: 0,
    cc: [
        0o3, 0o34, 0o177, 0o25, 0o4, 0, 1, 0, 0o21, 0o23, 0o32, 0, 0o22, 0o17, 0o27, 0o26, 0, 0, 0,
    ],
};
