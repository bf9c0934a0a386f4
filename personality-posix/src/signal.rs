//! Signals: what is pending, what becomes of it, and the calls that set actions and masks.

use crate::call::{Call, RESTART_NOHAND};
use crate::fd;
use crate::node::Node;
use crate::services::Services;
use crate::state::{Action, AltStack, ProcessContext, SIGNALS, bit};
use crate::window::{Delivery, Request};
use clustix_pd::exec;
use clustix_proto::Errno;
use clustix_proto::errno::*;
use clustix_proto::process::{self, Pid, Process, SignalInfo, State, Target, name};
use std::sync::atomic::Ordering;

/// Signals whose default action is to ignore them: SIGCHLD, SIGURG, SIGWINCH, SIGCONT (its effect
/// is taken by the process server when it is sent).
pub const IGNORED_BY_DEFAULT: u64 = bit(17) | bit(23) | bit(28) | bit(18);
/// Signals whose default action is to stop: SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const STOPS: u64 = bit(19) | bit(20) | bit(21) | bit(22);
/// SIGKILL and SIGSTOP: never blocked, caught or ignored.
const FIRM: u64 = bit(9) | bit(19);

const SA_NOCLDSTOP: u64 = 1;
const SA_NOCLDWAIT: u64 = 2;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
/// SA_RESTART: calls that the handler interrupted are made again.
pub const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;
const SS_AUTODISARM: u32 = 1 << 31;
const MINSIGSTKSZ: u64 = 2048;

/// A process is to end with this wait status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End(pub i32);

impl End {
    /// The end of a process that cannot go on for no fault of its own, as if killed: said in the log,
    /// for its parent is not told why.
    pub fn forced(pid: Pid, why: impl std::fmt::Display) -> End {
        clustix_pd::metrics::add("posix_forced_ends_total", 1);
        tracing::warn!("process {pid} cannot go on: {why}");
        End(9)
    }
}

/// A handler to be called.
pub struct Caught {
    /// Signal number.
    pub signal: u8,
    /// Its action.
    pub action: Action,
    /// siginfo_t's first 128 bytes.
    pub info: [u64; 16],
}

/// Looks at the process object: what is pending there is what counts. Cheap (a cached read).
pub async fn refresh<S: Services>(
    node: &Node<S>,
    process: &ProcessContext,
) -> Result<Process, Errno> {
    let running = &process.running;
    loop {
        let seen = running.attention.load(Ordering::Acquire);
        let before = running.pending.load(Ordering::Acquire);
        let object: Process =
            fd::load(node.services.cache(), name::process(process.pid)).await?.ok_or(ESRCH)?;
        running.pending.fetch_or(object.pending, Ordering::AcqRel);
        running.pending.fetch_and(!(before & !object.pending), Ordering::AcqRel);
        // The dispatcher adds a bit between two bumps: unchanged means none was lost.
        if running.attention.load(Ordering::Acquire) == seen {
            return Ok(object);
        }
    }
}

async fn take<S: Services>(
    node: &Node<S>,
    process: &ProcessContext,
    signals: u64,
) -> Result<(), Errno> {
    let request = process::Request::Take { pid: process.pid, signals };
    node.services.process(&request).await?;
    process.running.pending.fetch_and(!signals, Ordering::AcqRel);
    Ok(())
}

/// Takes pending signals until one is caught. `Ok(None)`: nothing is left to do. Stops the process
/// and waits while it is stopped.
pub async fn next<S: Services>(
    node: &Node<S>,
    process: &mut ProcessContext,
) -> Result<Option<Caught>, End> {
    let pid = process.pid;
    let unreachable_object = |e: Errno| End::forced(pid, e);
    loop {
        check_death(process)?;
        if process.running.pending.load(Ordering::Acquire) & process.state.effective() == 0 {
            return Ok(None);
        }
        let object = refresh(node, process).await.map_err(unreachable_object)?;
        let ready = object.pending & process.state.effective();
        if ready == 0 {
            continue;
        }
        // From here on something is done that no later personality could take back.
        crate::standing::acts(&process.window);
        let signal = if ready & bit(9) != 0 { 9 } else { ready.trailing_zeros() as u8 + 1 };
        let action = process.state.action(signal);
        match action.handler {
            0 if STOPS & bit(signal) != 0 => {
                stop(node, process, signal).await.map_err(unreachable_object)?;
            }
            0 => return Err(End(i32::from(signal))),
            _ => {
                take(node, process, bit(signal)).await.map_err(unreachable_object)?;
                heard_alarm(process, signal);
                let sent = object.infos.iter().find(|i| i.signal == signal);
                let info = describe(signal, sent);
                return Ok(Some(Caught { signal, action, info }));
            }
        }
    }
}

