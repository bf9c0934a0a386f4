//! Pipes against pipe(7), and against a plain queue.

mod common;

use clustix_ccache::cache::Cache;
use clustix_pd::exec;
use clustix_process::pipe::{self, End, Step};
use clustix_proto::errno;
use clustix_proto::object::{Draft, load};
use clustix_proto::process::{Pipe, Request, fifo, name};
use common::{Cluster, INCARNATION, LIFE, Node, Random};
use std::collections::VecDeque;

fn run(test: impl AsyncFn(Cluster)) {
    exec::block_on(async { test(Cluster::new().await).await });
}

async fn read(n: &Node, p: u64, max: usize) -> Result<Result<Vec<u8>, ()>, errno::Errno> {
    let mut out = b"before".to_vec();
    Ok(match pipe::read(n, p, max, &mut out).await? {
        Step::Done(count) => {
            assert_eq!(out.len(), 6 + count);
            Ok(out.split_off(6))
        }
        Step::WouldBlock(..) => Err(()),
    })
}

async fn disown(n: &Node, p: u64) {
    let mut d = Draft::repeatable(n);
    pipe::disown(&mut d, p).await.unwrap();
    assert!(d.objects() <= pipe::DISOWNED);
    assert!(d.commit().await.unwrap());
}

#[test]
fn bytes_come_out_as_they_went_in_and_the_end_is_told() {
    run(async |c| {
        let (a, b) = (&c.nodes[0], &c.nodes[1]);
        let p = pipe::create(a, LIFE).await.unwrap();
        assert_eq!(read(a, p, 10).await, Ok(Err(())));
        assert_eq!(pipe::write(a, p, b"hello ").await, Ok(Step::Done(6)));
        assert_eq!(pipe::write(b, p, b"world").await, Ok(Step::Done(5)));
        assert_eq!(pipe::write(a, p, b"").await, Ok(Step::Done(0)));
        assert_eq!(read(b, p, 3).await, Ok(Ok(b"hel".to_vec())));
        assert_eq!(read(b, p, 0).await, Ok(Ok(vec![])));
        assert_eq!(read(a, p, 100).await, Ok(Ok(b"lo world".to_vec())));
        pipe::write(a, p, b"rest").await.unwrap();
        pipe::close(a, p, End::Write, LIFE).await.unwrap();
        assert_eq!(read(a, p, 100).await, Ok(Ok(b"rest".to_vec())));
        assert_eq!(read(a, p, 100).await, Ok(Ok(vec![])));
        pipe::close(a, p, End::Read, LIFE).await.unwrap();
        assert_eq!(c.cache.len(), 1, "nothing is left but init");
        assert_eq!(pipe::write(a, p, b"x").await, Err(errno::EPIPE));
    });
}

#[test]
fn a_jobs_end_reads_without_taking_and_takes_once() {
    run(async |c| {
        let (a, b) = (&c.nodes[0], &c.nodes[1]);
        let number = 1 << 61 | 5;
        let mut d = Draft::repeatable(a);
        d.store(name::pipe(number), &pipe::of_job(End::Read)).unwrap();
        assert!(d.commit().await.unwrap());
        let peek = async |n: &Node, from, max| {
            let mut out = Vec::new();
            let (at, step) = pipe::peek(n, number, from, max, &mut out).await.unwrap();
            let blocks = matches!(step, Step::WouldBlock(..));
            assert_eq!(blocks, out.is_empty(), "{step:?}");
            (at, out)
        };
        assert_eq!(peek(a, 0, 9).await, (0, vec![]));
        pipe::open(a, number, End::Write, LIFE).await.unwrap();
        pipe::write(a, number, b"hello world").await.unwrap();
        for node in [a, b, a] {
            assert_eq!(peek(node, 0, 5).await, (0, b"hello".to_vec()));
            assert_eq!(peek(node, 6, 50).await, (6, b"world".to_vec()));
        }
        pipe::skip(b, number, 6).await.unwrap();
        pipe::skip(a, number, 6).await.unwrap();
        pipe::skip(a, number, 3).await.unwrap();
        assert_eq!(peek(a, 0, 50).await, (6, b"world".to_vec()), "what is gone is passed over");
        assert_eq!(peek(a, 11, 50).await, (11, vec![]));
        // Chunks and rounds: numbers go on where positions are rounded up.
        let mut at = 11;
        let mut kept = b"world".to_vec();
        for round in 0..40u8 {
            let bytes = vec![round; 3000];
            assert_eq!(pipe::write(a, number, &bytes).await, Ok(Step::Done(3000)));
            kept.extend(&bytes);
            at += 3000;
            assert_eq!(peek(b, 0, 99_999).await, (at - kept.len() as u64, kept.clone()));
            if round % 3 == 2 {
                let half = kept.len() as u64 / if round % 2 == 0 { 2 } else { 1 };
                pipe::skip(b, number, at - kept.len() as u64 + half).await.unwrap();
                kept.drain(..half as usize);
            }
        }
        // A lost node takes its end along, and nothing that was written; the job's own stays.
        pipe::skip(a, number, u64::MAX).await.unwrap();
        pipe::write(a, number, b"last").await.unwrap();
        for server in 1..3 {
            let lost = Request::NodeLost { node: 0, incarnation: INCARNATION };
            c.ask(server, lost).await.unwrap();
        }
        let (left, _) = load::<_, Pipe>(b, name::pipe(number)).await.unwrap();
        assert!(left.is_some_and(|p| p.writers.is_empty() && p.readers.len() == 1));
        assert_eq!(peek(b, 0, 50).await, (at, b"last".to_vec()));
        pipe::leave(b, number, End::Read).await.unwrap();
        assert_eq!(peek(b, 0, 50).await, (at, b"last".to_vec()), "it outlives its ends");
        disown(b, number).await;
        disown(b, number).await;
        assert!(pipe::peek(b, number, 0, 1, &mut Vec::new()).await.is_err(), "it is gone");
    });
}

