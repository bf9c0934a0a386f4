//! The line discipline: what Linux's n_tty.c does, as step functions over a [`Tty`].
//!
//! [`receive`] takes keystrokes, [`write`] a program's output, [`read`] gives input to a program,
//! [`set_termios`] changes the rules. Each changes the terminal alone; signals to send are returned.
//! Compared byte for byte with a Linux pty in `tests/pty.rs`.

use crate::ctype::{is_alnum, is_cntrl, to_lower, to_upper};
use crate::termios::*;
use clustix_proto::console::{Termios, Tty};

/// A job-control signal for the terminal's foreground group, Linux's number.
pub type Signal = u8;

const SIGINT: Signal = 2;
const SIGQUIT: Signal = 3;
const SIGTSTP: Signal = 20;

/// A `c_cc` entry of 0 is switched off (_POSIX_VDISABLE).
const DISABLED: u8 = 0;

// Operation codes in `Tty::echo`, n_tty.c's.
const OP_START: u8 = 0xff;
const OP_MOVE_BACK: u8 = 0x80;
const OP_SET_CANON_COLUMN: u8 = 0x81;
const OP_ERASE_TAB: u8 = 0x82;

/// A new terminal.
pub fn new_tty(winsize: [u16; 4]) -> Tty {
    Tty {
        termios: STANDARD,
        winsize,
        foreground: 0,
        session: 0,
        input: Vec::new(),
        canon: 0,
        ends: Vec::new(),
        echo: Vec::new(),
        column: 0,
        canon_column: 0,
        lnext: false,
        erasing: false,
        received: false,
        stopped: false,
        hangup: false,
        output: Vec::new(),
        output_end: 0,
        output_taken: 0,
        attached: true,
        typed: 0,
        job: 0,
        turn: 0,
        owed: Vec::new(),
        owed_from: 0,
    }
}

fn l(t: &Tty, bit: u32) -> bool {
    t.termios.lflag & bit != 0
}
fn i(t: &Tty, bit: u32) -> bool {
    t.termios.iflag & bit != 0
}
fn o(t: &Tty, bit: u32) -> bool {
    t.termios.oflag & bit != 0
}

/// Whether `c` is the (enabled) special character `index`.
fn is_cc(t: &Tty, c: u8, index: usize) -> bool {
    t.termios.cc.get(index).is_some_and(|v| *v == c && c != DISABLED)
}

fn is_continuation(t: &Tty, c: u8) -> bool {
    i(t, IUTF8) && c & 0xc0 == 0x80
}

fn canon(t: &Tty) -> usize {
    (t.canon as usize).min(t.input.len())
}

// ---- Which bytes end lines ------------------------------------------------------------------

fn is_end(t: &Tty, at: usize) -> bool {
    t.ends.get(at / 8).is_some_and(|b| b & 1 << (at % 8) != 0)
}

fn mark_end(t: &mut Tty, at: usize) {
    if t.ends.len() <= at / 8 {
        t.ends.resize(at / 8 + 1, 0);
    }
    if let Some(b) = t.ends.get_mut(at / 8) {
        *b |= 1 << (at % 8);
    }
}

/// Takes the first `count` bytes of input away.
fn consume(t: &mut Tty, count: usize) {
    let count = count.min(t.input.len());
    let marks: Vec<usize> = (count..canon(t)).filter(|at| is_end(t, *at)).collect();
    t.input.drain(..count);
    t.canon = t.canon.saturating_sub(count as u32);
    t.ends.clear();
    for at in marks {
        mark_end(t, at - count);
    }
}

fn clear_input(t: &mut Tty) {
    t.input.clear();
    t.ends.clear();
    t.canon = 0;
    t.lnext = false;
    t.erasing = false;
    t.received = false;
}

// ---- Output ---------------------------------------------------------------------------------

