//! The line discipline against Linux's own: the same settings, keystrokes and output through a pty
//! of the host and through the step functions; what the slave reads and what the master sees must
//! be the same, byte for byte and read for read.

use clustix_console::discipline::{self, Input};
use clustix_console::termios::*;
use clustix_proto::console::{Termios, Tty};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{self as host, OptionalActions};
use std::os::fd::OwnedFd;

/// A seeded generator (splitmix64).
struct Random(u64);

impl Random {
    fn seeded() -> Random {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64)
        });
        println!("SEED={seed}");
        Random(seed)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
    /// Each bit with this probability in percent.
    fn bits(&mut self, of: &[u32], percent: u64) -> u32 {
        of.iter().filter(|_| self.below(100) < percent).fold(0, |all, b| all | b)
    }
}

struct Host {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Host {
    fn new() -> Host {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).expect("a pty of the host");
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let path = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let slave = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        Host { master, slave }
    }

    fn set(&self, t: &Termios) {
        let mut h = host::tcgetattr(&self.slave).unwrap();
        h.input_modes = host::InputModes::from_bits_retain(t.iflag);
        h.output_modes = host::OutputModes::from_bits_retain(t.oflag);
        h.local_modes = host::LocalModes::from_bits_retain(t.lflag);
        use host::SpecialCodeIndex as S;
        for (index, code) in [
            (cc::VINTR, S::VINTR),
            (cc::VQUIT, S::VQUIT),
            (cc::VERASE, S::VERASE),
            (cc::VKILL, S::VKILL),
            (cc::VEOF, S::VEOF),
            (cc::VTIME, S::VTIME),
            (cc::VMIN, S::VMIN),
            (cc::VSTART, S::VSTART),
            (cc::VSTOP, S::VSTOP),
            (cc::VSUSP, S::VSUSP),
            (cc::VEOL, S::VEOL),
            (cc::VREPRINT, S::VREPRINT),
            (cc::VWERASE, S::VWERASE),
            (cc::VLNEXT, S::VLNEXT),
            (cc::VEOL2, S::VEOL2),
        ] {
            h.special_codes[code] = t.cc[index];
        }
        host::tcsetattr(&self.slave, OptionalActions::Now, &h).unwrap();
    }

    fn standard(&self) -> Termios {
        let h = host::tcgetattr(&self.slave).unwrap();
        let mut cc = [0; 19];
        use host::SpecialCodeIndex as S;
        let codes = [
            S::VINTR,
            S::VQUIT,
            S::VERASE,
            S::VKILL,
            S::VEOF,
            S::VTIME,
            S::VMIN,
            S::VSWTC,
            S::VSTART,
            S::VSTOP,
            S::VSUSP,
            S::VEOL,
            S::VREPRINT,
            S::VDISCARD,
            S::VWERASE,
            S::VLNEXT,
            S::VEOL2,
        ];
        for (i, code) in codes.into_iter().enumerate() {
            cc[i] = h.special_codes[code];
        }
        Termios {
            iflag: h.input_modes.bits(),
            oflag: h.output_modes.bits(),
            cflag: h.control_modes.bits(),
            lflag: h.local_modes.bits(),
            line: 0,
            cc,
        }
    }

    /// One read of the slave; it also makes the kernel process what the master has written.
    fn read(&self, max: usize) -> Input {
        let mut buffer = vec![0; max];
        match rustix::io::read(&self.slave, &mut buffer) {
            Ok(0) => Input::End,
            Ok(n) => Input::Bytes(buffer[..n].to_vec()),
            Err(Errno::AGAIN) => Input::Nothing,
            Err(e) => panic!("{e}"),
        }
    }

    /// All that the master sees.
    fn seen(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(n) => all.extend_from_slice(&buffer[..n]),
                Err(Errno::AGAIN) => return all,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> usize {
        match rustix::io::write(&self.slave, bytes) {
            Ok(n) => n,
            Err(Errno::AGAIN) => 0,
            Err(e) => panic!("{e}"),
        }
    }
}

struct Ours {
    tty: Tty,
}

impl Ours {
    fn seen(&mut self) -> Vec<u8> {
        let seen = self.tty.output_since(self.tty.output_taken).expect("nothing is overwritten");
        let seen = seen.to_vec();
        self.tty.output_taken = self.tty.output_end;
        seen
    }
}

struct Pair {
    host: Host,
    ours: Ours,
    log: Vec<String>,
}

impl Pair {
    fn new() -> Pair {
        let (host, mut ours) = (Host::new(), Ours { tty: discipline::new_tty([24, 80, 0, 0]) });
        // A pty's own default lacks HUPCL; the discipline never looks at cflag.
        ours.tty.termios.cflag = host.standard().cflag;
        Pair { host, ours, log: Vec::new() }
    }

