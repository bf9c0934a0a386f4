//! Pipes and FIFOs: pipe(7) over objects of the cluster-cache.
//!
//! Functions that the personality calls itself. None sleeps: what would sleep answers
//! [`Step::WouldBlock`] with the object and version to wait on. Each step is one transaction over
//! the pipe's object and the chunks it writes; the pipe's version orders all steps.
//!
//! Ends are counted per node, not per descriptor: fork(2) and dup(2) share an open file
//! description, which holds one end; the node closes it with its last descriptor.

use clustix_ccache::cache::{Cache, Version};
use clustix_ccache::name::{Name, SHARDS};
use clustix_ccache::set::Class;
use clustix_pd::exec;
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::process::{Broadcast, Ends, Life, Pipe, Process, name};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes that one step moves.
pub const STEP: usize = Pipe::CAPACITY as usize;

/// A side of a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Bytes come out.
    Read,
    /// Bytes go in.
    Write,
}

/// How a step of a read or write went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// So many bytes were moved; a read of 0 is end-of-file.
    Done(usize),
    /// Nothing can be moved now: wait for this object to change, then try again.
    WouldBlock(Name, Version),
}

/// What poll(2) says of a pipe's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready {
    /// POLLIN: a read would not sleep and moves bytes.
    pub readable: bool,
    /// POLLOUT: a write of up to [`Pipe::ATOMIC`] bytes would not sleep.
    pub writable: bool,
    /// POLLHUP (read end): no write end is open.
    pub hangup: bool,
    /// POLLERR: no read end is open (write end), or bytes were lost with a writer's node (read end).
    pub error: bool,
    /// Bytes that can be read (FIONREAD).
    pub bytes: u64,
    /// What to wait on for a change.
    pub on: (Name, Version),
}

fn ends(p: &mut Pipe, end: End) -> &mut Vec<Ends> {
    match end {
        End::Read => &mut p.readers,
        End::Write => &mut p.writers,
    }
}

fn add(list: &mut Vec<Ends>, node: u8, life: Life) -> Result<(), Errno> {
    if let Some(e) = list.iter_mut().find(|e| (e.node, e.life) == (node, life)) {
        e.count = e.count.checked_add(1).ok_or(errno::ENFILE)?;
        return Ok(());
    }
    // One entry per node, and a few of lives whose loss is not yet known.
    if list.len() >= 24 {
        return Err(errno::ENFILE);
    }
    list.push(Ends { node, life, count: 1 });
    Ok(())
}

/// Bytes that can be added. No chunk may hold bytes of two rounds, so what is left of the head's
/// chunk is not used again before the reader has left it.
fn room(p: &Pipe) -> u64 {
    (p.head / Pipe::CHUNK + Pipe::CHUNKS) * Pipe::CHUNK - p.tail
}

/// An empty pipe starts at a chunk: all its room is in one piece, and no old chunk is read.
fn align(p: &mut Pipe) {
    if p.is_empty() {
        p.tail = p.tail.next_multiple_of(Pipe::CHUNK);
        p.head = p.tail;
    }
}

fn chunk(number: u64, position: u64) -> Name {
    name::pipebuf(number, (position / Pipe::CHUNK % Pipe::CHUNKS) as u32)
}

/// A number that is most likely new. That it is, is settled by the create; no system call is needed
/// that a sandbox might refuse.
fn fresh(node: u8) -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // splitmix64's finalizer.
    let mut x =
        exec::now_ns() ^ (u64::from(node) << 56) ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// pipe(2): a new pipe with one read end and one write end of this node. Its number.