/// Bytes that the output ring takes now, leaving `reserve` free. Without a client nothing waits:
/// the oldest output gives way.
fn room(t: &Tty, reserve: usize) -> usize {
    if t.stopped {
        return 0;
    }
    if !t.attached {
        return Tty::OUTPUT - reserve;
    }
    let untaken = t.output_end.saturating_sub(t.output_taken).min(Tty::OUTPUT as u64) as usize;
    (Tty::OUTPUT - reserve).saturating_sub(untaken)
}

fn put(t: &mut Tty, bytes: &[u8]) {
    t.output.extend_from_slice(bytes);
    t.output_end += bytes.len() as u64;
    if t.output.len() > Tty::OUTPUT {
        let surplus = t.output.len() - Tty::OUTPUT;
        t.output.drain(..surplus);
    }
}

/// One byte through OPOST (`do_output_char`); `false` if there is no room for what it becomes.
fn put_processed(t: &mut Tty, c: u8, space: usize) -> bool {
    if space == 0 {
        return false;
    }
    let mut c = c;
    match c {
        b'\n' => {
            if o(t, ONLRET) {
                t.column = 0;
            }
            if o(t, ONLCR) {
                if space < 2 {
                    return false;
                }
                (t.column, t.canon_column) = (0, 0);
                put(t, b"\r\n");
                return true;
            }
            t.canon_column = t.column;
        }
        b'\r' => {
            if o(t, ONOCR) && t.column == 0 {
                return true;
            }
            if o(t, OCRNL) {
                c = b'\n';
                if o(t, ONLRET) {
                    (t.column, t.canon_column) = (0, 0);
                }
            } else {
                (t.column, t.canon_column) = (0, 0);
            }
        }
        b'\t' => {
            let spaces = 8 - (t.column & 7);
            if t.termios.oflag & TABDLY == XTABS {
                if space < spaces as usize {
                    return false;
                }
                t.column = t.column.wrapping_add(spaces);
                put(t, b"        ".get(..spaces as usize).unwrap_or_default());
                return true;
            }
            t.column = t.column.wrapping_add(spaces);
        }
        8 => t.column = t.column.saturating_sub(1),
        _ => {
            if !is_cntrl(c) {
                if o(t, OLCUC) {
                    c = to_upper(c);
                }
                if !is_continuation(t, c) {
                    t.column = t.column.wrapping_add(1);
                }
            }
        }
    }
    put(t, &[c]);
    true
}

/// A program's output. How many bytes were taken; fewer than all: the ring is full or stopped.
pub fn write(t: &mut Tty, bytes: &[u8]) -> usize {
    process_echoes(t);
    let mut taken = 0;
    if o(t, OPOST) {
        for c in bytes {
            let space = room(t, Tty::ECHO_RESERVE);
            if !put_processed(t, *c, space) {
                break;
            }
            taken += 1;
        }
    } else {
        taken = bytes.len().min(room(t, Tty::ECHO_RESERVE));
        put(t, bytes.get(..taken).unwrap_or_default());
    }
    taken
}

// ---- Echo -----------------------------------------------------------------------------------

fn echo_op(t: &mut Tty, op: &[u8]) {
    // A client that does not take its output gets no more echo, rather than no more input.
    if t.echo.len() + op.len() <= Tty::ECHO {
        t.echo.extend_from_slice(op);
    }
}

fn echo_raw(t: &mut Tty, c: u8) {
    if c == OP_START {
        echo_op(t, &[OP_START, OP_START]);
    } else {
        echo_op(t, &[c]);
    }
}

fn echo(t: &mut Tty, c: u8) {
    if c == OP_START {
        echo_op(t, &[OP_START, OP_START]);
    } else if l(t, ECHOCTL) && is_cntrl(c) && c != b'\t' {
        echo_op(t, &[OP_START, c]);
    } else {
        echo_op(t, &[c]);
    }
}

