//! The seccomp sandbox of every role, from one table.
//!
//! A system call that is not in a role's list ends the process (SIGSYS), which its supervisor is told
//! as any other death. Two filters are stacked, and the stricter verdict counts: one refuses with
//! an error what libraries try and can do without ([`SOFT`]), the other ends the process at
//! everything that is not allowed.
//!
//! Where it matters the arguments are checked too: no memory becomes executable, no process but
//! only threads are made, and a server sends and receives on its kernel socket alone and writes to
//! its log alone.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use thiserror::Error;

use crate::boot::KERNEL_FD;

/// Why the sandbox could not be entered.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The host refused.
    #[error("the host refused: {0}")]
    Host(#[from] std::io::Error),
    /// A filter cannot be made of the table, or not be installed.
    #[error("the filter cannot be installed: {0}")]
    Filter(String),
}

/// What an allowed system call's arguments must be.
#[derive(Clone, Copy)]
enum Check {
    /// Anything.
    Any,
    /// Argument n is this number (the low 32 bits count, as for descriptors and commands).
    Is(u8, u64),
    /// Argument n has all these bits.
    Has(u8, u64),
    /// Argument n has none of these bits.
    Without(u8, u64),
}

use Check::{Any, Has, Is, Without};

type Row = (c_long, Check);

const EXEC: u64 = libc::PROT_EXEC as u64;
const LOG_FD: u64 = 2;
const SOCKET: u64 = KERNEL_FD as u64;

/// What every domain needs: time, memory, threads, futexes, the kernel socket, the log.
const COMMON: &[Row] = &[
    (libc::SYS_futex, Any),
    (libc::SYS_futex_waitv, Any),
    (libc::SYS_mmap, Without(2, EXEC)),
    (libc::SYS_mprotect, Without(2, EXEC)),
    (libc::SYS_munmap, Any),
    (libc::SYS_mremap, Any),
    (libc::SYS_madvise, Any),
    (libc::SYS_brk, Any),
    (libc::SYS_clock_gettime, Any),
    (libc::SYS_clock_getres, Any),
    (libc::SYS_clock_nanosleep, Any),
    (libc::SYS_nanosleep, Any),
    (libc::SYS_gettimeofday, Any),
    (libc::SYS_time, Any),
    (libc::SYS_rt_sigaction, Any),
    (libc::SYS_rt_sigprocmask, Any),
    (libc::SYS_rt_sigreturn, Any),
    (libc::SYS_sigaltstack, Any),
    (libc::SYS_restart_syscall, Any),
    (libc::SYS_sched_yield, Any),
    (libc::SYS_sched_getaffinity, Any),
    (libc::SYS_getcpu, Any),
    (libc::SYS_getrandom, Any),
    (libc::SYS_getpid, Any),
    (libc::SYS_gettid, Any),
    (libc::SYS_tgkill, Any),
    (libc::SYS_exit, Any),
    (libc::SYS_exit_group, Any),
    (libc::SYS_set_robust_list, Any),
    (libc::SYS_rseq, Any),
    (libc::SYS_membarrier, Any),
    // Threads, never processes. What clone3 is asked cannot be looked at, so it is refused.
    (libc::SYS_clone, Has(0, libc::CLONE_THREAD as u64)),
    // "Is it a terminal?"
    (libc::SYS_ioctl, Is(1, libc::TCGETS)),
    (libc::SYS_prctl, Is(0, libc::PR_SET_NAME as u64)),
    (libc::SYS_prctl, Is(0, libc::PR_SET_VMA as u64)),
    (libc::SYS_recvmsg, Is(0, SOCKET)),
    (libc::SYS_sendmsg, Is(0, SOCKET)),
    (libc::SYS_poll, Any),
    (libc::SYS_ppoll, Any),
    (libc::SYS_write, Is(0, LOG_FD)),
    (libc::SYS_writev, Is(0, LOG_FD)),
    // std asks whether a descriptor is open before it closes it, in builds with debug assertions.
    (libc::SYS_fcntl, Is(1, libc::F_GETFD as u64)),
    // What came over the kernel socket is closed once it is mapped.
    (libc::SYS_close, Any),
];

/// The threads of servers, ccache and the personality move to the processor of whom they serve: a thread
/// itself (0), since Linux would let it move any of this user's.
const AFFINITY: &[Row] = &[(libc::SYS_sched_setaffinity, Is(0, 0))];

/// ccache's thread may become real-time, itself (0) alone.
const URGENCY: &[Row] = &[(libc::SYS_sched_setscheduler, Is(0, 0))];

