//! Channels between two threads: calls, waiting, giving up, death, and hostile peers.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use clustix_pd::channel::{SLOTS, Task, channel_len, mark_gone, mark_revoked, pair};
use clustix_pd::exec::{self, block_on, now_ns, select};
use clustix_pd::region::Mapping;
use clustix_pd::{CallError, Client, Region, Server, rpc, serve};

const WINDOW: usize = 4096;

/// Starts a server's thread with `body`; returns the client and the thread.
fn server(body: impl FnOnce(Server) + Send + 'static) -> (Client, std::thread::JoinHandle<()>) {
    let (tx, rx) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (client, server) = pair(WINDOW).unwrap();
        tx.send(client).unwrap();
        body(server);
    });
    (rx.recv().unwrap(), thread)
}

fn call(client: &Client, label: u32, request: &[u8]) -> Result<(u32, Vec<u8>), CallError> {
    let mut reply = Vec::new();
    let label = block_on(client.call(label, request, &mut reply))?;
    Ok((label, reply))
}

const STOP: u32 = u32::MAX;

/// Echoes until told to stop.
fn echo(server: Server) {
    let stop = AtomicBool::new(false);
    block_on(async {
        while !stop.load(Ordering::Relaxed) {
            let c = server.receive().await;
            stop.store(c.label == STOP, Ordering::Relaxed);
            let (label, bytes) = (c.label, c.request.clone());
            c.reply(label, &bytes);
        }
    });
}

#[test]
fn threads_and_tasks_share_a_client() {
    let (client, thread) = server(echo);
    std::thread::scope(|s| {
        for t in 0..4u32 {
            let client = &client;
            s.spawn(move || {
                let task = |k: u32| -> Task<'_> {
                    Box::pin(async move {
                        for i in 0..200u32 {
                            let q = (t, k, i);
                            let mut reply = Vec::new();
                            let bytes = vec![i as u8; (i as usize * 37) % WINDOW];
                            let l = client.call(i, &bytes, &mut reply).await;
                            assert_eq!((l, &reply), (Ok(i), &bytes), "{q:?}");
                        }
                    })
                };
                exec::run((0..12).map(task));
            });
        }
    });
    assert_eq!(client.wakeups(), 4 * 12 * 200);
    call(&client, STOP, &[]).unwrap();
    thread.join().unwrap();
}

#[test]
fn typed_calls_and_malformed_replies() {
    let (client, thread) = server(|server| {
        block_on(async {
            let c = server.receive().await;
            let q: (u32, String) = postcard::from_bytes(&c.request).unwrap();
            c.reply(0, &postcard::to_stdvec(&(q.1, q.0)).unwrap());
            server.receive().await.reply(0, &[0xff; 20]);
            server.receive().await.reply(0, &vec![0; WINDOW + 1]);
        });
    });
    let r = block_on(rpc::<_, (String, u32)>(&client, &(7u32, "seven")));
    assert_eq!(r, Ok(("seven".to_owned(), 7)));
    let r = block_on(rpc::<_, (String, u32)>(&client, &(7u32, "seven")));
    assert_eq!(r, Err(CallError::Malformed));
    assert_eq!(call(&client, 0, &[]), Err(CallError::TooLarge));
    assert_eq!(call(&client, 0, &vec![0; WINDOW + 1]), Err(CallError::TooLarge));
    thread.join().unwrap();
}

