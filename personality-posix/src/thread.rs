//! The worker thread of one app thread: waits on its window, makes its calls, delivers its signals.

use crate::call::{Call, RESTART, RESTART_NOHAND, step};
use crate::exec::{Command, load};
use crate::lifecycle;
use crate::node::Node;
use crate::services::Services;
use crate::signal::{self, Caught, End};
use crate::standing::{self, Standing};
use crate::state::ProcessContext;
use crate::window::{DATA_LEN, Delivery, MAX_STEPS, Request, Step, at, kind, op};
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a process begins.
pub enum Start {
    /// With a program, in an empty address space.
    Program(Command),
    /// As the child of a fork.
    Child {
        /// Its stack pointer; 0: its parent's.
        stack: u64,
        /// Where its number is written (CLONE_CHILD_SETTID); 0: nowhere.
        tid_at: u64,
    },
    /// As a personality that died has left it.
    Left(Standing),
}

/// Workers that panicked: each is a bug.
pub static PANICS: AtomicU64 = AtomicU64::new(0);

/// Steps kept free in a program for what follows its copies.
const SPARE: usize = 8;

/// Starts the worker of a process that the process server knows already.
pub fn start<S: Services>(
    node: &Arc<Node<S>>,
    mut process: ProcessContext,
    start: Start,
) -> Result<(), Errno> {
    let node = node.clone();
    node.processes().insert(process.pid, process.running.clone());
    let spawned = std::thread::Builder::new().name(format!("pid {}", process.pid)).spawn({
        let node = node.clone();
        move || {
            let lived = catch_unwind(AssertUnwindSafe(|| {
                exec::block_on(async {
                    match live(&node, &mut process, start).await {
                        Err(end) => end,
                        Ok(never) => match never {},
                    }
                })
            }));
            // A fault of ours costs this process, not the others.
            let end = lived.unwrap_or_else(|_| {
                PANICS.fetch_add(1, Ordering::Relaxed);
                clustix_pd::metrics::add("posix_worker_panics_total", 1);
                End::forced(process.pid, "a fault of the personality")
            });
            exec::block_on(lifecycle::finish(&node, &mut process, end.0));
        }
    });
    match spawned {
        Ok(_) => Ok(()),
        Err(_) => Err(EAGAIN),
    }
}

/// There is no value of it: a worker ends only with an [`End`].
enum Never {}

async fn live<S: Services>(
    node: &Arc<Node<S>>,
    process: &mut ProcessContext,
    start: Start,
) -> Result<Never, End> {
    let mut cpu = Affinity::default();
    match start {
        Start::Left(standing) => resume(node, process, standing).await?,
        Start::Program(command) => {
            let hello = hello(node, process).await?;
            cpu.follow(hello.cpu);
            let path = command.path.clone();
            if let Err(e) = load(node, process, command).await {
                lifecycle::say(node, process, &path, e).await;
                // As a shell: 127 if there is no such program, 126 if it cannot be run.
                return Err(End(if e == ENOENT { 127 } else { 126 } << 8));
            }
            leave(node, process, &hello, Outcome::Registers, Vec::new()).await?;
        }
        Start::Child { stack, tid_at } => {
            let hello = hello(node, process).await?;
            cpu.follow(hello.cpu);
            if stack != 0 {
                let set = [step(op::SET_SP, [stack, 0, 0, 0])];
                let set = process.program(&[], &set).await;
                set.map_err(|e| End::forced(process.pid, e))?;
            }
            let mut outs = Vec::new();
            if tid_at != 0 {
                outs.push((tid_at, process.pid.to_le_bytes().to_vec()));
            }
            leave(node, process, &hello, Outcome::Result(Ok(0)), outs).await?;
        }
    }
    loop {
        let r = next(node, process).await?;
        standing::taken(&process.window, process.answered.load(Ordering::Relaxed), &r);
        cpu.follow(r.cpu);
        match r.kind {
            kind::CALL => {
                let mut call = Call::new(node, process, &r);
                let result = crate::dispatch::dispatch(&mut call).await;
                let (keep, outs) = (call.keep_registers, call.take_outs());
                if let Some(status) = process.exiting {
                    return Err(End(status));
                }
                let outcome = if keep { Outcome::Registers } else { Outcome::Result(result) };
                leave(node, process, &r, outcome, outs).await?;
            }
            // Before the call that it is to make again: that one hears of what is due.
            kind::PREEMPTED if process.again.is_some() => {
                let order = process.order(&[], &[step(op::RETURN, [0, 1, 0, 0])]);
                order.map_err(|e| End::forced(process.pid, e))?;
            }
            kind::PREEMPTED => leave(node, process, &r, Outcome::Registers, Vec::new()).await?,
            kind::FAULT => {
                let caught = signal::exception(process, &r)?;
                enter(process, &caught, r.sp, &[]).await?;
                let saved = process.save(node.services.cache()).await;
                saved.map_err(|e| End::forced(process.pid, e))?;
                let order = process.order(&[], &[step(op::RETURN, [0, 1, 0, 0])]);
                order.map_err(|e| End::forced(process.pid, e))?;
            }
            // The copies of the reply failed.
            kind::DONE if r.failed != 0 => {
                leave(node, process, &r, Outcome::Result(Err(EFAULT)), Vec::new()).await?;
            }
            // Only a stub that its app has tampered with says anything else.
            _ => return Err(End::forced(process.pid, "its stub says what no stub does")),
        }
    }
}