fn finish_erasing(t: &mut Tty) {
    if t.erasing {
        echo_raw(t, b'/');
        t.erasing = false;
    }
}

/// Puts waiting echo out, as far as there is room.
fn process_echoes(t: &mut Tty) {
    let ops = std::mem::take(&mut t.echo);
    let mut at = 0;
    while let Some(&c) = ops.get(at) {
        let space = room(t, 0);
        if c != OP_START {
            let fits = if o(t, OPOST) {
                put_processed(t, c, space)
            } else {
                if space > 0 {
                    put(t, &[c]);
                }
                space > 0
            };
            if !fits {
                break;
            }
            at += 1;
            continue;
        }
        match ops.get(at + 1) {
            None => break,
            Some(&OP_ERASE_TAB) => {
                let Some(&columns) = ops.get(at + 2) else { break };
                // Counted from the line's start, unless from a tab before.
                let columns = if columns & 0x80 == 0 {
                    u32::from(columns).wrapping_add(t.canon_column)
                } else {
                    u32::from(columns)
                };
                let back = 8 - (columns & 7);
                if space < back as usize {
                    break;
                }
                for _ in 0..back {
                    put(t, b"\x08");
                    t.column = t.column.saturating_sub(1);
                }
                at += 3;
            }
            Some(&OP_SET_CANON_COLUMN) => {
                t.canon_column = t.column;
                at += 2;
            }
            Some(&OP_MOVE_BACK) => {
                t.column = t.column.saturating_sub(1);
                at += 2;
            }
            Some(&OP_START) => {
                if space == 0 {
                    break;
                }
                put(t, &[OP_START]);
                t.column = t.column.wrapping_add(1);
                at += 2;
            }
            Some(&control) => {
                if space < 2 {
                    break;
                }
                put(t, &[b'^', control ^ 0o100]);
                t.column = t.column.wrapping_add(2);
                at += 2;
            }
        }
    }
    t.echo = ops.get(at..).unwrap_or_default().to_vec();
}

/// There is room for output again: echo that waited goes first.
pub fn resume(t: &mut Tty) {
    process_echoes(t);
}

fn start(t: &mut Tty) {
    if t.stopped {
        t.stopped = false;
        process_echoes(t);
    }
}

/// TCOOFF and TCOON.
pub fn set_flow(t: &mut Tty, stop: bool) {
    if stop {
        t.stopped = true;
    } else {
        start(t);
    }
}

// ---- Input ----------------------------------------------------------------------------------

fn queue(t: &mut Tty, c: u8) {
    t.received = true;
    if t.input.len() < Tty::INPUT {
        t.input.push(c);
    }
}

/// Whether the next character is the first of a line, whose column echo remembers. Outside
/// canonical mode only the very first is (n_tty's `canon_head` stays behind there).
fn at_line_start(t: &Tty) -> bool {
    if l(t, ICANON) { canon(t) == t.input.len() } else { !t.received }
}

/// Echo and queueing of a character that is nothing special here.
fn ordinary(t: &mut Tty, c: u8, newline_raw: bool) {
    if l(t, ECHO) {
        finish_erasing(t);
        if newline_raw && c == b'\n' {
            echo_raw(t, c);
        } else {
            if at_line_start(t) {
                echo_op(t, &[OP_START, OP_SET_CANON_COLUMN]);
            }
            echo(t, c);
        }
    }
    if c == 0xff && i(t, PARMRK) {
        queue(t, c);
    }
    queue(t, c);
}

/// VINTR, VQUIT, VSUSP: flushes, unless NOFLSH.
fn signal(t: &mut Tty, c: u8, signal: Signal, signals: &mut Vec<Signal>) {
    if !l(t, NOFLSH) {
        t.echo.clear();
        clear_input(t);
        flush_output(t);
    }
    signals.push(signal);
    if i(t, IXON) {
        start(t);
    }
    if l(t, ECHO) {
        echo(t, c);
    }
    process_echoes(t);
}