/// A timer whose signal was taken is not due any more; to be saved with what follows.
fn heard_alarm(process: &mut ProcessContext, signal: u8) {
    const SIGALRM: u8 = 14;
    if signal == SIGALRM {
        process.state.timer.0 = process.running.timer.load(Ordering::Acquire);
    }
}

fn check_death(process: &ProcessContext) -> Result<(), End> {
    match process.running.death.load(Ordering::Acquire) {
        0 => Ok(()),
        status => Err(End((status & 0xffff) as i32)),
    }
}

/// Stops, and returns when SIGCONT or SIGKILL has come.
async fn stop<S: Services>(
    node: &Node<S>,
    process: &mut ProcessContext,
    signal: u8,
) -> Result<(), Errno> {
    let request = process::Request::Stop { pid: process.pid, signal: Some(signal) };
    node.services.process(&request).await?;
    process.running.pending.fetch_and(!bit(signal), Ordering::AcqRel);
    loop {
        let seen = process.running.attention.load(Ordering::Acquire);
        let object = refresh(node, process).await?;
        let killed = object.pending & bit(9) != 0;
        if killed || !matches!(object.state, State::Stopped(_)) || check_death(process).is_err() {
            return Ok(());
        }
        match exec::select(exec::changed(&process.running.attention, seen), node.freezing()).await {
            exec::Either::Left(_) => {}
            exec::Either::Right(()) => crate::freeze::hold(node, process, None).await?,
        }
    }
}

/// siginfo_t as Linux lays it out for signals sent by processes and for SIGCHLD.
fn describe(signal: u8, sent: Option<&SignalInfo>) -> [u64; 16] {
    let mut info = [0; 16];
    info[0] = u64::from(signal);
    if let Some(s) = sent {
        info[1] = u64::from(s.code as u32);
        info[2] = u64::from(s.pid) | u64::from(s.uid) << 32;
        info[3] = u64::from(s.status as u32);
    }
    info
}

/// What a processor exception becomes: the handler, unless it is blocked, ignored or not there.
pub fn exception(process: &ProcessContext, r: &Request) -> Result<Caught, End> {
    let signal = match r.nr {
        4 | 5 | 7 | 8 | 11 => r.nr as u8,
        _ => return Err(End(9)),
    };
    let action = process.state.action(signal);
    if action.handler <= 1 || process.state.mask & bit(signal) != 0 {
        return Err(End(i32::from(signal)));
    }
    let mut info = [0; 16];
    info[0] = u64::from(signal);
    info[1] = u64::from(r.args[0] as u32);
    info[2] = r.args[1];
    Ok(Caught { signal, action, info })
}

/// Applies a caught signal to the process's state; what the stub needs to enter the handler.
pub fn enter(process: &mut ProcessContext, caught: &Caught, sp: u64) -> Delivery {
    let (signal, action) = (caught.signal, caught.action);
    let state = &mut process.state;
    let restored = state.saved_mask.take().unwrap_or(state.mask);
    let stack = state.stack;
    let on_stack = sp.wrapping_sub(stack.sp) < stack.size && stack.flags & SS_DISABLE == 0;
    let switch = action.flags & SA_ONSTACK != 0 && stack.flags & SS_DISABLE == 0 && !on_stack;
    let flags = if on_stack { stack.flags | SS_ONSTACK } else { stack.flags };
    state.mask |= action.mask;
    if action.flags & SA_NODEFER == 0 {
        state.mask |= bit(signal);
    }
    state.mask &= !FIRM;
    if action.flags & SA_RESETHAND != 0 {
        state.set_action(signal, Action::default());
    }
    if switch && stack.flags & SS_AUTODISARM != 0 {
        state.stack = AltStack { sp: 0, flags: SS_DISABLE, size: 0 };
    }
    Delivery {
        signal: u64::from(signal),
        handler: action.handler,
        restorer: if action.flags & SA_RESTORER != 0 { action.restorer } else { 0 },
        mask: restored,
        stack: [stack.sp, u64::from(flags), stack.size],
        switch_to: if switch { stack.sp.wrapping_add(stack.size) } else { 0 },
        info: caught.info,
    }
}

fn number(value: u64) -> Result<u8, Errno> {
    u8::try_from(value).ok().filter(|n| (1..=SIGNALS as u8).contains(n)).ok_or(EINVAL)
}