#[test]
fn a_dropped_call_is_gone_and_a_dropped_future_frees_its_slot() {
    let taken = Arc::new(AtomicU32::new(0));
    let dropped = Arc::new(AtomicBool::new(false));
    let (count, go) = (taken.clone(), dropped.clone());
    let (client, thread) = server(move |server| {
        let mut held = Vec::new();
        block_on(async {
            drop(server.receive().await);
            for _ in 0..SLOTS {
                held.push(server.receive().await);
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        while !go.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        for c in held {
            c.reply(0, &[]);
        }
        echo(server);
    });
    assert_eq!(call(&client, 0, &[]), Err(CallError::Gone));
    // As many calls as there are slots are given up while the server holds them.
    let mut futures: Vec<_> = (0..SLOTS)
        .map(|_| {
            let client = client.clone();
            Box::pin(async move {
                let mut reply = Vec::new();
                let _ = client.call(0, b"given up", &mut reply).await;
            })
        })
        .collect();
    block_on(async {
        for f in &mut futures {
            // Polled once: it waits.
            select(f, std::future::ready(())).await;
        }
    });
    while taken.load(Ordering::SeqCst) < SLOTS as u32 {
        std::thread::yield_now();
    }
    drop(futures);
    dropped.store(true, Ordering::SeqCst);
    // Their slots serve again, every one of them.
    std::thread::scope(|s| {
        for i in 0..2 * SLOTS as u32 {
            let client = &client;
            s.spawn(move || assert_eq!(call(client, i, b"x"), Ok((i, b"x".to_vec()))));
        }
    });
    call(&client, STOP, &[]).unwrap();
    thread.join().unwrap();
}

/// A channel's memory with no server: what the kernel and a hostile server see of it.
fn bare() -> (Client, Mapping) {
    let region = Region::anonymous(channel_len(WINDOW)).unwrap();
    let map = || Mapping::new(region.as_fd().unwrap().as_fd(), region.len(), true).unwrap();
    (Client::new(map(), WINDOW).unwrap(), map())
}

const SLOT: usize = 4096;
const REQUEST: u32 = 2;
const TAKEN: u32 = 3;
const REPLY: u32 = 4;

/// Waits for a request; returns its slot's offset.
fn requested(memory: &Mapping) -> usize {
    loop {
        let found = (0..SLOTS)
            .map(|i| SLOT + 64 * i)
            .find(|&at| memory.word32(at).unwrap().load(Ordering::SeqCst) == REQUEST);
        if let Some(at) = found {
            return at;
        }
        std::thread::yield_now();
    }
}

#[test]
fn death_of_the_server_ends_what_it_had_taken_only() {
    let (client, memory) = bare();
    let thread = std::thread::spawn(move || call(&client, 0, b"q"));
    let slot = requested(&memory);
    // Not taken: the request waits for the server's next life.
    mark_gone(&memory);
    assert_eq!(memory.word32(slot).unwrap().load(Ordering::SeqCst), REQUEST);
    memory.word32(slot).unwrap().store(TAKEN, Ordering::SeqCst);
    mark_gone(&memory);
    assert_eq!(thread.join().unwrap(), Err(CallError::Gone));
}

#[test]
fn a_revoked_channel_says_so() {
    let (client, memory) = bare();
    let waiting = client.clone();
    let thread = std::thread::spawn(move || call(&waiting, 0, b"q"));
    while client.wakeups() == 0 {
        std::thread::yield_now();
    }
    mark_revoked(&memory);
    assert_eq!(thread.join().unwrap(), Err(CallError::Gone));
    assert_eq!(call(&client, 0, b"q"), Err(CallError::Revoked));
}

#[test]
fn a_hostile_server_cannot_make_the_client_read_too_much() {
    let (client, memory) = bare();
    for length in [WINDOW as u32 + 1, u32::MAX, 0x8000_0000] {
        let caller = client.clone();
        let thread = std::thread::spawn(move || call(&caller, 0, b"q"));
        let at = requested(&memory);
        memory.word32(at + 12).unwrap().store(length, Ordering::SeqCst);
        memory.word32(at).unwrap().store(REPLY, Ordering::SeqCst);
        exec::wake_all(memory.word32(at).unwrap());
        assert_eq!(thread.join().unwrap(), Err(CallError::TooLarge));
    }
}

/// A client that writes random words over everything but its own honest slot.
#[test]
fn a_hostile_client_spoils_only_its_own_calls() {
    let seed = now_ns();
    eprintln!("seed {seed}");
    let region = Region::anonymous(channel_len(WINDOW)).unwrap();
    let map = || Mapping::new(region.as_fd().unwrap().as_fd(), region.len(), true).unwrap();
    let (hostile, served) = (map(), map());
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let scribbler = std::thread::spawn(move || {
        let mut x = seed | 1;
        while !stop.load(Ordering::Relaxed) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // Header and slots; small values hit the states.
            let at = ((x >> 32) as usize % (SLOT + 64 * SLOTS)) & !3;
            let value = if x & 1 == 0 { (x >> 8) as u32 % 8 } else { (x >> 8) as u32 };
            hostile.word32(at).unwrap().store(value, Ordering::SeqCst);
        }
    });
    // A second channel of an honest client, served by the same server.
    let (honest, server) = pair(WINDOW).unwrap();
    server.adopt_for_test(served, WINDOW).unwrap();
    server.follow_callers();
    let caller = std::thread::spawn(move || {
        for i in 0..2000u32 {
            assert_eq!(call(&honest, i, &i.to_le_bytes()), Ok((i, i.to_le_bytes().to_vec())));
        }
    });
    while !caller.is_finished() {
        if let Some(c) = server.try_receive() {
            assert!(c.request.len() <= WINDOW);
            let (label, bytes) = (c.label, c.request.clone());
            c.reply(label, &bytes);
        }
    }
    done.store(true, Ordering::Relaxed);
    caller.join().unwrap();
    scribbler.join().unwrap();
}

#[test]
fn a_wait_word_is_signalled_by_the_server() {
    let (client, thread) = server(|server| {
        block_on(async {
            let c = server.receive().await;
            let index = u32::from_le_bytes(c.request[..4].try_into().unwrap());
            let channel = c.channel;
            c.reply(0, &[]);
            server.signal(channel, index);
            server.signal(channel, u32::MAX);
        });
    });
    let words: Vec<_> = (0..4096).map(|_| client.wait_word().unwrap()).collect();
    assert!(matches!(client.wait_word(), Err(CallError::Busy)));
    call(&client, 0, &words[4095].index().to_le_bytes()).unwrap();
    block_on(words[4095].signalled());
    assert_eq!(words[0].word().load(Ordering::SeqCst), 0);
    words[4095].arm();
    drop(words);
    client.wait_word().unwrap();
    thread.join().unwrap();
}

/// Not a test of anything but of the reader's patience: `cargo test -p clustix-pd --test channel --
/// --ignored --nocapture cost` says what a call costs between two threads.
#[test]
#[ignore = "prints a figure"]
fn cost_of_a_call_between_two_threads() {
    let (client, thread) = server(|server| {
        let stop = std::cell::Cell::new(false);
        let _ = block_on(select(
            serve(&server, async |c| {
                stop.set(c.label == STOP);
                (0, c.request.clone())
            }),
            std::future::poll_fn(|_| {
                if stop.get() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            }),
        ));
    });
    let mut reply = Vec::new();
    for len in [16, 4096] {
        let bytes = vec![1; len];
        let mut times = Vec::new();
        for _ in 0..5000 {
            let start = Instant::now();
            block_on(client.call(0, &bytes, &mut reply)).unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("call of {len} bytes between two threads: median {:?}", times[2500]);
    }
    let _ = call(&client, STOP, &[]);
    thread.join().unwrap();
}