/// ccache: its fabric's Unix sockets, its own timers, its arena's memory, its peers' deaths.
const CCACHE: &[Row] = &[
    (libc::SYS_socket, Is(0, libc::AF_UNIX as u64)),
    (libc::SYS_connect, Any),
    (libc::SYS_accept4, Any),
    (libc::SYS_accept, Any),
    (libc::SYS_listen, Any),
    (libc::SYS_recvmsg, Any),
    (libc::SYS_sendmsg, Any),
    (libc::SYS_recvfrom, Any),
    (libc::SYS_sendto, Any),
    (libc::SYS_read, Any),
    (libc::SYS_write, Any),
    (libc::SYS_shutdown, Any),
    (libc::SYS_getsockopt, Any),
    (libc::SYS_setsockopt, Any),
    (libc::SYS_getsockname, Any),
    (libc::SYS_getpeername, Any),
    (libc::SYS_fcntl, Any),
    (libc::SYS_ioctl, Is(1, libc::FIONBIO)),
    (libc::SYS_epoll_create1, Any),
    (libc::SYS_epoll_ctl, Any),
    (libc::SYS_epoll_wait, Any),
    (libc::SYS_epoll_pwait, Any),
    (libc::SYS_pidfd_open, Any),
    (libc::SYS_pidfd_send_signal, Any),
    (libc::SYS_ftruncate, Any),
    (libc::SYS_fallocate, Any),
    (libc::SYS_fstat, Any),
    (libc::SYS_memfd_create, Any),
    (libc::SYS_dup, Any),
];

/// ccache, over an RDMA device: verbs that are not done in its own memory.
const VERBS: &[Row] = &[
    // RDMA_VERBS_IOCTL (rdma/rdma_user_ioctl_cmds.h).
    (libc::SYS_ioctl, Is(1, 0xc018_1b01)),
];

/// member and control: tokio over AF_UNIX sockets. control answers its clients only, but binds
/// nothing: its socket was bound before it started.
const TOKIO: &[Row] = &[
    (libc::SYS_epoll_create1, Any),
    (libc::SYS_epoll_ctl, Any),
    (libc::SYS_epoll_wait, Any),
    (libc::SYS_epoll_pwait, Any),
    (libc::SYS_epoll_pwait2, Any),
    (libc::SYS_eventfd2, Any),
    (libc::SYS_timerfd_create, Any),
    (libc::SYS_timerfd_settime, Any),
    (libc::SYS_socket, Is(0, libc::AF_UNIX as u64)),
    (libc::SYS_socketpair, Is(0, libc::AF_UNIX as u64)),
    (libc::SYS_accept4, Any),
    (libc::SYS_connect, Any),
    (libc::SYS_read, Any),
    (libc::SYS_write, Any),
    (libc::SYS_readv, Any),
    (libc::SYS_writev, Any),
    (libc::SYS_recvfrom, Any),
    (libc::SYS_sendto, Any),
    (libc::SYS_recvmsg, Any),
    (libc::SYS_sendmsg, Any),
    (libc::SYS_shutdown, Any),
    (libc::SYS_getsockopt, Any),
    (libc::SYS_setsockopt, Any),
    (libc::SYS_getsockname, Any),
    (libc::SYS_getpeername, Any),
    (libc::SYS_ioctl, Is(1, libc::FIONBIO)),
    (libc::SYS_fcntl, Any),
];

/// member, in a cluster of several machines.
const TCP: &[Row] = &[
    (libc::SYS_socket, Is(0, libc::AF_INET as u64)),
    (libc::SYS_socket, Is(0, libc::AF_INET6 as u64)),
];

/// Refused with ENOSYS instead of death: libraries try these and go on without. (glibc falls back
/// from clone3 to clone, whose flags can be checked.)
const SOFT: &[c_long] = &[libc::SYS_clone3];

/// The same for membership, whose raft library looks for the local time zone when it writes a time
/// to the log, and takes UTC when there is none.
const SOFT_MEMBER: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_open,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_access,
];

/// The table: role → what it may do beyond [`COMMON`], and whether it keeps descriptors other than
/// its kernel socket and its log. A role that is not here is a server.
const ROLES: &[(&str, &[&[Row]], bool)] = &[
    ("ccache", &[AFFINITY, URGENCY, CCACHE], true),
    ("ccache-verbs", &[AFFINITY, URGENCY, CCACHE, VERBS], true),
    ("member", &[TOKIO], true),
    ("member-tcp", &[TOKIO, TCP], true),
    ("control", &[TOKIO], true),
    ("posix", &[AFFINITY], false),
];

const SERVER: (&[&[Row]], bool) = (&[AFFINITY], false);

