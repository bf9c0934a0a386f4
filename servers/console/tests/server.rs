//! Terminals as programs and clients use them: back-pressure, signals, job control, hang-up, and the
//! loss of a client's node.

use clustix_ccache::cache::Cache;
use clustix_ccache::local::LocalCache;
use clustix_console::job::{self, Use, Verdict};
use clustix_console::termios::{ICANON, TOSTOP};
use clustix_console::{Server, Signals};
use clustix_pd::exec;
use clustix_proto::console::{Reply, Request, Tty, tty};
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::load;
use clustix_proto::process::{Process, Target};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

#[derive(Clone, Default)]
struct Sent(Rc<RefCell<Vec<(Target, u8)>>>);

impl Signals for Sent {
    async fn kill(&self, target: Target, signal: u8) -> bool {
        self.0.borrow_mut().push((target, signal));
        true
    }
}

struct Console {
    cache: Arc<LocalCache>,
    server: Server<Arc<LocalCache>, Sent>,
    sent: Sent,
}

impl Console {
    fn new() -> Console {
        let (cache, sent) = (Arc::new(LocalCache::new()), Sent::default());
        let server = Server::new(cache.clone(), sent.clone());
        Console { cache, server, sent }
    }
    async fn ask(&self, request: Request) -> Result<Reply, Errno> {
        self.server.handle(request).await
    }
    async fn number(&self, request: Request) -> u64 {
        self.ask(request).await.unwrap().value
    }
    async fn tty(&self, number: u32) -> Tty {
        load(&self.cache, tty(number)).await.unwrap().0.unwrap()
    }
    fn signals(&self) -> Vec<(Target, u8)> {
        std::mem::take(&mut self.sent.0.borrow_mut())
    }
    async fn input(&self, tty: u32, bytes: &[u8]) -> u64 {
        self.number(Request::Input { tty, at: None, bytes: bytes.to_vec() }).await
    }
    async fn output(&self, tty: u32, bytes: &[u8]) -> u64 {
        self.number(Request::Output { tty, bytes: bytes.to_vec() }).await
    }
    async fn read(&self, tty: u32) -> Reply {
        self.ask(Request::Read { tty, max: 100 }).await.unwrap()
    }
}

fn run(test: impl AsyncFn(Console, u32)) {
    exec::block_on(async {
        let c = Console::new();
        let t = c.number(Request::New { winsize: [24, 80, 0, 0], job: 0 }).await as u32;
        test(c, t).await;
    });
}

#[test]
fn numbers_start_low_and_differ() {
    run(async |c, first| {
        let second = c.number(Request::New { winsize: [1; 4], job: 0 }).await;
        assert_eq!((first, second), (0, 1));
        c.ask(Request::Remove { tty: 0, job: 0 }).await.unwrap();
        c.ask(Request::Remove { tty: 0, job: 0 }).await.unwrap();
        assert_eq!(c.ask(Request::Read { tty: 0, max: 1 }).await, Err(errno::ENXIO));
        assert_eq!(c.number(Request::New { winsize: [1; 4], job: 0 }).await, 0);
    });
}

#[test]
fn a_line_is_echoed_and_read() {
    run(async |c, t| {
        assert_eq!(c.read(t).await, Reply::default());
        assert_eq!(c.input(t, b"ls\r").await, 3);
        let now = c.tty(t).await;
        assert_eq!(now.output_since(0), Some(&b"ls\r\n"[..]));
        assert_eq!(c.read(t).await.bytes, b"ls\n");
        c.input(t, b"\x04").await;
        assert!(c.read(t).await.eof);
        assert!(!c.read(t).await.eof, "once");
    });
}

