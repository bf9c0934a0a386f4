//! From a system call's number to the function that makes it: one line per call.

use crate::call::Call;
use crate::services::Services;
use crate::signatures::SIGNATURES;
use crate::{exec, ids, memory, misc, names, open, poll, process, rw, signal, stat, time, tty};
use clustix_proto::Errno;
use clustix_proto::errno::{EBUSY, EIO, ENOSYS};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes a call. ENOSYS, counted by name, for one that is not there. What only the cluster's state
/// can be the cause of is counted and logged: a program that does not look (stdio takes a failed
/// read for the end of the file) goes on with half its input.
pub async fn dispatch<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
    let result = select(call).await;
    if let Err(e @ (EIO | EBUSY)) = result {
        let name = name(call.nr);
        clustix_pd::metrics::add(&format!("posix_failed_total{{call=\"{name}\"}}"), 1);
        // Ever more seldom: a program that provokes it must not fill the log.
        let count = FAILED.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!("{name} of process {}: {e}; {count} such so far", call.process.pid);
        }
    }
    result
}

/// Calls that failed for the cluster's sake.
static FAILED: AtomicU64 = AtomicU64::new(0);

macro_rules! calls {
    ($($number:literal => $function:path,)*) => {
        async fn select<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
            match call.nr {
                // Boxed, so that the future of one call is not as large as that of the largest.
                $($number => Box::pin($function(call)).await,)*
                other => Err(missing(other)),
            }
        }
        /// Numbers of the calls there are.
        pub const PRESENT: &[u64] = &[$($number),*];
    };
}

