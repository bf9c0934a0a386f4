//! A system call under way, and how families of them are added.
//!
//! # Adding a family
//! One file per family, `src/<family>.rs`, with one function per call:
//! ```ignore
//! pub async fn sys_chdir<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
//!     let path = call.path(0)?;                    // argument 0, copied from the app once
//!     let dir = vfs::walk(call.cache(), …).await?;
//!     call.process.state.cwd = dir.ino;
//!     call.save().await?;
//!     Ok(0)
//! }
//! ```
//! and one line each in the table of [`crate::dispatch`]. What the stub copies ahead is said by the
//! table in `stub/signatures.rs`; what a call fills in goes out with [`Call::out`].
//!
//! - Input: [`Call::path`], [`Call::bytes_in`], [`Call::struct_in`]; anything else with
//!   [`Call::read_user`] (one more round trip).
//! - Output: [`Call::out`] (by argument) or [`Call::out_at`] (by address); carried out with the
//!   reply, in order; a fault there makes the result EFAULT.
//! - Sleeping: only through [`Call::sleep_on`], which ends with [`RESTART`] when a signal is to be
//!   delivered. Return [`RESTART`] (ERESTARTSYS: again if the handler has SA_RESTART),
//!   [`RESTART_NOHAND`] (again unless a handler ran), or `EINTR` yourself. Keep what the call has done
//!   so far in [`Call::progress`]: it is stored with the blocked call at a freeze.
//! - Everything in the window is the app's: each method copies once and checks; call it once.

use crate::node::Node;
use crate::services::Services;
use crate::standing;
use crate::state::ProcessContext;
use crate::window::{DATA_LEN, FAULTED, MAX_STEPS, Request, Step, at, kind, op};
use clustix_ccache::cache::{Cache, Version, Waited};
use clustix_ccache::name::Name;
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::vfs::PATH_MAX;
use std::sync::atomic::Ordering;

/// ERESTARTSYS: the call was interrupted and is made again if the handler has SA_RESTART, or if
/// there was none. Never reaches an app.
pub const RESTART: Errno = Errno(512);
/// ERESTARTNOHAND: made again only if no handler ran. Never reaches an app.
pub const RESTART_NOHAND: Errno = Errno(514);

/// Most bytes that one call moves from or to the app's memory.
pub const MAX_TRANSFER: usize = 16 << 20;

/// A system call under way. See the module.
pub struct Call<'a, S: Services> {
    /// Its number.
    pub nr: u64,
    /// Its arguments, as the app gave them.
    pub args: [u64; 6],
    /// The app's instruction pointer, behind the syscall instruction.
    pub ip: u64,
    /// The app's stack pointer.
    pub sp: u64,
    /// The node's personality.
    pub node: &'a Node<S>,
    /// The process that calls.
    pub process: &'a mut ProcessContext,
    /// How far a call that sleeps has come (bytes moved, deadline): in its own terms.
    pub progress: [u64; 2],
    /// When it ends at the latest (CLOCK_MONOTONIC, ns), by [`Call::deadline`]; 0: it has none.
    until: u64,
    /// As it was when a personality that died had made this call.
    again: Option<u64>,
    /// The reply leaves the app's registers as they are (rt_sigreturn, execve).
    pub keep_registers: bool,
    copied: [u64; 6],
    /// The data area as it came with the call, once it is needed for something else.
    ahead: Option<Vec<u8>>,
    outs: Vec<(u64, Vec<u8>)>,
}

impl<'a, S: Services> Call<'a, S> {
    /// From a request as it was copied from the window.
    pub fn new(node: &'a Node<S>, process: &'a mut ProcessContext, r: &Request) -> Self {
        let again = process.again.take().filter(|(nr, until)| *nr == r.nr && *until != 0);
        Call {
            until: 0,
            again: again.map(|(_, until)| until),
            nr: r.nr,
            args: r.args,
            ip: r.ip,
            sp: r.sp,
            node,
            process,
            progress: [0; 2],
            keep_registers: false,
            copied: r.copied,
            ahead: None,
            outs: Vec::new(),
        }
    }