#[test]
fn output_waits_for_the_client_and_echo_has_its_own_place() {
    run(async |c, t| {
        let most = (Tty::OUTPUT - Tty::ECHO_RESERVE) as u64;
        let mut sent = 0;
        loop {
            match c.output(t, &[b'x'; 1000]).await {
                0 => break,
                n => sent += n,
            }
        }
        assert_eq!(sent, most);
        let full = c.cache.get(tty(t), &mut Vec::new()).await.unwrap();
        assert_eq!(c.output(t, b"more").await, 0);
        let same = c.cache.get(tty(t), &mut Vec::new()).await.unwrap();
        assert_eq!(full, same, "a write that takes nothing wakes nobody");
        assert_eq!(c.input(t, b"typed").await, 5);
        assert_eq!(c.tty(t).await.output_since(most), Some(&b"typed"[..]));
        c.ask(Request::Taken { tty: t, upto: 500 }).await.unwrap();
        assert_eq!(c.output(t, &[b'y'; 1000]).await, 495, "what was taken, less the echo");
        // Nobody there: nothing waits, the latest is kept.
        c.ask(Request::Attach { tty: t, job: 0, turn: 0, attached: false }).await.unwrap();
        for i in 0..100u32 {
            assert_eq!(c.output(t, format!("{i:>1000}").as_bytes()).await, 1000);
        }
        let now = c.tty(t).await;
        assert_eq!(now.output.len(), Tty::OUTPUT);
        assert!(now.output.ends_with(b" 99"));
        let from = c.number(Request::Attach { tty: t, job: 0, turn: 0, attached: true }).await;
        assert_eq!(now.output_since(from).unwrap().len(), Tty::OUTPUT);
        assert_eq!(now.output_since(from - 1), None);
    });
}

#[test]
fn input_waits_for_the_program_and_never_grows() {
    run(async |c, t| {
        let raw = {
            let mut t = c.tty(t).await.termios;
            t.lflag &= !ICANON;
            t
        };
        c.ask(Request::SetTermios { tty: t, termios: raw, flush_input: false }).await.unwrap();
        let mut sent = 0;
        loop {
            let upto = c.tty(t).await.output_end;
            c.ask(Request::Taken { tty: t, upto }).await.unwrap();
            match c.input(t, &[b'k'; 700]).await {
                0 => break,
                n => sent += n,
            }
        }
        assert_eq!(sent, Tty::INPUT as u64 - 1);
        assert_eq!(c.read(t).await.bytes.len(), 100);
        assert_eq!(c.input(t, &[b'k'; 700]).await, 100);
        c.ask(Request::Flush { tty: t, input: true, output: false }).await.unwrap();
        assert_eq!(c.read(t).await, Reply::default());
    });
}

#[test]
fn the_largest_terminal_fits_its_object() {
    let t = Tty {
        input: vec![0xff; Tty::INPUT],
        ends: vec![0xff; Tty::INPUT / 8],
        echo: vec![0xff; Tty::ECHO],
        output: vec![0xff; Tty::OUTPUT],
        output_end: u64::MAX,
        output_taken: u64::MAX,
        canon: u32::MAX,
        column: u32::MAX,
        canon_column: u32::MAX,
        foreground: u32::MAX,
        session: u32::MAX,
        winsize: [u16::MAX; 4],
        typed: u64::MAX,
        job: u64::MAX,
        turn: u64::MAX,
        ..clustix_console::discipline::new_tty([0; 4])
    };
    let capacity = clustix_ccache::set::descriptor(clustix_ccache::set::TTY).unwrap().capacity;
    assert!(postcard::to_allocvec(&t).unwrap().len() <= capacity as usize);
}

#[test]
fn signals_go_to_the_foreground_group() {
    run(async |c, t| {
        c.input(t, b"\x03").await;
        assert_eq!(c.signals(), [], "nobody there");
        c.ask(Request::SetSession { tty: t, session: 10 }).await.unwrap();
        c.ask(Request::SetSession { tty: t, session: 10 }).await.unwrap();
        let other = Request::SetSession { tty: t, session: 11 };
        assert_eq!(c.ask(other).await, Err(errno::EPERM));
        let foreign = Request::SetForeground { tty: t, session: 11, pgid: 12 };
        assert_eq!(c.ask(foreign).await, Err(errno::ENOTTY));
        c.ask(Request::SetForeground { tty: t, session: 10, pgid: 12 }).await.unwrap();
        c.input(t, b"abc\x03\x1c\x1a").await;
        let to = Target::Group(12);
        assert_eq!(c.signals(), [(to, 2), (to, 3), (to, 20)]);
        assert_eq!(c.tty(t).await.output_since(0), None, "what was before is flushed");
        for (rows, expected) in [(24, vec![]), (50, vec![(to, 28)]), (50, vec![])] {
            c.ask(Request::SetWinsize { tty: t, winsize: [rows, 80, 0, 0] }).await.unwrap();
            assert_eq!(c.signals(), expected);
        }
        c.ask(Request::Release { tty: t, session: 11 }).await.unwrap();
        assert_eq!(c.signals(), []);
        c.ask(Request::Release { tty: t, session: 10 }).await.unwrap();
        assert_eq!(c.signals(), [(to, 1), (to, 18)]);
        assert_eq!((c.tty(t).await.session, c.tty(t).await.foreground), (0, 0));
    });
}