/// rt_sigaction(2).
pub async fn sys_rt_sigaction<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let signal = number(call.args[0])?;
    if call.args[3] != 8 || (call.args[1] != 0 && FIRM & bit(signal) != 0) {
        return Err(EINVAL);
    }
    let new = call.struct_in::<32>(1)?;
    let old = call.process.state.action(signal);
    if call.args[2] != 0 {
        let mut bytes = [0; 32];
        for (to, w) in
            bytes.chunks_exact_mut(8).zip([old.handler, old.flags, old.restorer, old.mask])
        {
            to.copy_from_slice(&w.to_le_bytes());
        }
        call.out(2, &bytes);
    }
    let Some(new) = new else { return Ok(0) };
    let word = |i: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&new[i * 8..i * 8 + 8]);
        u64::from_le_bytes(b)
    };
    let action =
        Action { handler: word(0), flags: word(1), restorer: word(2), mask: word(3) & !FIRM };
    if action == old {
        return Ok(0);
    }
    let ignored =
        |a: &Action| a.handler == 1 || a.handler == 0 && IGNORED_BY_DEFAULT & bit(signal) != 0;
    // A signal that was ignored while it came must not be seen by a new handler; one that becomes
    // ignored is forgotten.
    if ignored(&old) && call.process.state.mask & bit(signal) == 0 || ignored(&action) {
        let object = refresh(call.node, call.process).await?;
        if object.pending & bit(signal) != 0 {
            take(call.node, call.process, bit(signal)).await?;
        }
    }
    call.process.state.set_action(signal, action);
    call.save().await?;
    const SIGCHLD: u8 = 17;
    if signal == SIGCHLD {
        let policy = |a: &Action| {
            (a.handler == 1 || a.flags & SA_NOCLDWAIT != 0, a.flags & SA_NOCLDSTOP != 0)
        };
        let (autoreap, no_cldstop) = policy(&action);
        if policy(&old) != (autoreap, no_cldstop) {
            let pid = call.process.pid;
            let request = process::Request::ChildPolicy { pid, autoreap, no_cldstop };
            call.services().process(&request).await?;
        }
    }
    Ok(0)
}

/// rt_sigprocmask(2).
pub async fn sys_rt_sigprocmask<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[3] != 8 {
        return Err(EINVAL);
    }
    let new = call.struct_in::<8>(1)?.map(u64::from_le_bytes);
    let old = call.process.state.mask;
    if call.args[2] != 0 {
        call.out(2, &old.to_le_bytes());
    }
    let Some(new) = new else { return Ok(0) };
    let mask = match call.args[0] {
        0 => old | new,
        1 => old & !new,
        2 => new,
        _ => return Err(EINVAL),
    } & !FIRM;
    if mask != old {
        call.process.state.mask = mask;
        call.save().await?;
    }
    Ok(0)
}

/// rt_sigpending(2).
pub async fn sys_rt_sigpending<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[1] > 8 {
        return Err(EINVAL);
    }
    let object = refresh(call.node, call.process).await?;
    let blocked = object.pending & call.process.state.mask;
    call.out(0, &blocked.to_le_bytes()[..call.args[1] as usize]);
    Ok(0)
}

/// rt_sigsuspend(2).
pub async fn sys_rt_sigsuspend<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[1] != 8 {
        return Err(EINVAL);
    }
    let mask = call.struct_in::<8>(0)?.map(u64::from_le_bytes).ok_or(EFAULT)? & !FIRM;
    call.process.state.saved_mask = Some(call.process.state.mask);
    call.process.state.mask = mask;
    loop {
        if call.sleep_on(&[], None).await.is_err() {
            return Err(RESTART_NOHAND);
        }
    }
}

/// pause(2).
pub async fn sys_pause<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    loop {
        if call.sleep_on(&[], None).await.is_err() {
            return Err(RESTART_NOHAND);
        }
    }
}

/// rt_sigtimedwait(2).
pub async fn sys_rt_sigtimedwait<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.args[3] != 8 {
        return Err(EINVAL);
    }
    let set = call.struct_in::<8>(0)?.map(u64::from_le_bytes).ok_or(EFAULT)? & !FIRM;
    let deadline = match call.struct_in::<16>(2)? {
        Some(t) => {
            let ns = crate::time::timespec(&t)?;
            Some(call.deadline(exec::now_ns().saturating_add(ns)))
        }
        None => None,
    };
    loop {
        let object = refresh(call.node, call.process).await?;
        let ready = object.pending & set;
        if ready != 0 {
            let signal = ready.trailing_zeros() as u8 + 1;
            take(call.node, call.process, bit(signal)).await?;
            heard_alarm(call.process, signal);
            call.save().await?;
            if call.args[1] != 0 {
                let sent = object.infos.iter().find(|i| i.signal == signal);
                let bytes: Vec<u8> =
                    describe(signal, sent).iter().flat_map(|w| w.to_le_bytes()).collect();
                call.out(1, &bytes);
            }
            return Ok(i64::from(signal));
        }
        if deadline.is_some_and(|d| exec::now_ns() >= d) {
            return Err(EAGAIN);
        }
        // Blocked signals are waited for too: unblock them for the wait's sake.
        let mask = call.process.state.mask;
        call.process.state.mask = mask & !set;
        call.process.state.saved_mask = Some(mask);
        let slept = call.sleep_on(&[], deadline).await;
        call.process.state.saved_mask = None;
        call.process.state.mask = mask;
        if slept.is_err() && call.signalled() {
            return Err(EINTR);
        }
    }
}