#[test]
fn what_a_job_puts_twice_is_there_once() {
    run(async |c| {
        let (a, b) = (&c.nodes[0], &c.nodes[1]);
        let number = 1 << 61 | 6;
        let mut d = Draft::repeatable(a);
        d.store(name::pipe(number), &pipe::of_job(End::Write)).unwrap();
        assert!(d.commit().await.unwrap());
        assert_eq!(pipe::put(a, number, 0, b"x").await, Err(errno::EPIPE), "nobody reads yet");
        pipe::open(b, number, End::Read, LIFE).await.unwrap();
        assert_eq!(pipe::put(a, number, 0, b"one two").await, Ok(Step::Done(7)));
        assert_eq!(pipe::put(b, number, 4, b"two three").await, Ok(Step::Done(9)));
        assert_eq!(pipe::put(a, number, 4, b"two").await, Ok(Step::Done(3)));
        assert_eq!(read(b, number, 50).await, Ok(Ok(b"one two three".to_vec())));
        // The job's end goes, then the reader's node: what is unread waits for the next reader.
        pipe::put(a, number, 13, b" four").await.unwrap();
        pipe::leave(a, number, End::Write).await.unwrap();
        pipe::close(b, number, End::Read, LIFE).await.unwrap();
        pipe::open(a, number, End::Read, LIFE).await.unwrap();
        assert_eq!(read(a, number, 50).await, Ok(Ok(b" four".to_vec())));
        assert_eq!(read(a, number, 50).await, Ok(Ok(vec![])), "the end");
        disown(a, number).await;
        pipe::close(a, number, End::Read, LIFE).await.unwrap();
        assert_eq!(c.cache.len(), 1, "nothing is left but init");
    });
}

#[test]
fn a_job_puts_each_byte_once_whatever_becomes_of_its_transactions() {
    run(async |c| {
        let a = &c.nodes[0];
        let number = 1 << 61 | 6;
        let mut d = Draft::repeatable(a);
        d.store(name::pipe(number), &pipe::of_job(End::Write)).unwrap();
        assert!(d.commit().await.unwrap());
        pipe::open(a, number, End::Read, LIFE).await.unwrap();
        let all: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let (mut at, mut came) = (0, Vec::new());
        c.faults.unknown.set(50);
        while at < all.len() {
            let some = &all[at..all.len().min(at + 997)];
            if let Ok(Step::Done(n)) = pipe::put(a, number, at as u64, some).await {
                at += n;
            }
            c.faults.unknown.set(0);
            while let Ok(Ok(bytes)) = read(a, number, 4096).await {
                came.extend(bytes);
            }
            c.faults.unknown.set(50);
        }
        assert!(came == all, "{} bytes came of {}", came.len(), all.len());
    });
}