/// Discards output that the client has not taken. Positions never go back: a client that has seen
/// more than it has said goes on from where it is.
fn flush_output(t: &mut Tty) {
    t.output.clear();
    t.output_taken = t.output_end;
}

/// TCFLSH.
pub fn flush(t: &mut Tty, input: bool, output: bool) {
    if input {
        clear_input(t);
    }
    if output {
        t.echo.clear();
        flush_output(t);
    }
}

/// Makes what was received up to now a line.
fn end_line(t: &mut Tty, c: u8) {
    let at = t.input.len();
    queue(t, c);
    mark_end(t, at);
    t.canon = t.input.len() as u32;
}

/// The special characters of canonical mode; `false` if `c` is none.
fn canonical(t: &mut Tty, c: u8) -> bool {
    let extended = l(t, IEXTEN);
    if is_cc(t, c, cc::VERASE) || is_cc(t, c, cc::VKILL) || extended && is_cc(t, c, cc::VWERASE) {
        erase(t, c);
        return true;
    }
    if extended && is_cc(t, c, cc::VLNEXT) {
        t.lnext = true;
        if l(t, ECHO) {
            finish_erasing(t);
            if l(t, ECHOCTL) {
                echo_raw(t, b'^');
                echo_raw(t, 8);
            }
        }
        return true;
    }
    if extended && is_cc(t, c, cc::VREPRINT) && l(t, ECHO) {
        finish_erasing(t);
        echo(t, c);
        echo_raw(t, b'\n');
        for at in canon(t)..t.input.len() {
            if let Some(c) = t.input.get(at).copied() {
                echo(t, c);
            }
        }
        return true;
    }
    if c == b'\n' {
        if l(t, ECHO) || l(t, ECHONL) {
            echo_raw(t, c);
        }
        end_line(t, c);
        return true;
    }
    if is_cc(t, c, cc::VEOF) {
        end_line(t, DISABLED);
        return true;
    }
    if is_cc(t, c, cc::VEOL) || extended && is_cc(t, c, cc::VEOL2) {
        if l(t, ECHO) {
            if at_line_start(t) {
                echo_op(t, &[OP_START, OP_SET_CANON_COLUMN]);
            }
            echo(t, c);
        }
        if c == 0xff && i(t, PARMRK) {
            queue(t, c);
        }
        end_line(t, c);
        return true;
    }
    false
}

#[derive(PartialEq)]
enum Erase {
    Character,
    Word,
    Line,
}

/// VERASE, VWERASE, VKILL (`eraser`).
fn erase(t: &mut Tty, c: u8) {
    let start = canon(t);
    if t.input.len() == start {
        return;
    }
    let kind = if is_cc(t, c, cc::VERASE) {
        Erase::Character
    } else if is_cc(t, c, cc::VWERASE) {
        Erase::Word
    } else {
        if !l(t, ECHO) {
            t.input.truncate(start);
            return;
        }
        if !l(t, ECHOK) || !l(t, ECHOKE) || !l(t, ECHOE) {
            t.input.truncate(start);
            finish_erasing(t);
            echo(t, c);
            if l(t, ECHOK) {
                echo_raw(t, b'\n');
            }
            return;
        }
        Erase::Line
    };
    let mut seen_word = false;
    while t.input.len() > start {
        // One character, which may be several bytes.
        let mut head = t.input.len();
        let mut c = 0;
        while head > start {
            head -= 1;
            c = t.input.get(head).copied().unwrap_or(0);
            if !is_continuation(t, c) {
                break;
            }
        }
        if is_continuation(t, c) {
            // Never a part of one.
            break;
        }
        if kind == Erase::Word {
            if is_alnum(c) || c == b'_' {
                seen_word = true;
            } else if seen_word {
                break;
            }
        }
        let erased = t.input.split_off(head);
        if l(t, ECHO) {
            if l(t, ECHOPRT) {
                if !t.erasing {
                    echo_raw(t, b'\\');
                    t.erasing = true;
                }
                echo(t, c);
                for b in erased.iter().skip(1) {
                    echo_raw(t, *b);
                    echo_op(t, &[OP_START, OP_MOVE_BACK]);
                }
            } else if kind == Erase::Character && !l(t, ECHOE) {
                let erase = t.termios.cc[cc::VERASE];
                echo(t, erase);
            } else if c == b'\t' {
                echo_erased_tab(t, start);
            } else {
                let width = match (is_cntrl(c), l(t, ECHOCTL)) {
                    (true, true) => 2,
                    (true, false) => 0,
                    (false, _) => 1,
                };
                for _ in 0..width {
                    for b in *b"\x08 \x08" {
                        echo_raw(t, b);
                    }
                }
            }
        }
        if kind == Erase::Character {
            break;
        }
    }
    if t.input.len() == start && l(t, ECHO) {
        finish_erasing(t);
    }
}