pub async fn create<C: Cache>(cache: &C, life: Life) -> Result<u64, Errno> {
    let node = cache.node();
    let mut p = Pipe { reader_opens: 1, writer_opens: 1, ..Pipe::default() };
    add(&mut p.readers, node, life)?;
    add(&mut p.writers, node, life)?;
    let mut attempts = Attempts::new();
    loop {
        let shard = cache.local_shard(Class::Process, None).0 % SHARDS;
        // 48 bits above the shard's ten; bit 62 marks a FIFO's.
        let number = (fresh(node) & ((1 << 48) - 1)) * u64::from(SHARDS) + u64::from(shard);
        let mut d = Draft::once(cache);
        d.store(name::pipe(number), &p)?;
        if d.commit().await? {
            return Ok(number);
        }
        attempts.again().await?;
    }
}

/// Opens one more end: a FIFO's (it is made if need be), or of /proc/self/fd's pipe. How often the
/// *other* side had been opened, for [`arrived`]; [`THERE`] if it is open now.
pub async fn open<C: Cache>(cache: &C, number: u64, end: End, life: Life) -> Result<u64, Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::once(cache);
        let mut p: Pipe = d.load(name::pipe(number)).await?.unwrap_or_default();
        let (there, others) = match end {
            End::Read => {
                p.reader_opens += 1;
                (!p.writers.is_empty(), p.writer_opens)
            }
            End::Write => {
                if p.writers.is_empty() {
                    p.lost_writer = false;
                }
                p.writer_opens += 1;
                (!p.readers.is_empty(), p.reader_opens)
            }
        };
        add(ends(&mut p, end), cache.node(), life)?;
        d.store(name::pipe(number), &p)?;
        if d.commit().await? {
            // Who waits on the other side goes on now, and may be through before this side looks.
            return Ok(if there { THERE } else { others });
        }
        attempts.again().await?;
    }
}

/// More often than a side is ever opened.
pub const THERE: u64 = u64::MAX;

/// Whether the other side of a FIFO has been opened since [`open`] returned `others`, or is open:
/// `None`; else what to wait on. (open(2) with O_NONBLOCK does not ask: a reader goes on, a writer
/// closes again with ENXIO.)
pub async fn arrived<C: Cache>(
    cache: &C,
    number: u64,
    end: End,
    others: u64,
) -> Result<Option<(Name, Version)>, Errno> {
    let (p, version) = load::<C, Pipe>(cache, name::pipe(number)).await?;
    let p = p.ok_or(errno::EBADF)?;
    let (open, opens) = match end {
        End::Read => (&p.writers, p.writer_opens),
        End::Write => (&p.readers, p.reader_opens),
    };
    let here = !open.is_empty() || opens != others;
    Ok(if here { None } else { Some((name::pipe(number), version)) })
}

/// Takes one end over from an earlier personality of this node: it counts as `life`'s from now on. EBADF: no such
/// personality has one.
pub async fn claim<C: Cache>(cache: &C, number: u64, end: End, life: Life) -> Result<(), Errno> {
    let node = cache.node();
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::once(cache);
        let mut p: Pipe = d.load(name::pipe(number)).await?.ok_or(errno::EBADF)?;
        let list = ends(&mut p, end);
        let earlier = |e: &&mut Ends| {
            e.node == node && e.life.incarnation == life.incarnation && e.life.start < life.start
        };
        // Moved, not added: what is left of that life is lost, and its readers are told so.
        list.iter_mut().find(earlier).ok_or(errno::EBADF)?.count -= 1;
        list.retain(|e| e.count > 0);
        add(list, node, life)?;
        d.store(name::pipe(number), &p)?;
        if d.commit().await? {
            return Ok(());
        }
        attempts.again().await?;
    }
}

/// Closes one of this node's ends. The last end of all takes the pipe and its bytes along.
pub async fn close<C: Cache>(cache: &C, number: u64, end: End, life: Life) -> Result<(), Errno> {
    let of = (cache.node(), life);
    change_ends(cache, number, |p| {
        let list = ends(p, end);
        if let Some(e) = list.iter_mut().find(|e| (e.node, e.life) == of) {
            e.count = e.count.saturating_sub(1);
        }
        list.retain(|e| e.count > 0);
    })
    .await
}

