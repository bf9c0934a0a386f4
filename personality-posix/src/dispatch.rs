//! From a system call's number to the function that makes it: one line per call.

use crate::call::Call;
use crate::services::Services;
use crate::signatures::SIGNATURES;
use crate::{ids, names, open, poll, rw, stat, tty};
use clustix_proto::Errno;
use clustix_proto::errno::ENOSYS;

macro_rules! calls {
    ($($number:literal => $function:path,)*) => {
        /// Makes a call. ENOSYS, counted by name, for one that is not there.
        pub async fn dispatch<S: Services>(call: &mut Call<'_, S>) -> Result<i64, Errno> {
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
    39 => ids::sys_getpid,
    102 => ids::sys_getuid,
    110 => ids::sys_getppid,
    118 => ids::sys_getresuid,
}

fn missing(nr: u64) -> Errno {
    let name = usize::try_from(nr).ok().and_then(|n| SIGNATURES.get(n)).map_or("", |s| s.name);
    let name = if name.is_empty() { "unknown" } else { name };
    clustix_pd::metrics::add(&format!("posix_enosys_total{{call=\"{name}\"}}"), 1);
    ENOSYS
}