    fn set(&mut self, t: &Termios) {
        self.log.push(format!(
            "set iflag {:o} oflag {:o} lflag {:o} cc {:?}",
            t.iflag, t.oflag, t.lflag, t.cc
        ));
        self.host.set(t);
        discipline::set_termios(&mut self.ours.tty, t.clone());
        self.compare(4096);
    }

    fn feed(&mut self, bytes: &[u8], max: usize) {
        self.log.push(format!("feed {:?}, reads of {max}", bytes.escape_ascii().to_string()));
        assert_eq!(rustix::io::write(&self.host.master, bytes), Ok(bytes.len()));
        let (taken, _) = discipline::receive(&mut self.ours.tty, bytes);
        assert_eq!(taken, bytes.len(), "{}", self.story());
        self.compare(max);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.log.push(format!("write {:?}", bytes.escape_ascii().to_string()));
        let theirs = self.host.write(bytes);
        let ours = discipline::write(&mut self.ours.tty, bytes);
        assert_eq!(ours, theirs, "bytes taken of a write{}", self.story());
        self.compare(4096);
    }

    fn compare(&mut self, max: usize) {
        loop {
            let theirs = self.host.read(max);
            let ours = discipline::read(&mut self.ours.tty, max);
            assert_eq!(ours, theirs, "ours (left) and Linux's read{}", self.story());
            if ours == Input::Nothing {
                break;
            }
        }
        let (theirs, ours) = (self.host.seen(), self.ours.seen());
        assert_eq!(
            ours.escape_ascii().to_string(),
            theirs.escape_ascii().to_string(),
            "ours (left) and Linux's echo and output{}",
            self.story()
        );
        let bytes = postcard::to_allocvec(&self.ours.tty).unwrap();
        assert!(bytes.len() <= 16 * 1024, "{} bytes", bytes.len());
    }

