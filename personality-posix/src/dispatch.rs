//! From a system call's number to the function that makes it: one line per call.

use crate::call::Call;
use crate::services::Services;
use crate::signatures::SIGNATURES;
use crate::ids;
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
