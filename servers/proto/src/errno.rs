//! Linux's error numbers (errno(3)), as servers and the personality use them.

use clustix_ccache::cache::CacheError;
use serde::{Deserialize, Serialize};

macro_rules! errnos {
    ($($name:ident = $n:literal, $text:literal;)*) => {
        $(#[doc = $text] pub const $name: Errno = Errno($n);)*
        impl Errno {
            /// Name, as `EPERM`; `E?` for a number that Clustix does not use.
            pub const fn name(self) -> &'static str {
                match self.0 { $($n => stringify!($name),)* _ => "E?" }
            }
            /// What it means, in words.
            pub const fn text(self) -> &'static str {
                match self.0 { $($n => $text,)* _ => "unknown error" }
            }
        }
    };
}

/// A Linux error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub struct Errno(pub i32);

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or directory";
    ESRCH = 3, "no such process";
    EINTR = 4, "interrupted system call";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "argument list too long";
    ENOEXEC = 8, "exec format error";
    EBADF = 9, "bad file descriptor";
    ECHILD = 10, "no child processes";
    EAGAIN = 11, "resource temporarily unavailable";
    ENOMEM = 12, "cannot allocate memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "device or resource busy";
    EEXIST = 17, "file exists";
    EXDEV = 18, "invalid cross-device link";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "too many open files in system";
    EMFILE = 24, "too many open files";
    ENOTTY = 25, "inappropriate ioctl for device";
    ETXTBSY = 26, "text file busy";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no space left on device";
    ESPIPE = 29, "illegal seek";
    EROFS = 30, "read-only file system";
    EMLINK = 31, "too many links";
    EPIPE = 32, "broken pipe";
    EDOM = 33, "numerical argument out of domain";
    ERANGE = 34, "numerical result out of range";
    EDEADLK = 35, "resource deadlock avoided";
    ENAMETOOLONG = 36, "file name too long";
    ENOSYS = 38, "function not implemented";
    ENOTEMPTY = 39, "directory not empty";
    ELOOP = 40, "too many levels of symbolic links";
    ENODATA = 61, "no data available";
    EOVERFLOW = 75, "value too large for defined data type";
    EOPNOTSUPP = 95, "operation not supported";
    ECONNRESET = 104, "connection reset by peer";
    ETIMEDOUT = 110, "connection timed out";
    ESTALE = 116, "stale file handle";
    EUNSETTLED = 4095, "the outcome is not settled; between a server and its clients only: ask again";
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}

impl std::error::Error for Errno {}

impl From<CacheError> for Errno {
    /// [`CacheError::Conflict`] must be retried before it gets here; left over, it is EBUSY.
    fn from(e: CacheError) -> Errno {
        match e {
            CacheError::Conflict => EBUSY,
            CacheError::Denied => EPERM,
            CacheError::Invalid => EINVAL,
            CacheError::NoSpace => ENOSPC,
            CacheError::Busy => EAGAIN,
            CacheError::NoQuorum | CacheError::Unknown | CacheError::Gone => EIO,
        }
    }
}