/// The first word of a stub that has just started.
async fn hello<S: Services>(
    node: &Arc<Node<S>>,
    process: &mut ProcessContext,
) -> Result<Request, End> {
    let hello = next(node, process).await?;
    if hello.kind != kind::HELLO {
        return Err(End::forced(process.pid, "its stub does not say hello"));
    }
    process.window.word(at::PID).store(process.pid, Ordering::Relaxed);
    Ok(hello)
}

/// Takes up what a personality that died has left.
async fn resume<S: Services>(
    node: &Arc<Node<S>>,
    process: &mut ProcessContext,
    standing: Standing,
) -> Result<(), End> {
    let pid = process.pid;
    // An answer may have been shown, and nobody told.
    exec::wake_all(process.window.word(at::REPLY_WORD));
    process.again = standing::unmade(&process.window);
    // What was pending, and what came meanwhile, stands in the object alone.
    signal::refresh(node, process).await.map_err(|e| End::forced(pid, e))?;
    match standing {
        Standing::Free { answered } => process.answered.store(answered, Ordering::Relaxed),
        Standing::Answered { request } => {
            process.answered.store(request, Ordering::Relaxed);
            let shown = process.window.word(at::REPLY_WORD);
            shown.store(request, Ordering::Release);
            exec::wake_all(shown);
        }
        Standing::Again { answered, nr, until } => {
            process.answered.store(answered, Ordering::Relaxed);
            let Ok(r) = process.next_request().await else { return Err(End(9)) };
            if !matches!(r.kind, kind::CALL | kind::DONE) {
                return Err(End::forced(pid, "its stub is in no call"));
            }
            process.again = Some((nr, until));
            let steps = [step(op::RESTART, [nr, 0, 0, 0]), step(op::RETURN, [0, 1, 0, 0])];
            process.order(&[], &steps).map_err(|e| End::forced(pid, e))?;
        }
    }
    Ok(())
}

/// Waits for the next request while the app runs. Signals that come meanwhile end the process or
/// preempt it.
async fn next<S: Services>(
    node: &Arc<Node<S>>,
    process: &mut ProcessContext,
) -> Result<Request, End> {
    let mut preempted = false;
    loop {
        let running = process.running.clone();
        let seen = running.attention.load(Ordering::Acquire);
        if let death @ 1.. = running.death.load(Ordering::Acquire) {
            return Err(End((death & 0xffff) as i32));
        }
        let due = running.pending.load(Ordering::Acquire) & process.state.effective() != 0;
        if due && !preempted {
            // Only what the object says counts; and what simply ends the process needs no handler.
            let object = signal::refresh(node, process).await;
            let object = object.map_err(|e| End::forced(process.pid, e))?;
            let ready = object.pending & process.state.effective();
            if let Some(signal) = signal::fatal(process, ready) {
                return Err(End(i32::from(signal)));
            }
            if ready != 0 && process.again.is_none() {
                node.services.stubs().preempt(process.stub());
                preempted = true;
            }
        }
        if node.frozen() && !preempted {
            node.services.stubs().preempt(process.stub());
            preempted = true;
        }
        let request = process.next_request();
        let nudged = exec::select(exec::changed(&running.attention, seen), async {
            if preempted {
                std::future::pending::<()>().await;
            }
            node.freezing().await;
        });
        match exec::select(request, nudged).await {
            exec::Either::Left(Ok(r)) => return Ok(r),
            exec::Either::Left(Err(_)) => {
                let death = running.death.load(Ordering::Acquire);
                return Err(End(if death == 0 { 9 } else { (death & 0xffff) as i32 }));
            }
            exec::Either::Right(_) => {}
        }
    }
}

/// What the app finds when it goes on.
enum Outcome {
    /// A call's result.
    Result(Result<i64, Errno>),
    /// Its registers as they are.
    Registers,
}