/// Closes the ends of dead nodes and personalities; a lost write end is remembered.
pub(crate) async fn lose<C: Cache>(
    cache: &C,
    number: u64,
    losses: &Broadcast,
) -> Result<(), Errno> {
    change_ends(cache, number, |p| {
        let writers = p.writers.len();
        p.readers.retain(|e| !losses.is_lost(e.node, e.life));
        p.writers.retain(|e| !losses.is_lost(e.node, e.life));
        p.lost_writer |= p.writers.len() < writers;
    })
    .await
}

async fn change_ends<C: Cache>(
    cache: &C,
    number: u64,
    change: impl Fn(&mut Pipe),
) -> Result<(), Errno> {
    let mut attempts = Attempts::new();
    loop {
        // A close that may or may not have happened is not run again: it would close another's end.
        let mut d = Draft::once(cache);
        draft_ends(&mut d, number, &change).await?;
        if d.commit().await? {
            return Ok(());
        }
        attempts.again().await?;
    }
}

/// Changes a pipe that is there; one without ends goes, unless a job keeps it.
async fn draft_ends<C: Cache>(
    d: &mut Draft<'_, C>,
    number: u64,
    change: impl Fn(&mut Pipe),
) -> Result<(), Errno> {
    let Some(old) = d.load::<Pipe>(name::pipe(number)).await? else { return Ok(()) };
    let mut p = old.clone();
    change(&mut p);
    if p == old {
        return Ok(());
    }
    if p.readers.is_empty() && p.writers.is_empty() && !p.of_job {
        let used = p.tail.div_ceil(Pipe::CHUNK).min(Pipe::CHUNKS);
        for i in 0..used {
            let n = name::pipebuf(number, i as u32);
            if d.load_bytes(n).await?.is_some() {
                d.remove(n);
            }
        }
        d.remove(name::pipe(number));
        return Ok(());
    }
    d.store(name::pipe(number), &p)
}

/// write(2), one step. EPIPE: no read end is open (the caller raises SIGPIPE). At most
/// [`Pipe::ATOMIC`] bytes go in as one or not at all; of more, as many as there is room for.
pub async fn write<C: Cache>(cache: &C, number: u64, bytes: &[u8]) -> Result<Step, Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::once(cache);
        let p: Pipe = d.load(name::pipe(number)).await?.ok_or(errno::EPIPE)?;
        match fill(&mut d, number, p, bytes).await? {
            Step::Done(count) if count > 0 => {
                if d.commit().await? {
                    return Ok(Step::Done(count));
                }
            }
            step => return Ok(step),
        }
        attempts.again().await?;
    }
}

/// Puts as much into the pipe as it may take now: what is to be committed. EPIPE: no read end is open.
async fn fill<C: Cache>(
    d: &mut Draft<'_, C>,
    number: u64,
    mut p: Pipe,
    bytes: &[u8],
) -> Result<Step, Errno> {
    if p.readers.is_empty() {
        return Err(errno::EPIPE);
    }
    if bytes.is_empty() {
        return Ok(Step::Done(0));
    }
    align(&mut p);
    let space = usize::try_from(room(&p)).unwrap_or(0);
    let need = if bytes.len() <= Pipe::ATOMIC { bytes.len() } else { 1 };
    if space < need {
        return Ok(Step::WouldBlock(name::pipe(number), d.version(name::pipe(number))));
    }
    let count = bytes.len().min(space);
    let mut rest = bytes.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        let offset = (p.tail % Pipe::CHUNK) as usize;
        let n = chunk(number, p.tail);
        // The chunk is rewritten from its start; what stands before `offset` is this round's.
        let mut data = d.load_bytes(n).await?.unwrap_or_default();
        data.resize(offset, 0);
        let (now, later) = rest.split_at(rest.len().min(Pipe::CHUNK as usize - offset));
        data.extend_from_slice(now);
        d.store_bytes(n, data);
        p.tail += now.len() as u64;
        rest = later;
    }
    p.written += count as u64;
    d.store(name::pipe(number), &p)?;
    Ok(Step::Done(count))
}