#[test]
fn a_hang_up_ends_reads_and_fails_writes() {
    run(async |c, t| {
        c.ask(Request::SetSession { tty: t, session: 10 }).await.unwrap();
        c.ask(Request::SetForeground { tty: t, session: 10, pgid: 12 }).await.unwrap();
        c.input(t, b"last\n").await;
        c.ask(Request::Hangup { tty: t, job: 0 }).await.unwrap();
        let (group, leader) = (Target::Group(12), Target::Process(10));
        assert_eq!(c.signals(), [(group, 1), (group, 18), (leader, 1), (leader, 18)]);
        assert_eq!(c.read(t).await.bytes, b"last\n");
        assert!(c.read(t).await.eof && c.read(t).await.eof);
        for request in [
            Request::Output { tty: t, bytes: b"x".to_vec() },
            Request::Input { tty: t, at: None, bytes: b"x".to_vec() },
        ] {
            assert_eq!(c.ask(request).await, Err(errno::EIO));
        }
    });
}

#[test]
fn a_client_that_is_gone_holds_nobody_up() {
    run(async |c, t| {
        while c.output(t, &[b'x'; 4000]).await > 0 {}
        assert_eq!(c.output(t, b"y").await, 0);
        c.ask(Request::Attach { tty: t, job: 0, turn: 0, attached: false }).await.unwrap();
        assert_eq!(c.output(t, b"y").await, 1);
    });
}

#[test]
fn what_was_typed_is_taken_once() {
    run(async |c, t| {
        let input = |at, bytes: &[u8]| Request::Input { tty: t, at, bytes: bytes.to_vec() };
        assert_eq!(c.number(input(Some(0), b"one\n")).await, 4);
        assert_eq!(c.number(input(Some(0), b"one\ntwo\n")).await, 8);
        assert_eq!(c.number(input(Some(4), b"two\n")).await, 4, "all of it was there");
        assert_eq!(c.number(input(None, b"x\n")).await, 2);
        assert_eq!(c.tty(t).await.typed, 8, "what is not the client's does not count");
        for line in [&b"one\n"[..], b"two\n", b"x\n"] {
            assert_eq!(c.read(t).await.bytes, line);
        }
    });
}

#[test]
fn a_terminal_obeys_its_own_job() {
    run(async |c, t| {
        for request in [
            Request::Attach { tty: t, job: 9, turn: 0, attached: false },
            Request::Hangup { tty: t, job: 9 },
        ] {
            assert_eq!(c.ask(request).await, Err(errno::ENXIO));
        }
        c.ask(Request::Remove { tty: t, job: 9 }).await.unwrap();
        assert!(c.tty(t).await.attached);
    });
}

#[test]
fn background_processes_are_stopped_as_job_control_wants() {
    let mut t = clustix_console::discipline::new_tty([0; 4]);
    (t.session, t.foreground) = (10, 12);
    let p = Process { pid: 13, pgid: 13, sid: 10, ..Process::init(0) };
    assert_eq!(job::wanted(&t, &p, Use::Read), Some(job::SIGTTIN));
    assert_eq!(job::wanted(&t, &p, Use::Write), None);
    assert_eq!(job::wanted(&t, &p, Use::Control), Some(job::SIGTTOU));
    t.termios.lflag |= TOSTOP;
    assert_eq!(job::wanted(&t, &p, Use::Write), Some(job::SIGTTOU));
    assert_eq!(job::wanted(&t, &Process { pgid: 12, ..p.clone() }, Use::Read), None);
    assert_eq!(job::wanted(&t, &Process { sid: 9, ..p }, Use::Read), None);
    let verdicts = [
        (job::SIGTTIN, false, false, Verdict::Signal(job::SIGTTIN)),
        (job::SIGTTIN, true, false, Verdict::Fail),
        (job::SIGTTIN, false, true, Verdict::Fail),
        (job::SIGTTOU, false, false, Verdict::Signal(job::SIGTTOU)),
        (job::SIGTTOU, true, false, Verdict::Go),
        (job::SIGTTOU, true, true, Verdict::Go),
        (job::SIGTTOU, false, true, Verdict::Fail),
    ];
    for (signal, deaf, orphaned, expected) in verdicts {
        assert_eq!(job::verdict(signal, deaf, orphaned), expected);
    }
}