/// Lets the app go on: copies out what the call filled in, delivers signals, returns.
async fn leave<S: Services>(
    node: &Arc<Node<S>>,
    process: &mut ProcessContext,
    r: &Request,
    mut outcome: Outcome,
    outs: Vec<(u64, Vec<u8>)>,
) -> Result<(), End> {
    let (mut data, mut steps) = (Vec::new(), Vec::new());
    for (to, bytes) in outs {
        let mut done = 0;
        while done < bytes.len() {
            if (data.len() == DATA_LEN || steps.len() >= MAX_STEPS - SPARE)
                && let Err(e) = flush(process, &mut data, &mut steps).await?
            {
                outcome = Outcome::Result(Err(e));
            }
            let n = (bytes.len() - done).min(DATA_LEN - data.len());
            let (offset, to) = (data.len() as u64, to.wrapping_add(done as u64));
            steps.push(step(op::COPY_OUT, [offset, to, n as u64, 0]));
            data.extend_from_slice(&bytes[done..done + n]);
            done += n;
        }
    }
    if node.frozen() {
        if let Err(e) = flush(process, &mut data, &mut steps).await? {
            outcome = Outcome::Result(Err(e));
        }
        let _ = crate::freeze::hold(node, process, None).await;
    }
    if let Outcome::Result(Err(RESTART | RESTART_NOHAND | EPIPE)) = outcome {
        // Perhaps for a signal that this call itself sent: seen now, not when the inbox tells.
        let object = signal::refresh(node, process).await;
        object.map_err(|e| End::forced(process.pid, e))?;
    }
    let mut sp = r.sp;
    while let Some(caught) = signal::next(node, process).await? {
        if let Err(e) = flush(process, &mut data, &mut steps).await? {
            outcome = Outcome::Result(Err(e));
        }
        let before = match std::mem::replace(&mut outcome, Outcome::Registers) {
            Outcome::Registers => Vec::new(),
            Outcome::Result(Err(RESTART))
                if caught.action.flags & signal::SA_RESTART != 0 && r.kind == kind::CALL =>
            {
                vec![step(op::RESTART, [r.nr, 0, 0, 0])]
            }
            Outcome::Result(Err(RESTART | RESTART_NOHAND)) => result(Err(EINTR)),
            Outcome::Result(v) => result(v),
        };
        sp = enter(process, &caught, sp, &before).await?;
        let saved = process.save(node.services.cache()).await;
        saved.map_err(|e| End::forced(process.pid, e))?;
    }
    match outcome {
        Outcome::Registers => steps.push(step(op::RETURN, [0, 1, 0, 0])),
        Outcome::Result(Err(RESTART | RESTART_NOHAND)) if r.kind == kind::CALL => {
            if let Some(mask) = process.state.saved_mask.take() {
                process.state.mask = mask;
                let saved = process.save(node.services.cache()).await;
                saved.map_err(|e| End::forced(process.pid, e))?;
            }
            steps.push(step(op::RESTART, [r.nr, 0, 0, 0]));
            steps.push(step(op::RETURN, [0, 1, 0, 0]));
        }
        Outcome::Result(v) => {
            let v = result(v)[0].a;
            steps.push(step(op::RETURN, [v, 0, 0, 0]));
        }
    }
    process.order(&data, &steps).map_err(|e| End::forced(process.pid, e))
}

fn result(v: Result<i64, Errno>) -> Vec<Step> {
    let v = v.unwrap_or_else(|e| -i64::from(e.0));
    vec![step(op::RESULT, [v as u64, 0, 0, 0])]
}

/// Carries out what has been gathered. The inner error is for the app.
async fn flush(
    process: &mut ProcessContext,
    data: &mut Vec<u8>,
    steps: &mut Vec<Step>,
) -> Result<Result<(), Errno>, End> {
    if steps.is_empty() {
        return Ok(Ok(()));
    }
    let done = process.program(data, steps).await;
    data.clear();
    steps.clear();
    match done {
        Ok(_) => Ok(Ok(())),
        Err(ESRCH) => Err(End((process.running.death.load(Ordering::Acquire) & 0xffff) as i32)),
        Err(_) => Ok(Err(EFAULT)),
    }
}

/// Has the stub enter a handler. Returns the stack pointer then.
async fn enter(
    process: &mut ProcessContext,
    caught: &Caught,
    sp: u64,
    before: &[Step],
) -> Result<u64, End> {
    let d = signal::enter(process, caught, sp);
    let mut steps = before.to_vec();
    steps.push(step(op::DELIVER, [0; 4]));
    let data = bytes_of(&d);
    // A stack that cannot take the frame is SIGSEGV, with nowhere to handle it.
    const SIGSEGV: End = End(11);
    match process.program(&data, &steps).await {
        Ok(_) => {}
        Err(ESRCH) => return Err(End(9)),
        Err(_) => return Err(SIGSEGV),
    }
    // Where the frame is, near enough to tell which stack it is on.
    Ok(if d.switch_to != 0 { d.switch_to - 8 } else { sp.wrapping_sub(128) })
}

fn bytes_of(d: &Delivery) -> Vec<u8> {
    let head = [d.signal, d.handler, d.restorer, d.mask];
    let words = head.iter().chain(&d.stack).chain([&d.switch_to]).chain(&d.info);
    words.flat_map(|w| w.to_le_bytes()).collect()
}

/// Keeps the worker on its app thread's CPU, so that the pair stays on one core.
#[derive(Default)]
struct Affinity(Option<u64>);

impl Affinity {
    fn follow(&mut self, cpu: u64) {
        if self.0 == Some(cpu) {
            return;
        }
        self.0 = Some(cpu);
        let Some(index) =
            usize::try_from(cpu).ok().filter(|c| *c < rustix::thread::CpuSet::MAX_CPU)
        else {
            return;
        };
        let mut set = rustix::thread::CpuSet::new();
        set.set(index);
        // A number the app made up is refused by Linux; the worker then stays where it is.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}