/// read(2), one step: at most `max` bytes (and [`STEP`]) are appended to `out`. EIO: bytes were
/// lost with the node of a writer.
pub async fn read<C: Cache>(
    cache: &C,
    number: u64,
    max: usize,
    out: &mut Vec<u8>,
) -> Result<Step, Errno> {
    let start = out.len();
    let mut attempts = Attempts::new();
    loop {
        out.truncate(start);
        let mut d = Draft::once(cache);
        let Some(mut p) = d.load::<Pipe>(name::pipe(number)).await? else {
            return Err(errno::EIO);
        };
        if p.is_empty() {
            return match (p.writers.is_empty(), p.lost_writer) {
                (true, true) => Err(errno::EIO),
                (true, false) => Ok(Step::Done(0)),
                _ => Ok(Step::WouldBlock(name::pipe(number), d.version(name::pipe(number)))),
            };
        }
        if max == 0 {
            return Ok(Step::Done(0));
        }
        let count = p.len().min(max as u64).min(Pipe::CAPACITY);
        copy(cache, number, p.head..p.head + count, out).await?;
        // Chunks that do not fit the pipe's object as it was read: it has changed since.
        let torn = (out.len() - start) as u64 != count;
        p.head += count;
        d.store(name::pipe(number), &p)?;
        if !torn && d.commit().await? {
            return Ok(Step::Done(out.len() - start));
        }
        attempts.again().await?;
    }
}

/// The end that a job holds: it is lost with no node.
const OUTSIDE: Ends =
    Ends { node: Process::NOWHERE, life: Life { incarnation: 0, start: 0 }, count: 1 };

/// A new pipe of a job ([`clustix_proto::job`]), which holds this end; nobody holds the other yet.
pub fn of_job(end: End) -> Pipe {
    let mut p = Pipe { of_job: true, ..Pipe::default() };
    ends(&mut p, end).push(OUTSIDE);
    match end {
        End::Read => p.reader_opens = 1,
        End::Write => p.writer_opens = 1,
    }
    p
}

/// The job gives its end up; the pipe stays, for a program that is started again. Idempotent.
pub async fn leave<C: Cache>(cache: &C, number: u64, end: End) -> Result<(), Errno> {
    change_ends(cache, number, |p| ends(p, end).retain(|e| *e != OUTSIDE)).await
}

/// The pipe and its chunks.
pub const DISOWNED: usize = 1 + Pipe::CHUNKS as usize;

/// There is no job any more: the pipe goes with its last end. At most [`DISOWNED`] objects more in the draft.
/// Idempotent.
pub async fn disown<C: Cache>(d: &mut Draft<'_, C>, number: u64) -> Result<(), Errno> {
    draft_ends(d, number, |p| {
        p.of_job = false;
        p.readers.retain(|e| *e != OUTSIDE);
        p.writers.retain(|e| *e != OUTSIDE);
    })
    .await
}

/// A job's write, one step: the bytes from number `at` on (counted over the pipe's life). Those that stand there
/// already, since an earlier write came true after all, are not written again, but count. EPIPE: no read end is
/// open.
pub async fn put<C: Cache>(cache: &C, number: u64, at: u64, bytes: &[u8]) -> Result<Step, Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::repeatable(cache);
        let p: Pipe = d.load(name::pipe(number)).await?.ok_or(errno::EPIPE)?;
        let known = usize::try_from(p.written.saturating_sub(at)).unwrap_or(usize::MAX);
        let known = known.min(bytes.len());
        let rest = bytes.get(known..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(Step::Done(known));
        }
        match fill(&mut d, number, p, rest).await? {
            // What was there is told first.
            Step::WouldBlock(..) if known > 0 => return Ok(Step::Done(known)),
            Step::WouldBlock(on, version) => return Ok(Step::WouldBlock(on, version)),
            Step::Done(count) => {
                if d.commit().await? {
                    return Ok(Step::Done(known + count));
                }
            }
        }
        attempts.again().await?;
    }
}

