//! Fault points by name: where a domain ends itself, if it was told to. They are there with the feature `faults`
//! only, in a program that is built for tests; without it nothing of this costs anything.
//!
//! A point's name is `ROLE.OPERATION.STAGE`, as `vfs.Rename.inside`: an operation is a variant of the server's
//! request, a stage one of its transaction: `before` it is handed to ccache, `inside`, when it has been and the
//! answer has not been looked at, and `after` that, before the reply.
//!
//! It is armed from outside: the signal SIGUSR2 with the name's [`hash`] as its value (sigqueue(3)). The domain
//! ends, with status [`ENDED`], the next time it comes there. The one started in its place is not armed.

use std::fmt::Debug;

/// Status of a domain that ended itself at a fault point.
pub const ENDED: i32 = 86;

/// The signal's value that arms the point of this name: FNV-1a, without its highest bit.
pub fn hash(name: &str) -> i32 {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash & 0x7fff_ffff) as i32
}

/// From now on this domain can be told where to end.
pub(crate) fn listen(role: &str) {
    #[cfg(feature = "faults")]
    on::listen(role);
    #[cfg(not(feature = "faults"))]
    let _ = role;
}

/// What a request asks for, for [`during`].
#[derive(Debug)]
pub struct Operation(#[cfg(feature = "faults")] String);

impl Operation {
    /// By the variant of the request.
    pub fn of(request: &impl Debug) -> Operation {
        #[cfg(feature = "faults")]
        {
            let shown = format!("{request:?}");
            let end = shown.find(|c: char| !c.is_alphanumeric()).unwrap_or(shown.len());
            Operation(shown[..end].to_owned())
        }
        #[cfg(not(feature = "faults"))]
        {
            let _ = request;
            Operation()
        }
    }
}

/// Does `work`, of that operation.
pub async fn during<T>(operation: Operation, work: impl Future<Output = T>) -> T {
    #[cfg(feature = "faults")]
    {
        on::during(&operation.0, work).await
    }
    #[cfg(not(feature = "faults"))]
    {
        let Operation() = operation;
        work.await
    }
}

/// Carries out a transaction of the operation under way, with its three points.
pub async fn around<T>(transaction: impl Future<Output = T>) -> T {
    #[cfg(feature = "faults")]
    {
        on::around(transaction).await
    }
    #[cfg(not(feature = "faults"))]
    {
        transaction.await
    }
}

#[cfg(feature = "faults")]
mod on {
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI32, Ordering};

    static ROLE: OnceLock<String> = OnceLock::new();
    /// Of which name; 0: of none.
    static ARMED: AtomicI32 = AtomicI32::new(0);

    thread_local! {
        /// Of the task that is polled.
        static OPERATION: RefCell<String> = const { RefCell::new(String::new()) };
    }

    extern "C" fn arm(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel gives a handler that was installed with SA_SIGINFO a siginfo_t that lives while
        // it runs; sigqueue(3) fills in the value.
        let value = unsafe { (*info).si_value() };
        ARMED.store(value.sival_ptr as usize as i32, Ordering::Relaxed);
    }

    pub(super) fn listen(role: &str) {
        let _ = ROLE.set(role.to_owned());
        // SAFETY: all zero is a sigaction without flags and with an empty mask; the handler only stores to an
        // atomic word, which is async-signal-safe; the calls read `action` and `set` only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = arm;
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut());
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        }
    }

    pub(super) async fn during<T>(operation: &str, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            OPERATION.with_borrow_mut(|o| operation.clone_into(o));
            let polled = work.as_mut().poll(cx);
            OPERATION.with_borrow_mut(String::clear);
            polled
        })
        .await
    }

    fn point(stage: &str) {
        let armed = ARMED.load(Ordering::Relaxed);
        if armed == 0 {
            return;
        }
        let role = ROLE.get().map_or("", String::as_str);
        let name = OPERATION.with_borrow(|operation| format!("{role}.{operation}.{stage}"));
        if super::hash(&name) == armed {
            // SAFETY: ends the process, which needs nothing of it; a crash does not run exit handlers either.
            unsafe { libc::_exit(super::ENDED) }
        }
    }

    pub(super) async fn around<T>(transaction: impl Future<Output = T>) -> T {
        point("before");
        let mut transaction = pin!(transaction);
        let outcome = poll_fn(|cx| {
            let polled = transaction.as_mut().poll(cx);
            // Also where the answer is there already: nobody has looked at it.
            point("inside");
            polled
        })
        .await;
        point("after");
        outcome
    }
}