    /// The cluster-cache.
    pub fn cache(&self) -> &'a S::Cache {
        self.node.services.cache()
    }

    /// The servers.
    pub fn services(&self) -> &'a S {
        &self.node.services
    }

    /// Writes the process's volatile state back after a change.
    pub async fn save(&self) -> Result<(), Errno> {
        self.process.save(self.cache()).await
    }

    /// Argument `i` as a C int.
    pub fn int(&self, i: usize) -> i32 {
        self.args[i] as i32
    }

    /// The call's deadline, where its arguments say `at` (CLOCK_MONOTONIC, ns): when it is made again over a
    /// personality's death, what they said the first time.
    pub fn deadline(&mut self, at: u64) -> u64 {
        self.until = self.again.unwrap_or(at);
        self.until
    }

    /// What the stub copied for argument `i`.
    fn copied(&self, i: usize) -> Result<Vec<u8>, Errno> {
        let described = self.copied[i];
        if described == FAULTED {
            return Err(EFAULT);
        }
        let (offset, len) = (described as u32 as usize, (described >> 32) as usize);
        if len == PATH_MAX + 1 {
            return Err(ENAMETOOLONG);
        }
        // From here on an app that scribbles in its window gets what it deserves: an error.
        if offset > DATA_LEN || len > DATA_LEN - offset {
            return Err(EFAULT);
        }
        let mut bytes = vec![0; len];
        match &self.ahead {
            Some(ahead) => bytes.copy_from_slice(ahead.get(offset..offset + len).ok_or(EFAULT)?),
            None => {
                if !self.process.window.read(at::DATA + offset, &mut bytes) {
                    return Err(EFAULT);
                }
            }
        }
        Ok(bytes)
    }

    /// Whether argument `i` could not be read when the call was made.
    pub fn faulted(&self, i: usize) -> bool {
        self.copied[i] == FAULTED
    }

    /// Argument `i`, a path: without its NUL, at most `PATH_MAX - 1` bytes, possibly empty. EFAULT,
    /// ENAMETOOLONG.
    pub fn path(&self, i: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = self.copied(i)?;
        if bytes.pop() != Some(0) {
            return Err(EFAULT);
        }
        if bytes.contains(&0) {
            return Err(EFAULT);
        }
        Ok(bytes)
    }

    /// Argument `i`, a structure of at least `N` bytes in; `None` if it is NULL.
    pub fn struct_in<const N: usize>(&self, i: usize) -> Result<Option<[u8; N]>, Errno> {
        if self.args[i] == 0 {
            return Ok(None);
        }
        let bytes = self.copied(i)?;
        bytes.get(..N).and_then(|b| b.try_into().ok()).map(Some).ok_or(EFAULT)
    }

    /// Bytes `from..from + most` of the buffer in argument `i`, fewer if the copy made ahead ends
    /// before (only for `from` 0). Past what was copied ahead this costs a round trip per 64 KiB.
    pub async fn bytes_in(&mut self, i: usize, from: u64, most: usize) -> Result<Vec<u8>, Errno> {
        if from == 0 {
            let mut bytes = self.copied(i)?;
            bytes.truncate(most);
            return Ok(bytes);
        }
        self.read_user(self.args[i].wrapping_add(from), most).await
    }

    /// Everything that the stub copied ahead for argument `i`: a gathered iovec array and what it
    /// refers to.
    pub fn copied_in(&self, i: usize) -> Result<Vec<u8>, Errno> {
        self.copied(i)
    }

    /// Fills in what argument `i` points to, with the reply.
    pub fn out(&mut self, i: usize, bytes: &[u8]) {
        self.out_at(self.args[i], bytes);
    }

    /// Fills in memory at `address`, with the reply.
    pub fn out_at(&mut self, address: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.outs.push((address, bytes.to_vec()));
        }
    }

    /// As [`Call::out_at`], without copying.
    pub fn out_vec(&mut self, address: u64, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.outs.push((address, bytes));
        }
    }

    /// Forgets what [`Call::out`] queued.
    pub fn forget_outs(&mut self) {
        self.outs.clear();
    }

    /// Reads the app's memory now: one round trip per 64 KiB. EFAULT unless all of it can be read.
    pub async fn read_user(&mut self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        if len > MAX_TRANSFER {
            return Err(ENOMEM);
        }
        let mut all = vec![0; len];
        let mut done = 0;
        for chunk in all.chunks_mut(DATA_LEN) {
            let from = address.wrapping_add(done);
            self.program(&[], &[step(op::COPY_IN, [from, 0, chunk.len() as u64, 0])]).await?;
            if !self.process.window.read(at::DATA, chunk) {
                return Err(EFAULT);
            }
            done += chunk.len() as u64;
        }
        Ok(all)
    }

    /// Reads a NUL-terminated string of the app's, without its NUL; ENAMETOOLONG past `max` bytes.
    pub async fn read_string(&mut self, address: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let max = max.min(DATA_LEN);
        let steps = [step(op::STRING_IN, [address, 0, max as u64, 0])];
        let done = self.program(&[], &steps).await?;
        let len = usize::try_from(done[0]).map_err(|_| EFAULT)?;
        if len >= max {
            return Err(EFAULT);
        }
        let mut bytes = vec![0; len];
        if !self.process.window.read(at::DATA, &mut bytes) || bytes.contains(&0) {
            return Err(EFAULT);
        }
        Ok(bytes)
    }

    /// Writes the app's memory now: one round trip per 64 KiB.
    pub async fn write_user(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        for chunk in bytes.chunks(DATA_LEN) {
            let to = address.wrapping_add(done);
            self.program(chunk, &[step(op::COPY_OUT, [0, to, chunk.len() as u64, 0])]).await?;
            done += chunk.len() as u64;
        }
        Ok(())
    }

    /// Has the stub carry out steps now, with `data` at the start of the data area. Returns their
    /// results (hostile numbers) once all are done; the error of the first that failed.
    pub async fn program(&mut self, data: &[u8], steps: &[Step]) -> Result<Vec<i64>, Errno> {
        self.keep_ahead();
        self.process.program(data, steps).await
    }

    /// Saves what was copied ahead before the data area is used for something else.
    fn keep_ahead(&mut self) {
        if self.ahead.is_some() {
            return;
        }
        let end = self
            .copied
            .iter()
            .filter(|c| **c != 0 && **c != FAULTED)
            .map(|c| (*c as u32 as usize).saturating_add((c >> 32) as usize).min(DATA_LEN));
        let mut bytes = vec![0; end.max().unwrap_or(0)];
        let _ = self.process.window.read(at::DATA, &mut bytes);
        self.ahead = Some(bytes);
    }

    /// Whether a signal is to be delivered: a call that could sleep should end instead.
    pub fn signalled(&self) -> bool {
        let running = &self.process.running;
        running.pending.load(Ordering::Acquire) & self.process.state.effective() != 0
            || running.death.load(Ordering::Acquire) != 0
    }

    /// Ends when a signal is to be delivered to this process (or its stub died).
    pub fn interrupted(&self) -> impl Future<Output = ()> + use<S> {
        let running = self.process.running.clone();
        let effective = self.process.state.effective();
        async move {
            loop {
                let seen = running.attention.load(Ordering::Acquire);
                if running.pending.load(Ordering::Acquire) & effective != 0
                    || running.death.load(Ordering::Acquire) != 0
                {
                    return;
                }
                exec::changed(&running.attention, seen).await;
            }
        }
    }

    /// Sleeps until one of `on` has another version than given, or until `deadline`
    /// (`CLOCK_MONOTONIC`, ns); may end early. A signal ends it with [`RESTART`]. At a freeze the call
    /// is stored as data and held here.
    pub async fn sleep_on(
        &mut self,
        on: &[(Name, Version)],
        deadline: Option<u64>,
    ) -> Result<Waited, Errno> {
        standing::asleep(&self.process.window, self.nr, self.progress[0], self.until);
        let slept = self.sleep(on, deadline).await;
        standing::awake(&self.process.window, self.nr);
        slept
    }

    async fn sleep(
        &mut self,
        on: &[(Name, Version)],
        deadline: Option<u64>,
    ) -> Result<Waited, Errno> {
        let interrupted = self.interrupted();
        let cache = self.cache();
        let wait = async {
            if !on.is_empty() {
                return cache.wait(on, deadline).await.map_err(Errno::from);
            }
            match deadline {
                Some(at) => exec::sleep_until(at).await,
                None => std::future::pending().await,
            }
            Ok(Waited::TimedOut)
        };
        match exec::select(interrupted, exec::select(wait, self.node.freezing())).await {
            exec::Either::Left(()) => Err(RESTART),
            exec::Either::Right(exec::Either::Left(waited)) => waited,
            exec::Either::Right(exec::Either::Right(())) => {
                self.hold(on, deadline).await?;
                // Everything may have changed: look again.
                Ok(Waited::Changed)
            }
        }
    }

    /// Stores this call as data and holds the thread until the thaw.
    async fn hold(&mut self, on: &[(Name, Version)], deadline: Option<u64>) -> Result<(), Errno> {
        let file = match crate::freeze::on_descriptor(self.nr) {
            true => self.file(self.int(0)).await.ok().map(|(_, file)| file),
            false => None,
        };
        let blocked = crate::freeze::Blocked {
            nr: self.nr,
            args: self.args,
            progress: self.progress,
            ip: self.ip,
            on: on.to_vec(),
            remaining: deadline.map(|d| d.saturating_sub(exec::now_ns())),
            file,
        };
        crate::freeze::hold(self.node, self.process, Some(blocked)).await
    }

    /// What the call filled in, as chunks that each fit in one program.
    pub(crate) fn take_outs(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.outs)
    }
}