/// A job's read, which takes nothing away: at most `max` bytes from number `from` on (counted over
/// the pipe's life), or from the first that is still there, are appended to `out`. With the number of
/// the first. Whether anybody will write more is not looked at.
pub async fn peek<C: Cache>(
    cache: &C,
    number: u64,
    from: u64,
    max: usize,
    out: &mut Vec<u8>,
) -> Result<(u64, Step), Errno> {
    let start = out.len();
    let mut attempts = Attempts::new();
    loop {
        out.truncate(start);
        let (p, version) = load::<C, Pipe>(cache, name::pipe(number)).await?;
        let p = p.ok_or(errno::EIO)?;
        let from = from.clamp(p.read(), p.written);
        let at = p.head + (from - p.read());
        let end = p.tail.min(at + max as u64);
        if at == end {
            return Ok((from, Step::WouldBlock(name::pipe(number), version)));
        }
        copy(cache, number, at..end, out).await?;
        // What is read is not written over before it is taken away.
        let (now, _) = load::<C, Pipe>(cache, name::pipe(number)).await?;
        let whole = out.len() - start == (end - at) as usize;
        if whole && now.is_some_and(|now| now.read() <= from) {
            return Ok((from, Step::Done(out.len() - start)));
        }
        attempts.again().await?;
    }
}

/// Appends what stands at these positions; less, if the pipe is not any more what it was.
async fn copy<C: Cache>(
    cache: &C,
    number: u64,
    positions: std::ops::Range<u64>,
    out: &mut Vec<u8>,
) -> Result<(), Errno> {
    let mut bytes = Vec::new();
    let mut at = positions.start;
    while at < positions.end {
        let offset = (at % Pipe::CHUNK) as usize;
        let here = ((Pipe::CHUNK as usize - offset) as u64).min(positions.end - at) as usize;
        // Not part of the transaction: nobody writes a chunk without the pipe's object, and that
        // must be unchanged.
        cache.get(chunk(number, at), &mut bytes).await?;
        let Some(b) = bytes.get(offset..offset + here) else { return Ok(()) };
        out.extend_from_slice(b);
        at += here as u64;
    }
    Ok(())
}

/// Takes away what a job has taken: all bytes below this number. Idempotent.
pub async fn skip<C: Cache>(cache: &C, number: u64, upto: u64) -> Result<(), Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::repeatable(cache);
        let Some(mut p) = d.load::<Pipe>(name::pipe(number)).await? else { return Ok(()) };
        let more = upto.min(p.written).saturating_sub(p.read());
        if more == 0 {
            return Ok(());
        }
        p.head += more;
        d.store(name::pipe(number), &p)?;
        if d.commit().await? {
            return Ok(());
        }
        attempts.again().await?;
    }
}

/// poll(2) of one end.
pub async fn poll<C: Cache>(cache: &C, number: u64, end: End) -> Result<Ready, Errno> {
    let (p, version) = load::<C, Pipe>(cache, name::pipe(number)).await?;
    let on = (name::pipe(number), version);
    let Some(mut p) = p else {
        return Ok(Ready {
            readable: false,
            writable: false,
            hangup: end == End::Read,
            error: end == End::Write,
            bytes: 0,
            on,
        });
    };
    let bytes = p.len();
    align(&mut p);
    Ok(match end {
        End::Read => Ready {
            readable: bytes > 0,
            writable: false,
            // A FIFO that no writer has opened yet is not hung up.
            hangup: p.writers.is_empty() && p.writer_opens > 0,
            error: p.lost_writer && p.writers.is_empty() && bytes == 0,
            bytes,
            on,
        },
        End::Write => Ready {
            readable: false,
            writable: p.readers.is_empty() || room(&p) >= Pipe::ATOMIC as u64,
            hangup: false,
            error: p.readers.is_empty(),
            bytes,
            on,
        },
    })
}