    fn story(&self) -> String {
        let from = self.log.len().saturating_sub(12);
        format!("; the latest steps:\n{}\n{:?}", self.log[from..].join("\n"), self.ours.tty)
    }
}

#[test]
fn a_new_terminal_has_linuxs_settings() {
    let theirs = Host::new().standard();
    assert_eq!(STANDARD.iflag, theirs.iflag);
    assert_eq!(STANDARD.oflag, theirs.oflag);
    assert_eq!(STANDARD.lflag, theirs.lflag);
    assert_eq!(STANDARD.cc, theirs.cc);
}

#[test]
fn an_ordinary_evening_at_the_shell() {
    let mut p = Pair::new();
    p.write(b"$ ");
    p.feed(b"ehco hi\x7f\x7f\x7f\x7f\x7f\x7fcho hi\r", 4096);
    p.write(b"hi\n$ ");
    p.feed(b"some words here\x17\x17 x\x15", 4096);
    p.feed(b"a\tb\tc\x7f\x7f\x7f\x7f\x7f\n", 4096);
    p.feed("äöü€".as_bytes(), 4096);
    p.feed(b"\x7f\x7f\x12\x16\x03\n", 4096);
    p.feed(b"no newline\x04", 4096);
    p.feed(b"\x04", 4096);
    p.feed(b"\x13", 4096);
    p.feed(b"typed while stopped", 4096);
    p.write(b"output");
    p.feed(b"\x11\n", 3);
    p.feed(b"abc\x04\x04def\n", 3);
}

/// Lines longer than the buffer: the last place is kept for what ends the line.
#[test]
fn too_long_a_line_is_cut_as_linux_cuts_it() {
    for total in [4094, 4095, 4096, 4097, 5000] {
        let mut p = Pair::new();
        let quiet = Termios { lflag: STANDARD.lflag & !ECHO, ..p.ours.tty.termios.clone() };
        p.set(&quiet);
        let line: Vec<u8> = (0..total).map(|i| b'a' + (i % 26) as u8).collect();
        for part in line.chunks(500) {
            p.feed(part, 8192);
        }
        p.feed(b"\n", 8192);
    }
}

#[test]
fn random_terminals_agree_with_linux() {
    let mut r = Random::seeded();
    for _ in 0..250 {
        let mut p = Pair::new();
        for _ in 0..40 {
            match r.below(10) {
                0 => {
                    let t = settings(&mut r, &p.ours.tty.termios);
                    p.set(&t);
                }
                1 | 2 => {
                    let len = 1 + r.below(60);
                    let bytes: Vec<u8> = (0..len).flat_map(|_| output(&mut r)).collect();
                    p.write(&bytes);
                }
                _ => {
                    let len = 1 + r.below(30);
                    let bytes: Vec<u8> =
                        (0..len).flat_map(|_| keystroke(&mut r, &p.ours.tty.termios)).collect();
                    let max = r.pick(&[1, 2, 5, 63, 64, 65, 4096]);
                    for part in apart(&bytes, &p.ours.tty.termios) {
                        p.feed(part, max);
                    }
                }
            }
        }
    }
}

/// Random settings, half of them near the ordinary.
fn settings(r: &mut Random, old: &Termios) -> Termios {
    let mut t = Termios { cflag: old.cflag, ..STANDARD };
    let iflags = [ISTRIP, INLCR, IGNCR, ICRNL, IUCLC, IXON, IXANY, IUTF8, PARMRK];
    let oflags = [OPOST, OLCUC, ONLCR, OCRNL, ONOCR, ONLRET, XTABS];
    let lflags =
        [ISIG, ICANON, ECHO, ECHOE, ECHOK, ECHONL, NOFLSH, ECHOCTL, ECHOPRT, ECHOKE, IEXTEN];
    if r.below(2) == 0 {
        t.iflag = r.bits(&iflags, 35);
        t.oflag = r.bits(&oflags, 50);
        t.lflag = r.bits(&lflags, 60);
    } else {
        t.iflag ^= r.bits(&iflags, 10);
        t.oflag ^= r.bits(&oflags, 10);
        t.lflag ^= r.bits(&lflags, 10);
    }
    if t.lflag & ECHOCTL == 0 {
        // Linux (6.18) has a fault here: VLNEXT then leaves ECHOPRT's '/' uncommitted, and the next
        // write puts the whole echo buffer out, stale bytes and all.
        t.lflag &= !ECHOPRT;
    }
    if r.below(3) == 0 {
        t.cc[cc::VEOL] = r.pick(b";\0\xa9e");
        t.cc[cc::VEOL2] = r.pick(b"!\0;\xff");
        t.cc[cc::VERASE] = r.pick(b"\x08\x7f#\0");
        t.cc[cc::VKILL] = r.pick(b"\x15@\0k");
        t.cc[cc::VWERASE] = r.pick(b"\x17\x7f\0");
        t.cc[cc::VLNEXT] = r.pick(b"\x16\\");
        t.cc[cc::VSTART] = r.pick(b"\x11\x13");
    }
    t
}

fn keystroke(r: &mut Random, t: &Termios) -> Vec<u8> {
    match r.below(20) {
        0..=6 => vec![r.pick(b"abcXYZ019_ ek")],
        7 => vec![r.pick(b" \t.,;!#@\\/-")],
        8 => vec![b'\t'],
        9 => vec![b'\n'],
        10 => vec![b'\r'],
        11..=14 => vec![
            t.cc[r.pick(&[
                cc::VERASE,
                cc::VERASE,
                cc::VKILL,
                cc::VEOF,
                cc::VWERASE,
                cc::VLNEXT,
                cc::VREPRINT,
                cc::VEOL,
                cc::VEOL2,
            ])],
        ],
        15 if r.below(4) == 0 => vec![t.cc[r.pick(&[cc::VINTR, cc::VQUIT, cc::VSUSP])]],
        16 if r.below(3) == 0 => vec![t.cc[r.pick(&[cc::VSTART, cc::VSTOP, cc::VSTART])]],
        17 => "é€ß𝄞".chars().nth(r.below(4) as usize).unwrap_or('é').to_string().into_bytes(),
        18 => vec![r.below(256) as u8],
        _ => vec![r.below(32) as u8],
    }
}

fn output(r: &mut Random) -> Vec<u8> {
    match r.below(8) {
        0 => b"\n".to_vec(),
        1 => b"\r".to_vec(),
        2 => b"\t".to_vec(),
        3 => vec![8],
        4 => "é".as_bytes().to_vec(),
        5 => vec![r.below(256) as u8],
        _ => vec![r.pick(b"abcdefXYZ 12")],
    }
}

/// Splits so that a character that flushes or stops output stands alone: whether Linux's master has
/// received what was echoed just before the first is a matter of time, and before the second Linux
/// holds echo back as long as it has more keystrokes at hand.
fn apart<'b>(bytes: &'b [u8], t: &Termios) -> Vec<&'b [u8]> {
    let flushes = |b: &u8| {
        let mut c = *b;
        if t.iflag & ISTRIP != 0 {
            c &= 0x7f;
        }
        if t.iflag & IUCLC != 0 && t.lflag & IEXTEN != 0 {
            c = clustix_console::ctype::to_lower(c);
        }
        let is = |of: &[usize]| of.iter().any(|i| t.cc[*i] == c);
        t.lflag & ISIG != 0 && is(&[cc::VINTR, cc::VQUIT, cc::VSUSP])
            || t.iflag & IXON != 0 && is(&[cc::VSTART, cc::VSTOP])
    };
    let mut parts = Vec::new();
    for run in bytes.split_inclusive(flushes) {
        match run.split_last() {
            Some((last, before)) if flushes(last) => {
                parts.extend((!before.is_empty()).then_some(before));
                parts.push(&run[run.len() - 1..]);
            }
            _ => parts.push(run),
        }
    }
    parts
}