/// Enters the sandbox of `role`, with all threads of the process. With `trace`, a forbidden system
/// call is named on descriptor 2 before the process dies.
pub fn enter(role: &str, trace: bool) -> Result<(), SandboxError> {
    let (lists, keeps_descriptors) = ROLES
        .iter()
        .find(|(name, ..)| *name == role)
        .map_or(SERVER, |(_, lists, keeps)| (*lists, *keeps));
    // SAFETY: closes descriptors that nothing in a domain uses: the standard input and output, and
    // in a server everything behind the kernel socket (the boot closed what it mapped, and a server
    // is granted no host descriptor).
    unsafe {
        libc::close(0);
        libc::close(1);
        if !keeps_descriptors {
            libc::syscall(libc::SYS_close_range, KERNEL_FD as u32 + 1, u32::MAX, 0u32);
        }
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(std::io::Error::from)?;
    // The first reading of the clock looks for the vDSO, in ways that need more than the rest.
    let _ = crate::exec::now_ns();
    crate::metrics::prepare();
    if trace {
        trace_violations();
    }
    let soft = if role.starts_with("member") { SOFT_MEMBER } else { SOFT };
    for program in compile(lists, soft, trace)? {
        apply_filter_all_threads(&program).map_err(|e| SandboxError::Filter(e.to_string()))?;
    }
    Ok(())
}

/// The two filters, in the order of their installation: after the second, none could follow.
fn compile(
    lists: &[&[Row]],
    refused: &[c_long],
    trace: bool,
) -> Result<[BpfProgram; 2], SandboxError> {
    let mut allowed: BTreeMap<c_long, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for &(number, check) in std::iter::once(COMMON).chain(lists.iter().copied()).flatten() {
        let rules = allowed.entry(number).or_insert_with(|| Some(Vec::new()));
        match (condition(check)?, rules) {
            // An unconditional row overrules the others of its number.
            (None, rules) => *rules = None,
            (Some(rule), Some(rules)) => rules.push(rule),
            (Some(_), None) => {}
        }
    }
    // Of two filters' verdicts the stricter counts, so what is refused softly is allowed here.
    allowed.extend(refused.iter().map(|&n| (n, None)));
    let allowed = allowed.into_iter().map(|(n, rules)| (n, rules.unwrap_or_default())).collect();
    let violation = if trace { SeccompAction::Trap } else { SeccompAction::KillProcess };
    let strict = program(allowed, violation, SeccompAction::Allow)?;
    let soft = refused.iter().map(|&n| (n, Vec::new())).collect();
    let soft = program(soft, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    Ok([soft, strict])
}

fn program(
    rules: BTreeMap<c_long, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SandboxError> {
    let filter = |e: seccompiler::BackendError| SandboxError::Filter(e.to_string());
    SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)
        .map_err(filter)?
        .try_into()
        .map_err(filter)
}

fn condition(check: Check) -> Result<Option<SeccompRule>, SandboxError> {
    let filter = |e: seccompiler::BackendError| SandboxError::Filter(e.to_string());
    let (argument, width, operator, value) = match check {
        Any => return Ok(None),
        Is(n, v) => (n, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, v),
        Has(n, v) => (n, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(v), v),
        Without(n, v) => (n, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(v), 0),
    };
    let condition = SeccompCondition::new(argument, width, operator, value).map_err(filter)?;
    Ok(Some(SeccompRule::new(vec![condition]).map_err(filter)?))
}

/// Lets SIGSYS say which system call it was, and with what first argument.
fn trace_violations() {
    extern "C" fn on_sigsys(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        fn hex(into: &mut [u8], mut n: u64) {
            for digit in into.iter_mut().rev() {
                *digit = b"0123456789abcdef"[(n & 15) as usize];
                n >>= 4;
            }
        }
        // SAFETY: the host gives a valid context to an SA_SIGINFO handler; write, tgkill and _exit
        // are async-signal-safe, and all are allowed.
        unsafe {
            let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let mut line = *b"sandbox: forbidden system call 0x... (0x................)\n";
            hex(&mut line[33..36], registers[libc::REG_RAX as usize] as u64);
            hex(&mut line[40..56], registers[libc::REG_RDI as usize] as u64);
            libc::write(2, line.as_ptr().cast(), line.len());
            libc::signal(libc::SIGSYS, libc::SIG_DFL);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGSYS);
            libc::_exit(128 + libc::SIGSYS)
        }
    }
    // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigsys as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_compiles() {
        for (role, lists, _) in ROLES {
            for trace in [false, true] {
                compile(lists, SOFT_MEMBER, trace).unwrap_or_else(|e| panic!("{role}: {e}"));
            }
        }
        compile(SERVER.0, SOFT, false).unwrap();
    }
}