#[test]
fn a_write_without_readers_is_epipe() {
    run(async |c| {
        let a = &c.nodes[0];
        let p = pipe::create(a, LIFE).await.unwrap();
        pipe::close(a, p, End::Read, LIFE).await.unwrap();
        assert_eq!(pipe::write(a, p, b"x").await, Err(errno::EPIPE));
        let ready = pipe::poll(a, p, End::Write).await.unwrap();
        assert!(ready.error && ready.writable);
    });
}

#[test]
fn a_full_pipe_blocks_and_small_writes_stay_whole() {
    run(async |c| {
        let a = &c.nodes[0];
        let p = pipe::create(a, LIFE).await.unwrap();
        assert_eq!(pipe::write(a, p, &[1; 100_000]).await, Ok(Step::Done(65_536)));
        assert!(matches!(pipe::write(a, p, b"x").await, Ok(Step::WouldBlock(..))));
        assert!(!pipe::poll(a, p, End::Write).await.unwrap().writable);
        // Room comes by whole chunks, as Linux's by whole pages.
        read(a, p, 4095).await.unwrap().unwrap();
        assert!(matches!(pipe::write(a, p, &[2; 4096]).await, Ok(Step::WouldBlock(..))));
        read(a, p, 1).await.unwrap().unwrap();
        assert!(pipe::poll(a, p, End::Write).await.unwrap().writable);
        assert_eq!(pipe::write(a, p, &[2; 4000]).await, Ok(Step::Done(4000)));
        assert!(
            matches!(pipe::write(a, p, &[3; 97]).await, Ok(Step::WouldBlock(..))),
            "not in part"
        );
        assert_eq!(pipe::write(a, p, &[3; 5000]).await, Ok(Step::Done(96)), "a long one is");
        let ready = pipe::poll(a, p, End::Read).await.unwrap();
        assert_eq!((ready.bytes, ready.readable), (65_536, true));
        let rest = read(a, p, usize::MAX).await.unwrap().unwrap();
        assert_eq!(rest.len(), 65_536);
        assert_eq!(rest[61_440..], [[2; 4000].as_slice(), &[3; 96]].concat());
    });
}

#[test]
fn what_would_block_names_what_to_wait_for() {
    run(async |c| {
        let (a, b) = (&c.nodes[0], &c.nodes[1]);
        let p = pipe::create(a, LIFE).await.unwrap();
        const TOTAL: usize = 3_000_000;
        let writer = async {
            let mut sent = 0;
            while sent < TOTAL {
                let chunk: Vec<u8> =
                    (sent..TOTAL.min(sent + 50_000)).map(|i| (i % 251) as u8).collect();
                match pipe::write(a, p, &chunk).await.unwrap() {
                    Step::Done(n) => sent += n,
                    Step::WouldBlock(n, v) => drop(a.wait(&[(n, v)], None).await.unwrap()),
                }
            }
            pipe::close(a, p, End::Write, LIFE).await.unwrap();
            std::future::pending::<()>().await;
        };
        let reader = async {
            let mut got = Vec::new();
            loop {
                match pipe::read(b, p, 30_001, &mut got).await.unwrap() {
                    Step::Done(0) => return got,
                    Step::Done(_) => (),
                    Step::WouldBlock(n, v) => drop(b.wait(&[(n, v)], None).await.unwrap()),
                }
            }
        };
        let exec::Either::Right(got) = exec::select(writer, reader).await else { panic!() };
        assert_eq!(got.len(), TOTAL);
        assert!(got.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8));
    });
}

#[test]
fn bytes_lost_with_a_node_are_an_error_never_an_end() {
    run(async |c| {
        let (a, b) = (&c.nodes[0], &c.nodes[2]);
        let p = pipe::create(a, LIFE).await.unwrap();
        pipe::open(b, p, End::Write, LIFE).await.unwrap();
        pipe::write(b, p, b"half").await.unwrap();
        pipe::close(a, p, End::Write, LIFE).await.unwrap();
        let unread = pipe::create(b, LIFE).await.unwrap();
        let read_there = pipe::create(a, LIFE).await.unwrap();
        pipe::open(b, read_there, End::Read, LIFE).await.unwrap();
        pipe::close(a, read_there, End::Read, LIFE).await.unwrap();
        for by in &c.nodes {
            let server = clustix_process::Server::new(by.clone(), INCARNATION + 1);
            let lost = Request::NodeLost { node: 2, incarnation: INCARNATION };
            server.handle(false, lost).await.unwrap();
        }
        assert_eq!(read(a, p, 100).await, Ok(Ok(b"half".to_vec())));
        assert_eq!(read(a, p, 100).await, Err(errno::EIO));
        assert!(pipe::poll(a, p, End::Read).await.unwrap().error);
        assert_eq!(pipe::write(a, read_there, b"x").await, Err(errno::EPIPE));
        assert_eq!(read(a, unread, 1).await, Err(errno::EIO), "the pipe went with its last end");
    });
}