/// How far a tab that was erased had moved the cursor depends on the columns before it, back to the
/// line's start or the tab before.
fn echo_erased_tab(t: &mut Tty, start: usize) {
    let mut columns: usize = 0;
    let mut after_tab = 0;
    for c in t.input.get(start..).unwrap_or_default().iter().rev() {
        if *c == b'\t' {
            after_tab = 0x80;
            break;
        }
        if is_cntrl(*c) {
            if l(t, ECHOCTL) {
                columns += 2;
            }
        } else if !is_continuation(t, *c) {
            columns += 1;
        }
    }
    echo_op(t, &[OP_START, OP_ERASE_TAB, (columns & 7) as u8 | after_tab]);
}

/// Which characters are looked at at all (`char_map`): others, NUL too, are ordinary.
fn is_special(t: &Tty, c: u8) -> bool {
    if c == DISABLED {
        return false;
    }
    let any = |list: &[usize]| list.iter().any(|index| is_cc(t, c, *index));
    (c == b'\r' && (i(t, IGNCR) || i(t, ICRNL)))
        || (c == b'\n' && (i(t, INLCR) || l(t, ICANON)))
        || (l(t, ICANON)
            && (any(&[cc::VERASE, cc::VKILL, cc::VEOF, cc::VEOL])
                || l(t, IEXTEN)
                    && (any(&[cc::VWERASE, cc::VLNEXT, cc::VEOL2])
                        || l(t, ECHO) && is_cc(t, c, cc::VREPRINT))))
        || (i(t, IXON) && any(&[cc::VSTART, cc::VSTOP]))
        || (l(t, ISIG) && any(&[cc::VINTR, cc::VQUIT, cc::VSUSP]))
}

fn special(t: &mut Tty, c: u8, signals: &mut Vec<Signal>) {
    if i(t, IXON) {
        if is_cc(t, c, cc::VSTART) {
            start(t);
            return;
        }
        if is_cc(t, c, cc::VSTOP) {
            t.stopped = true;
            return;
        }
    }
    if l(t, ISIG) {
        for (index, s) in [(cc::VINTR, SIGINT), (cc::VQUIT, SIGQUIT), (cc::VSUSP, SIGTSTP)] {
            if is_cc(t, c, index) {
                signal(t, c, s, signals);
                return;
            }
        }
    }
    if i(t, IXON) && i(t, IXANY) {
        start(t);
    }
    let mut c = c;
    if c == b'\r' {
        if i(t, IGNCR) {
            return;
        }
        if i(t, ICRNL) {
            c = b'\n';
        }
    } else if c == b'\n' && i(t, INLCR) {
        c = b'\r';
    }
    if l(t, ICANON) && canonical(t, c) {
        return;
    }
    ordinary(t, c, true);
}