/// rt_sigreturn(2): the stub has taken the registers from the app's frame.
pub async fn sys_rt_sigreturn<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    call.keep_registers = true;
    if call.faulted(0) {
        // As a bad frame in Linux: SIGSEGV, with no way to handle it here.
        call.process.exiting = Some(11);
        return Ok(0);
    }
    let [mask, sp, flags, size, ..] = call.args;
    let state = &mut call.process.state;
    state.mask = mask & !FIRM;
    let flags = flags as u32 & !SS_ONSTACK;
    if flags & !(SS_DISABLE | SS_AUTODISARM) == 0 {
        state.stack = AltStack { sp, flags, size };
    }
    call.save().await?;
    Ok(0)
}

/// sigaltstack(2).
pub async fn sys_sigaltstack<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let new = call.struct_in::<24>(0)?;
    let old = call.process.state.stack;
    let on_stack = old.flags & SS_DISABLE == 0 && call.sp.wrapping_sub(old.sp) < old.size;
    if call.args[1] != 0 {
        let flags = old.flags | if on_stack { SS_ONSTACK } else { 0 };
        let bytes =
            crate::layouts::Bytes::default().u64(old.sp).u64(u64::from(flags)).u64(old.size);
        call.out(1, &bytes.0);
    }
    let Some(new) = new else { return Ok(0) };
    if on_stack {
        return Err(EPERM);
    }
    let word = |i: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&new[i * 8..i * 8 + 8]);
        u64::from_le_bytes(b)
    };
    let (sp, flags, size) = (word(0), word(1) as u32 & !SS_ONSTACK, word(2));
    call.process.state.stack = match flags {
        f if f & SS_DISABLE != 0 => AltStack { sp: 0, flags: SS_DISABLE, size: 0 },
        0 | SS_AUTODISARM if size < MINSIGSTKSZ => return Err(ENOMEM),
        0 | SS_AUTODISARM => AltStack { sp, flags, size },
        _ => return Err(EINVAL),
    };
    call.save().await?;
    Ok(0)
}

async fn send<S: Services>(
    call: &mut Call<'_, S>,
    target: Target,
    signal: u64,
) -> Result<i64, Errno> {
    let signal = u8::try_from(signal).ok().filter(|s| *s <= SIGNALS as u8).ok_or(EINVAL)?;
    let sender = call.process.pid;
    call.services().process(&process::Request::Kill { sender, target, signal }).await?;
    // One to oneself is delivered before the call returns.
    refresh(call.node, call.process).await?;
    Ok(0)
}

/// kill(2).
pub async fn sys_kill<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let target = match call.int(0) {
        0 => {
            let own = crate::ids::own(call).await?;
            Target::Group(own.pgid)
        }
        -1 => Target::All,
        pid if pid > 0 => Target::Process(pid as u32),
        i32::MIN => return Err(ESRCH),
        group => Target::Group(-group as u32),
    };
    send(call, target, call.args[1]).await
}

/// tkill(2): a process is its only thread.
pub async fn sys_tkill<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let pid = u32::try_from(call.int(0)).ok().filter(|p| *p > 0).ok_or(EINVAL)?;
    send(call, Target::Process(pid), call.args[1]).await
}

/// tgkill(2).
pub async fn sys_tgkill<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    if call.int(0) != call.int(1) {
        return Err(ESRCH);
    }
    let pid = u32::try_from(call.int(1)).ok().filter(|p| *p > 0).ok_or(EINVAL)?;
    send(call, Target::Process(pid), call.args[2]).await
}

/// The first of the signals ready that ends the process without asking it.
pub fn fatal(process: &ProcessContext, ready: u64) -> Option<u8> {
    (1..=SIGNALS as u8).find(|s| {
        ready & bit(*s) != 0
            && (*s == 9 || process.state.action(*s).handler == 0 && STOPS & bit(*s) == 0)
    })
}