calls! {
    0 => rw::sys_read,
    1 => rw::sys_write,
    2 => open::sys_open,
    3 => open::sys_close,
    4 => stat::sys_stat,
    5 => stat::sys_fstat,
    6 => stat::sys_lstat,
    7 => poll::sys_poll,
    8 => rw::sys_lseek,
    16 => tty::sys_ioctl,
    17 => rw::sys_pread64,
    18 => rw::sys_pwrite64,
    19 => rw::sys_readv,
    20 => rw::sys_writev,
    21 => stat::sys_access,
    22 => open::sys_pipe,
    23 => poll::sys_select,
    32 => open::sys_dup,
    33 => open::sys_dup2,
    40 => rw::sys_sendfile,
    72 => open::sys_fcntl,
    74 => rw::sys_fsync,
    75 => rw::sys_fsync,
    76 => names::sys_truncate,
    77 => names::sys_ftruncate,
    79 => stat::sys_getcwd,
    80 => stat::sys_chdir,
    81 => stat::sys_fchdir,
    82 => names::sys_rename,
    83 => names::sys_mkdir,
    84 => names::sys_rmdir,
    85 => open::sys_creat,
    86 => names::sys_link,
    87 => names::sys_unlink,
    88 => names::sys_symlink,
    89 => stat::sys_readlink,
    90 => names::sys_chmod,
    91 => names::sys_fchmod,
    92 => names::sys_chown,
    93 => names::sys_fchown,
    94 => names::sys_lchown,
    95 => open::sys_umask,
    132 => names::sys_utime,
    133 => names::sys_mknod,
    137 => stat::sys_statfs,
    138 => stat::sys_fstatfs,
    162 => rw::sys_sync,
    187 => rw::sys_advise,
    217 => stat::sys_getdents64,
    221 => rw::sys_advise,
    235 => names::sys_utimes,
    257 => open::sys_openat,
    258 => names::sys_mkdirat,
    259 => names::sys_mknodat,
    260 => names::sys_fchownat,
    261 => names::sys_futimesat,
    262 => stat::sys_newfstatat,
    263 => names::sys_unlinkat,
    264 => names::sys_renameat,
    265 => names::sys_linkat,
    266 => names::sys_symlinkat,
    267 => stat::sys_readlinkat,
    268 => names::sys_fchmodat,
    269 => stat::sys_faccessat,
    270 => poll::sys_pselect6,
    271 => poll::sys_ppoll,
    280 => names::sys_utimensat,
    292 => open::sys_dup3,
    293 => open::sys_pipe2,
    295 => rw::sys_preadv,
    296 => rw::sys_pwritev,
    306 => rw::sys_sync,
    316 => names::sys_renameat2,
    332 => stat::sys_statx,
    436 => open::sys_close_range,
    439 => stat::sys_faccessat2,
    9 => memory::sys_mmap,
    10 => memory::sys_mprotect,
    11 => memory::sys_munmap,
    12 => memory::sys_brk,
    13 => signal::sys_rt_sigaction,
    14 => signal::sys_rt_sigprocmask,
    15 => signal::sys_rt_sigreturn,
    25 => memory::sys_mremap,
    26 => memory::sys_msync,
    28 => memory::sys_madvise,
    34 => signal::sys_pause,
    35 => time::sys_nanosleep,
    36 => time::sys_getitimer,
    37 => time::sys_alarm,
    38 => time::sys_setitimer,
    39 => ids::sys_getpid,
    56 => process::sys_clone,
    57 => process::sys_fork,
    58 => process::sys_fork,
    59 => exec::sys_execve,
    60 => process::sys_exit,
    61 => process::sys_wait4,
    62 => signal::sys_kill,
    63 => misc::sys_uname,
    97 => misc::sys_getrlimit,
    98 => time::sys_getrusage,
    99 => misc::sys_sysinfo,
    100 => time::sys_times,
    102 => ids::sys_getuid,
    104 => ids::sys_getgid,
    105 => ids::sys_setuid,
    106 => ids::sys_setgid,
    107 => ids::sys_geteuid,
    108 => ids::sys_getegid,
    109 => ids::sys_setpgid,
    110 => ids::sys_getppid,
    111 => ids::sys_getpgrp,
    112 => ids::sys_setsid,
    113 => ids::sys_setreuid,
    114 => ids::sys_setregid,
    115 => ids::sys_getgroups,
    116 => ids::sys_setgroups,
    117 => ids::sys_setresuid,
    118 => ids::sys_getresuid,
    119 => ids::sys_setresgid,
    120 => ids::sys_getresgid,
    121 => ids::sys_getpgid,
    122 => ids::sys_setfsuid,
    123 => ids::sys_setfsgid,
    124 => ids::sys_getsid,
    127 => signal::sys_rt_sigpending,
    128 => signal::sys_rt_sigtimedwait,
    130 => signal::sys_rt_sigsuspend,
    131 => signal::sys_sigaltstack,
    140 => misc::sys_getpriority,
    141 => misc::sys_setpriority,
    149 => memory::sys_mlock,
    150 => memory::sys_mlock,
    151 => memory::sys_mlock,
    152 => memory::sys_mlock,
    157 => misc::sys_prctl,
    158 => misc::sys_arch_prctl,
    160 => misc::sys_setrlimit,
    186 => ids::sys_getpid,
    200 => signal::sys_tkill,
    202 => misc::sys_futex,
    204 => misc::sys_sched_getaffinity,
    218 => misc::sys_set_tid_address,
    230 => time::sys_clock_nanosleep,
    231 => process::sys_exit,
    234 => signal::sys_tgkill,
    247 => process::sys_waitid,
    273 => misc::sys_set_robust_list,
    302 => misc::sys_prlimit64,
    318 => misc::sys_getrandom,
}

fn name(nr: u64) -> &'static str {
    let name = usize::try_from(nr).ok().and_then(|n| SIGNATURES.get(n)).map_or("", |s| s.name);
    if name.is_empty() { "unknown" } else { name }
}

fn missing(nr: u64) -> Errno {
    let name = name(nr);
    clustix_pd::metrics::add(&format!("posix_enosys_total{{call=\"{name}\"}}"), 1);
    ENOSYS
}