/// A step.
pub fn step(op: u64, [a, b, c, d]: [u64; 4]) -> Step {
    Step { op, a, b, c, d, result: 0 }
}

impl ProcessContext {
    /// Writes a program and rings; does not wait.
    pub fn order(&self, data: &[u8], steps: &[Step]) -> Result<(), Errno> {
        if steps.len() > MAX_STEPS || data.len() > DATA_LEN {
            return Err(E2BIG);
        }
        let mut bytes = Vec::with_capacity(steps.len() * 48);
        for s in steps {
            for w in [s.op, s.a, s.b, s.c, s.d, 0] {
                bytes.extend_from_slice(&w.to_le_bytes());
            }
        }
        let w = &self.window;
        if !w.write(at::DATA, data) || !w.write(at::PROGRAM, &bytes) {
            return Err(EIO);
        }
        w.word(at::STEPS).store(steps.len() as u32, Ordering::Relaxed);
        // The number that the stub waits for is the one that this side last saw; a window in which
        // the app scribbled leaves the app waiting.
        let seq = self.answered.load(Ordering::Relaxed);
        if steps.last().is_some_and(|s| s.op == op::RETURN) {
            standing::answered(w, seq);
        }
        w.word(at::REPLY_WORD).store(seq, Ordering::Release);
        exec::wake_all(w.word(at::REPLY_WORD));
        Ok(())
    }

