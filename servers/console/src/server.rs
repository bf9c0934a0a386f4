//! The server: one discipline step per request, in one transaction.

use crate::discipline::{self, Input, Signal};
use clustix_ccache::cache::Cache;
use clustix_ccache::name::Shard;
use clustix_ccache::set::Class;
use clustix_pd::exec;
use clustix_proto::console::{Reply, Request, Response, Tty, tty};
use clustix_proto::errno::{self, Errno};
use clustix_proto::object::{Attempts, Draft};
use clustix_proto::once::{self, Record};
use clustix_proto::process::{Pid, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

const SIGHUP: Signal = 1;
const SIGCONT: Signal = 18;
const SIGWINCH: Signal = 28;

/// Between two tries to send what could not be sent, ns.
const LATE_NS: u64 = 500_000_000;
/// Most signals owed at a time.
const OWED: usize = 64;
/// Highest terminal number tried for a new one.
const NUMBERS: u32 = 16 * 1024;

/// Where signals go: the process server.
pub trait Signals {
    /// Sends `signal` as the operator. Whether that is done with: who is not there needs no signal.
    fn kill(&self, target: Target, signal: u8) -> impl Future<Output = bool>;
}

/// One node's console server.
pub struct Server<C, S> {
    cache: C,
    signals: S,
    /// Terminals whose signals are being sent, and whether there are more since.
    sending: Mutex<BTreeMap<u32, bool>>,
    /// Terminals that could not be rid of all their signals.
    late: Mutex<BTreeSet<u32>>,
}

/// What a step wants after it is committed.
#[derive(Default)]
struct After {
    reply: Reply,
    signals: Vec<(Target, Signal)>,
}

impl After {
    fn value(value: u64) -> After {
        After { reply: Reply { value, ..Reply::default() }, signals: Vec::new() }
    }
}

fn to_group(pgid: Pid, signals: &[Signal]) -> Vec<(Target, Signal)> {
    if pgid == 0 {
        return Vec::new();
    }
    signals.iter().map(|s| (Target::Group(pgid), *s)).collect()
}

impl<C: Cache, S: Signals> Server<C, S> {
    /// Over this cluster-cache; signals go to `signals`.
    pub fn new(cache: C, signals: S) -> Self {
        let (sending, late) = Default::default();
        Server { cache, signals, sending, late }
    }

    /// Serves one request, which will not be repeated unless that is harmless.
    pub async fn handle(&self, request: Request) -> Response {
        self.serve(None, request).await
    }

    /// Serves one request, whose answer is recorded with its effect.
    pub async fn handle_once(&self, record: Option<&Record>, request: Request) -> Response {
        let tty = request.tty();
        let answer = once::serve(&self.cache, record, self.serve(record, request)).await;
        // Whoever took the step may have died before it sent the signals.
        if let Some(tty) = tty.filter(|_| record.is_some_and(Record::is_in_doubt)) {
            self.send_owed(tty).await;
        }
        answer
    }

    async fn serve(&self, record: Option<&Record>, request: Request) -> Response {
        match request {
            Request::New { winsize, job } => self.create(record, winsize, job).await,
            Request::Input { tty, at, bytes } => {
                self.step(record, tty, |t| {
                    if t.hangup {
                        return Err(errno::EIO);
                    }
                    let known =
                        at.map_or(0, |at| t.typed.saturating_sub(at)).min(bytes.len() as u64);
                    let new = bytes.get(known as usize..).unwrap_or_default();
                    let (taken, signals) = discipline::receive(t, new);
                    if let Some(at) = at {
                        t.typed = t.typed.max(at).saturating_add(taken as u64);
                    }
                    let signals = to_group(t.foreground, &signals);
                    Ok(After { signals, ..After::value(known + taken as u64) })
                })
                .await
            }
            Request::Output { tty, bytes } => {
                self.step(record, tty, |t| {
                    if t.hangup {
                        return Err(errno::EIO);
                    }
                    Ok(After::value(discipline::write(t, &bytes) as u64))
                })
                .await
            }
            Request::Read { tty, max } => {
                self.step(record, tty, |t| {
                    if max == 0 {
                        return Ok(After::default());
                    }
                    let (bytes, eof) = match discipline::read(t, max as usize) {
                        Input::Bytes(bytes) => (bytes, false),
                        Input::End => (Vec::new(), true),
                        Input::Nothing => (Vec::new(), false),
                    };
                    let reply = Reply { value: bytes.len() as u64, bytes, eof };
                    Ok(After { reply, signals: Vec::new() })
                })
                .await
            }
            Request::Taken { tty, upto } => {
                self.step(record, tty, |t| {
                    t.output_taken = t.output_taken.max(upto.min(t.output_end));
                    discipline::resume(t);
                    Ok(After::value(t.output_taken))
                })
                .await
            }
            Request::Attach { tty, job, turn, attached } => {
                self.step(record, tty, |t| {
                    if t.job != job {
                        return Err(errno::ENXIO);
                    }
                    if turn < t.turn {
                        return Err(errno::ESTALE);
                    }
                    t.turn = turn;
                    let kept = t.output_end - t.output.len() as u64;
                    if attached && !t.attached {
                        t.output_taken = kept;
                    }
                    t.attached = attached;
                    discipline::resume(t);
                    Ok(After::value(kept))
                })
                .await
            }
            Request::SetTermios { tty, termios, flush_input } => {
                self.step(record, tty, |t| {
                    if flush_input {
                        discipline::flush(t, true, false);
                    }
                    discipline::set_termios(t, termios.clone());
                    Ok(After::default())
                })
                .await
            }
            Request::Flush { tty, input, output } => {
                self.step(record, tty, |t| {
                    discipline::flush(t, input, output);
                    Ok(After::default())
                })
                .await
            }
            Request::Flow { tty, stop } => {
                self.step(record, tty, |t| {
                    discipline::set_flow(t, stop);
                    Ok(After::default())
                })
                .await
            }
            Request::SetWinsize { tty, winsize } => {
                self.step(record, tty, |t| {
                    let changed = std::mem::replace(&mut t.winsize, winsize) != winsize;
                    let signals =
                        if changed { to_group(t.foreground, &[SIGWINCH]) } else { Vec::new() };
                    Ok(After { signals, ..After::default() })
                })
                .await
            }
            Request::SetForeground { tty, session, pgid } => {
                self.step(record, tty, |t| {
                    if t.session == 0 || t.session != session {
                        return Err(errno::ENOTTY);
                    }
                    t.foreground = pgid;
                    Ok(After::default())
                })
                .await
            }
            Request::SetSession { tty, session } => {
                self.step(record, tty, |t| {
                    if t.hangup {
                        return Err(errno::EIO);
                    }
                    if t.session == session {
                        return Ok(After::default());
                    }
                    if t.session != 0 {
                        return Err(errno::EPERM);
                    }
                    (t.session, t.foreground) = (session, session);
                    Ok(After::default())
                })
                .await
            }
            Request::Release { tty, session } => {
                self.step(record, tty, |t| {
                    if t.session == 0 || t.session != session {
                        return Ok(After::default());
                    }
                    let signals = to_group(t.foreground, &[SIGHUP, SIGCONT]);
                    (t.session, t.foreground) = (0, 0);
                    Ok(After { signals, ..After::default() })
                })
                .await
            }
            Request::Hangup { tty, job } => {
                self.step(record, tty, |t| {
                    if t.job != job {
                        return Err(errno::ENXIO);
                    }
                    t.hangup = true;
                    t.attached = false;
                    t.stopped = false;
                    let mut signals = to_group(t.foreground, &[SIGHUP, SIGCONT]);
                    if t.session != 0 && t.session != t.foreground {
                        signals.extend([SIGHUP, SIGCONT].map(|s| (Target::Process(t.session), s)));
                    }
                    Ok(After { signals, ..After::default() })
                })
                .await
            }
            Request::Remove { tty, job } => self.remove(tty, job).await,
        }
    }

    /// Runs a step on a terminal and keeps what it leaves, with the signals that it owes; then sends them.
    async fn step(
        &self,
        record: Option<&Record>,
        number: u32,
        step: impl Fn(&mut Tty) -> Result<After, Errno>,
    ) -> Response {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::once(&self.cache);
            if let Some(answer) = d.recall(record).await? {
                return answer;
            }
            let old: Tty = d.load(tty(number)).await?.ok_or(errno::ENXIO)?;
            let mut new = old.clone();
            let After { reply, signals } = step(&mut new)?;
            let owes = !signals.is_empty();
            new.owed.extend(signals);
            // More of them only say the same again.
            let surplus = new.owed.len().saturating_sub(OWED);
            new.owed.drain(..surplus);
            new.owed_from += surplus as u64;
            if new != old {
                d.store(tty(number), &new)?;
            }
            if d.commit_once(record, &reply).await? {
                if owes {
                    self.send_owed(number).await;
                }
                return Ok(reply);
            }
            attempts.again().await?;
        }
    }

    /// Sends the signals that a terminal owes, and takes them off it. One that was sent by a server which died
    /// before it could do the second is sent again.
    async fn send_owed(&self, number: u32) {
        if self.sending().entry(number).and_modify(|more| *more = true).or_insert(false) == &true {
            return;
        }
        loop {
            if !self.send_now(number).await {
                self.late.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            }
            let mut sending = self.sending();
            match sending.get_mut(&number) {
                Some(more) if *more => *more = false,
                _ => {
                    sending.remove(&number);
                    return;
                }
            }
        }
    }

    fn sending(&self) -> MutexGuard<'_, BTreeMap<u32, bool>> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task: sends what could not be sent before.
    pub async fn send_late(&self) {
        loop {
            exec::sleep_until(exec::now_ns() + LATE_NS).await;
            let late =
                std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
            for number in late {
                self.send_owed(number).await;
            }
        }
    }

    /// Whether the terminal owes nothing any more.
    async fn send_now(&self, number: u32) -> bool {
        let mut attempts = Attempts::new();
        // Number of the first that this call has not sent.
        let mut next = 0;
        loop {
            let mut d = Draft::repeatable(&self.cache);
            let mut t = match d.load::<Tty>(tty(number)).await {
                Ok(Some(t)) if !t.owed.is_empty() => t,
                Ok(_) => return true,
                Err(_) => return false,
            };
            let mut done = 0;
            for ((target, signal), number) in t.owed.iter().zip(t.owed_from..) {
                if number >= next && !self.signals.kill(*target, *signal).await {
                    break;
                }
                done += 1;
            }
            t.owed.drain(..done);
            t.owed_from += done as u64;
            next = t.owed_from;
            let stored = d.store(tty(number), &t);
            if stored.is_ok() && d.commit().await.is_ok_and(|done| done) {
                return t.owed.is_empty();
            }
            if attempts.again().await.is_err() {
                return false;
            }
        }
    }

    async fn create(&self, record: Option<&Record>, winsize: [u16; 4], job: u64) -> Response {
        let mut number = 0;
        while number < NUMBERS {
            let shard = Shard::of(number.into());
            if self.cache.local_shard(Class::Console, Some(shard)) != shard {
                number += 1;
                continue;
            }
            let mut d = Draft::once(&self.cache);
            if let Some(answer) = d.recall(record).await? {
                return answer;
            }
            if d.load_bytes(tty(number)).await?.is_some() {
                number += 1;
                continue;
            }
            d.store(tty(number), &Tty { job, ..discipline::new_tty(winsize) })?;
            let reply = Reply { value: number.into(), ..Reply::default() };
            // A conflict: another has the number now, which the next look tells.
            if d.commit_once(record, &reply).await? {
                return Ok(reply);
            }
        }
        Err(errno::ENOSPC)
    }

    async fn remove(&self, number: u32, job: u64) -> Response {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            match d.load::<Tty>(tty(number)).await? {
                Some(t) if t.job == job => d.remove(tty(number)),
                _ => return Ok(Reply::default()),
            }
            if d.commit().await? {
                return Ok(Reply::default());
            }
            attempts.again().await?;
        }
    }
}