#[test]
fn a_fifo_waits_for_its_other_side() {
    run(async |c| {
        let (a, b) = (&c.nodes[0], &c.nodes[1]);
        let f = fifo(5_000_123);
        let seen = pipe::open(a, f, End::Read, LIFE).await.unwrap();
        assert!(pipe::arrived(a, f, End::Read, seen).await.unwrap().is_some());
        let ready = pipe::poll(a, f, End::Read).await.unwrap();
        assert!(!ready.hangup, "no writer yet is not a hang-up");
        let writer_seen = pipe::open(b, f, End::Write, LIFE).await.unwrap();
        assert_eq!(pipe::arrived(b, f, End::Write, writer_seen).await, Ok(None));
        pipe::write(b, f, b"note").await.unwrap();
        pipe::close(b, f, End::Write, LIFE).await.unwrap();
        // The writer came and went before the reader looked: it has been.
        assert_eq!(pipe::arrived(a, f, End::Read, seen).await, Ok(None));
        assert_eq!(read(a, f, 10).await, Ok(Ok(b"note".to_vec())));
        assert_eq!(read(a, f, 10).await, Ok(Ok(vec![])));
        assert!(pipe::poll(a, f, End::Read).await.unwrap().hangup);
        // One that waited and was through as soon as there was a reader, before that one looked.
        let g = fifo(5_000_124);
        let writer_seen = pipe::open(b, g, End::Write, LIFE).await.unwrap();
        assert!(pipe::arrived(b, g, End::Write, writer_seen).await.unwrap().is_some());
        let seen = pipe::open(a, g, End::Read, LIFE).await.unwrap();
        assert_eq!(pipe::arrived(b, g, End::Write, writer_seen).await, Ok(None));
        pipe::write(b, g, b"note").await.unwrap();
        pipe::close(b, g, End::Write, LIFE).await.unwrap();
        assert_eq!(pipe::arrived(a, g, End::Read, seen).await, Ok(None));
        assert_eq!(read(a, g, 10).await, Ok(Ok(b"note".to_vec())));
    });
}

/// Steps of random sizes from two nodes, with conflicts, against a queue.
#[test]
fn random_steps_agree_with_a_queue() {
    let mut random = Random::seeded();
    run(async |c| {
        let mut r = Random(random.0);
        c.faults.state.set(r.next());
        c.faults.conflict.set(10);
        let p = pipe::create(&c.nodes[0], LIFE).await.unwrap();
        let mut model: VecDeque<u8> = VecDeque::new();
        let mut next = 0u8;
        for _ in 0..3000 {
            let n = &c.nodes[r.below(2) as usize];
            let size = match r.below(4) {
                0 => r.below(10),
                1 => r.below(5000),
                2 => 4096,
                _ => r.below(80_000),
            } as usize;
            if r.below(2) == 0 {
                let bytes: Vec<u8> =
                    (0..size).map(|i| next.wrapping_add((i % 253) as u8)).collect();
                let space = Pipe::CAPACITY as usize - model.len();
                match pipe::write(n, p, &bytes).await.unwrap() {
                    Step::Done(count) => {
                        assert!(count == size || size > Pipe::ATOMIC && count > 0);
                        assert!(count <= space);
                        model.extend(&bytes[..count]);
                    }
                    Step::WouldBlock(..) => {
                        let need = if size <= Pipe::ATOMIC { size } else { 1 };
                        // A chunk that is read in part gives its room back only as a whole.
                        assert!(space < need + Pipe::CHUNK as usize, "{space} {need}");
                    }
                }
                next = next.wrapping_mul(31).wrapping_add(7);
            } else {
                match read(n, p, size).await.unwrap() {
                    Ok(bytes) => {
                        assert_eq!(bytes.len(), size.min(model.len()));
                        let expected: Vec<u8> = model.drain(..bytes.len()).collect();
                        assert_eq!(bytes, expected);
                    }
                    Err(()) => assert!(model.is_empty()),
                }
            }
            assert_eq!(pipe::poll(n, p, End::Read).await.unwrap().bytes, model.len() as u64);
        }
    });
    random.next();
}