    /// Waits for the next request, or for the stub's death (ESRCH).
    pub async fn next_request(&self) -> Result<Request, Errno> {
        let seen = self.answered.load(Ordering::Relaxed);
        let running = &self.running;
        let died = async {
            loop {
                let seen = running.attention.load(Ordering::Acquire);
                if running.death.load(Ordering::Acquire) != 0 {
                    return;
                }
                exec::changed(&running.attention, seen).await;
            }
        };
        let word = self.window.word(at::REQUEST_WORD);
        match exec::select(exec::changed(word, seen), died).await {
            exec::Either::Left(seq) => {
                self.answered.store(seq, Ordering::Relaxed);
                let mut bytes = [0; size_of::<Request>()];
                if !self.window.read(at::REQUEST, &mut bytes) {
                    return Err(EIO);
                }
                Ok(parse(&bytes))
            }
            exec::Either::Right(()) => Err(ESRCH),
        }
    }

    /// Has the stub carry out steps that do not end the call. See [`Call::program`].
    pub async fn program(&self, data: &[u8], steps: &[Step]) -> Result<Vec<i64>, Errno> {
        self.order(data, steps)?;
        let done = self.next_request().await?;
        if done.kind != kind::DONE {
            return Err(EIO);
        }
        if done.failed != 0 {
            let number = i32::try_from(done.failed.wrapping_neg()).unwrap_or(EIO.0);
            return Err(Errno(if (1..512).contains(&number) { number } else { EIO.0 }));
        }
        let mut results = vec![0; steps.len()];
        for (i, r) in results.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            let place = at::PROGRAM + i * size_of::<Step>() + std::mem::offset_of!(Step, result);
            if !self.window.read(place, &mut bytes) {
                return Err(EIO);
            }
            *r = i64::from_le_bytes(bytes);
        }
        Ok(results)
    }
}

fn parse(bytes: &[u8; size_of::<Request>()]) -> Request {
    let mut words = bytes.chunks_exact(8).map(|w| {
        let mut b = [0; 8];
        b.copy_from_slice(w);
        u64::from_le_bytes(b)
    });
    let mut next = || words.next().unwrap_or(0);
    Request {
        kind: next(),
        nr: next(),
        args: std::array::from_fn(|_| next()),
        ip: next(),
        sp: next(),
        cpu: next(),
        copied: std::array::from_fn(|_| next()),
        steps: next(),
        failed: next() as i64,
    }
}