/// Whether input can be taken. A line that does not fit keeps its last place for what ends it.
fn has_room(t: &Tty) -> bool {
    let capacity = if i(t, PARMRK) { Tty::INPUT.div_ceil(3) } else { Tty::INPUT };
    t.input.len() + 1 < capacity || (l(t, ICANON) && canon(t) == 0)
}

/// Keystrokes. How many bytes were taken, and the signals for the foreground group, in order.
pub fn receive(t: &mut Tty, bytes: &[u8]) -> (usize, Vec<Signal>) {
    let mut signals = Vec::new();
    let mut taken = 0;
    for &byte in bytes {
        if !has_room(t) {
            break;
        }
        if l(t, ICANON) && t.input.len() >= Tty::INPUT {
            t.input.pop();
        }
        taken += 1;
        let mut c = byte;
        if i(t, ISTRIP) {
            c &= 0x7f;
        }
        if i(t, IUCLC) && l(t, IEXTEN) {
            c = to_lower(c);
        }
        if l(t, EXTPROC) {
            queue(t, c);
        } else if std::mem::take(&mut t.lnext) || !is_special(t, c) {
            if i(t, IXON) && i(t, IXANY) {
                start(t);
            }
            ordinary(t, c, false);
        } else {
            special(t, c, &mut signals);
        }
        if l(t, ECHO) || l(t, ECHONL) {
            process_echoes(t);
        }
    }
    (taken, signals)
}

// ---- Reading --------------------------------------------------------------------------------

/// What a program's read gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// These bytes, at least one.
    Bytes(Vec<u8>),
    /// End of file.
    End,
    /// Nothing yet.
    Nothing,
}

/// A program reads at most `max` (≥ 1) bytes.
pub fn read(t: &mut Tty, max: usize) -> Input {
    let lines = l(t, ICANON) && !l(t, EXTPROC);
    let available = if lines { canon(t) } else { t.input.len() };
    if available == 0 {
        return if t.hangup { Input::End } else { Input::Nothing };
    }
    if !lines {
        let count = available.min(max);
        let bytes = t.input.get(..count).unwrap_or_default().to_vec();
        consume(t, count);
        return Input::Bytes(bytes);
    }
    let limit = available.min(max);
    match (0..limit).find(|at| is_end(t, *at)) {
        Some(end) => {
            let mark = t.input.get(end) == Some(&DISABLED);
            let count = if mark { end } else { end + 1 };
            let bytes = t.input.get(..count).unwrap_or_default().to_vec();
            consume(t, end + 1);
            if bytes.is_empty() { Input::End } else { Input::Bytes(bytes) }
        }
        None => {
            let bytes = t.input.get(..limit).unwrap_or_default().to_vec();
            consume(t, limit);
            // The reader has got all that stood before the mark: it must not see an end of file too.
            if canon(t) > 0 && is_end(t, 0) && t.input.first() == Some(&DISABLED) {
                consume(t, 1);
            }
            Input::Bytes(bytes)
        }
    }
}

/// Bytes that a read would find now (TIOCINQ, poll(2)): in canonical mode those of complete lines.
pub fn readable(t: &Tty) -> usize {
    let lines = l(t, ICANON) && !l(t, EXTPROC);
    if lines { canon(t) } else { t.input.len() }
}

/// New settings (`n_tty_set_termios`).
pub fn set_termios(t: &mut Tty, new: Termios) {
    let old = std::mem::replace(&mut t.termios, new);
    if (old.lflag ^ t.termios.lflag) & (ICANON | EXTPROC) != 0 {
        t.ends.clear();
        t.canon = 0;
        if l(t, ICANON) && !t.input.is_empty() {
            // What was typed before counts as a line.
            let last = t.input.len() - 1;
            mark_end(t, last);
            t.canon = t.input.len() as u32;
        }
        t.erasing = false;
        t.lnext = false;
        t.received = !t.input.is_empty();
    }
    if old.iflag & IXON != 0 && !i(t, IXON) {
        start(t);
    }
}
