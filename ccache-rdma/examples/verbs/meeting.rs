//! Where the nodes of a measurement wait for each other and tell each other figures: over TCP, so that
//! neither verbs nor messages of the fabric are needed for it.

use crate::fail;
use crate::shell::Shell;
use crate::three::BOUND;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Node 0 listens on this port, the fabric's plus one.
const ABOVE: u16 = 1;
/// Looked at so often, by nodes that have nothing else to do.
const LOOK: Duration = Duration::from_millis(5);
/// The longest that a node may keep the others waiting.
const LATE: Duration = Duration::from_secs(200);

struct Line {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Line {
    fn new(stream: TcpStream) -> Line {
        let set = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        set.unwrap_or_else(|e| fail("a connection cannot be set up", &e));
        Line { stream, bytes: Vec::new() }
    }

    fn say(&mut self, text: &str) {
        // Short lines, each answered before the next: the socket has room.
        let said = self.stream.write_all(format!("{text}\n").as_bytes());
        said.unwrap_or_else(|e| fail("another node cannot be told", &e));
    }

    fn hear(&mut self) -> Option<String> {
        let mut some = [0; 512];
        match self.stream.read(&mut some) {
            Ok(0) => fail("another node", &"has ended"),
            Ok(n) => self.bytes.extend_from_slice(&some[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => fail("another node", &e),
        }
        let end = self.bytes.iter().position(|b| *b == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }
}

/// One node's place in it.
pub struct Meeting {
    slot: u8,
    /// At node 0 the others, in the order of their slots; elsewhere node 0.
    lines: Vec<Line>,
}

impl Meeting {
    /// Meets the others.
    pub fn new(slot: u8, at: &[SocketAddr]) -> Meeting {
        let place = SocketAddr::new(at[0].ip(), at[0].port() + ABOVE);
        if slot != 0 {
            let begun = Instant::now();
            let mut line = loop {
                match TcpStream::connect(place) {
                    Ok(stream) => break Line::new(stream),
                    Err(e) if begun.elapsed() > BOUND => fail("node 0 is not there", &e),
                    Err(_) => std::thread::sleep(LOOK),
                }
            };
            line.say(&slot.to_string());
            return Meeting { slot, lines: vec![line] };
        }
        let listener = TcpListener::bind(place).unwrap_or_else(|e| fail("cannot listen", &e));
        let mut lines = Vec::new();
        while lines.len() + 1 < at.len() {
            let (stream, _) = listener.accept().unwrap_or_else(|e| fail("nobody comes", &e));
            let mut line = Line::new(stream);
            let who = loop {
                match line.hear() {
                    Some(who) => break who,
                    None => std::thread::sleep(LOOK),
                }
            };
            lines.push((who, line));
        }
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        Meeting { slot, lines: lines.into_iter().map(|(_, line)| line).collect() }
    }

    /// Waits for all, and answers what each has to say, in the order of their slots.
    pub fn gather(&mut self, shell: &mut Shell, say: &str) -> Vec<String> {
        let begun = Instant::now();
        if self.slot != 0 {
            self.lines[0].say(say);
        }
        let mut heard: Vec<Option<String>> = self.lines.iter().map(|_| None).collect();
        loop {
            for (line, heard) in self.lines.iter_mut().zip(&mut heard) {
                if heard.is_none() {
                    *heard = line.hear();
                }
            }
            if heard.iter().all(Option::is_some) {
                break;
            }
            shell.turn_or_sleep(LOOK);
            if begun.elapsed() > LATE {
                fail("another node does not come", &"time is up");
            }
        }
        let heard: Vec<String> = heard.into_iter().flatten().collect();
        if self.slot != 0 {
            return heard[0].split('\t').map(str::to_owned).collect();
        }
        let all: Vec<String> = std::iter::once(say.to_owned()).chain(heard).collect();
        let text = all.join("\t");
        self.lines.iter_mut().for_each(|line| line.say(&text));
        all
    }

    /// Waits for all.
    pub fn wait(&mut self, shell: &mut Shell) {
        self.gather(shell, "");
    }
}
