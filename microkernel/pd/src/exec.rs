//! An executor whose only source of events is futex words.
//!
//! A future that cannot make progress [`register`]s the shared words it watches (and, if it has
//! one, its [`deadline`]) with the executor of its thread; the executor polls its tasks, and when
//! none can go on it sleeps in one `futex_waitv(2)` on all the words registered in that pass. The
//! same futures run under [`block_on`] (one thread per app thread, in the personality) and under
//! [`run`] (the one thread of a server).

use crate::metrics;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Most words one sleep can watch: `FUTEX_WAITV_MAX` (futex_waitv(2)).
pub const MAX_WORDS: usize = 128;

/// Second line of defence: no sleep lasts longer, so a lost wake-up costs at most this.
pub const LONGEST_SLEEP: Duration = Duration::from_millis(500);

#[repr(C)]
#[derive(Clone, Copy)]
struct Waiter {
    val: u64,
    uaddr: u64,
    flags: u32,
    reserved: u32,
}

const FUTEX2_SIZE_U32: u32 = 2;

#[derive(Default)]
struct Parked {
    waiters: Vec<Waiter>,
    deadline: Option<u64>,
}

thread_local! {
    static PARKED: RefCell<Parked> = RefCell::default();
    static SLEEPS: Cell<u64> = const { Cell::new(0) };
}

/// How often this thread has slept in the executor: a word that had changed already is no sleep.
pub(crate) fn sleeps() -> u64 {
    SLEEPS.get()
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Called by a future that returns `Pending`: wake this thread when `word` no longer holds `seen`.
///
/// `word` must stay mapped until the thread's next poll pass. Words beyond [`MAX_WORDS`] are not
/// watched; the executor then sleeps for one millisecond at most.
pub fn register(word: &AtomicU32, seen: u32) {
    let (val, uaddr) = (u64::from(seen), word as *const AtomicU32 as u64);
    PARKED.with_borrow_mut(|p| {
        // A server's many tasks all watch the same bells.
        if p.waiters.iter().any(|w| w.uaddr == uaddr && w.val == val) {
            return;
        }
        p.waiters.push(Waiter { val, uaddr, flags: FUTEX2_SIZE_U32, reserved: 0 })
    });
}

/// Called by a future that returns `Pending`: poll again at `at` (`CLOCK_MONOTONIC`, ns).
pub fn deadline(at: u64) {
    PARKED.with_borrow_mut(|p| p.deadline = Some(p.deadline.map_or(at, |d| d.min(at))));
}

/// Wakes every thread of any process that sleeps on `word`.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE takes the word's address only as a key; the kernel checks it.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
    }
}

struct Again(AtomicBool);

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn forget_registrations() {
    PARKED.with_borrow_mut(|p| {
        p.waiters.clear();
        p.deadline = None;
    });
}

fn sleep() {
    PARKED.with_borrow_mut(|p| {
        let now = now_ns();
        let mut longest = LONGEST_SLEEP.as_nanos() as u64;
        if p.waiters.len() > MAX_WORDS {
            p.waiters.truncate(MAX_WORDS);
            longest = 1_000_000;
        }
        let until = p.deadline.map_or(now + longest, |d| d.min(now + longest));
        if until <= now {
            return;
        }
        let ts = libc::timespec {
            tv_sec: (until / 1_000_000_000) as i64,
            tv_nsec: (until % 1_000_000_000) as i64,
        };
        if p.waiters.is_empty() {
            // SAFETY: `ts` outlives the call; no other pointer is passed.
            unsafe {
                libc::clock_nanosleep(
                    libc::CLOCK_MONOTONIC,
                    libc::TIMER_ABSTIME,
                    &ts,
                    std::ptr::null_mut(),
                );
            }
            return;
        }
        if let [waiter] = p.waiters[..] {
            // The older call, which is quicker for one word. (FUTEX_WAIT_BITSET takes an absolute time.)
            // SAFETY: `ts` outlives the call; the kernel checks the word's address itself and answers
            // EFAULT for a bad one, which only costs another poll pass.
            let end = unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    waiter.uaddr,
                    libc::FUTEX_WAIT_BITSET,
                    waiter.val as u32,
                    &ts,
                    std::ptr::null::<u32>(),
                    libc::FUTEX_BITSET_MATCH_ANY,
                )
            };
            return slept(end);
        }
        // SAFETY: `waiters` and `ts` outlive the call; the kernel checks the words' addresses
        // itself and answers EFAULT for a bad one, which only costs another poll pass.
        let end = unsafe {
            libc::syscall(
                libc::SYS_futex_waitv,
                p.waiters.as_ptr(),
                p.waiters.len() as u32,
                0u32,
                &ts,
                libc::CLOCK_MONOTONIC,
            )
        };
        slept(end);
    });
}

/// Counts a sleep by how its call ended: EAGAIN says that there was none.
fn slept(end: libc::c_long) {
    if end >= 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::WouldBlock {
        SLEEPS.set(SLEEPS.get() + 1);
    }
}

/// Runs one future to its end on this thread.
///
/// Not re-entrant: a future run by it must not call it.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let again = Arc::new(Again(AtomicBool::new(false)));
    let waker = Waker::from(again.clone());
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        forget_registrations();
        if let Poll::Ready(v) = future.as_mut().poll(&mut cx) {
            return v;
        }
        if !again.0.swap(false, Ordering::Acquire) {
            sleep();
        }
    }
}

/// Runs a fixed set of tasks on this thread until all have ended (a server's never do). Each turn is a
/// [`beat`](metrics::beat) of the domain.
pub fn run<'a>(tasks: impl IntoIterator<Item = Pin<Box<dyn Future<Output = ()> + 'a>>>) {
    let again = Arc::new(Again(AtomicBool::new(false)));
    let waker = Waker::from(again.clone());
    let mut cx = Context::from_waker(&waker);
    let mut tasks: Vec<_> = tasks.into_iter().collect();
    while !tasks.is_empty() {
        metrics::beat();
        forget_registrations();
        tasks.retain_mut(|t| t.as_mut().poll(&mut cx).is_pending());
        if !again.0.swap(false, Ordering::Acquire) && !tasks.is_empty() {
            sleep();
        }
    }
}

/// Which of two futures ended first.
#[derive(Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first did.
    Left(A),
    /// The second did.
    Right(B),
}

/// Polls `a`, then `b`; the loser is dropped.
pub async fn select<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let mut a = pin!(a);
    let mut b = pin!(b);
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(v) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(v));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// Ends when `word` holds something other than `seen`, with what it holds.
pub async fn changed(word: &AtomicU32, seen: u32) -> u32 {
    std::future::poll_fn(|_| {
        let now = word.load(Ordering::Acquire);
        if now != seen {
            return Poll::Ready(now);
        }
        register(word, seen);
        Poll::Pending
    })
    .await
}

/// Ends at `at` (`CLOCK_MONOTONIC`, ns).
pub async fn sleep_until(at: u64) {
    std::future::poll_fn(|_| {
        if now_ns() >= at {
            return Poll::Ready(());
        }
        deadline(at);
        Poll::Pending
    })
    .await
}

/// Lets the thread's other tasks go on once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_ends_the_sleep() {
        let word = Arc::new(AtomicU32::new(0));
        let other = word.clone();
        let thread = std::thread::spawn(move || block_on(changed(&other, 0)));
        word.store(7, Ordering::Release);
        wake_all(&word);
        assert_eq!(thread.join().unwrap(), 7);
    }

    #[test]
    fn a_word_that_has_changed_is_no_sleep() {
        let word = AtomicU32::new(1);
        let mut asked = false;
        let before = sleeps();
        block_on(std::future::poll_fn(|_| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(());
            }
            register(&word, 0);
            Poll::Pending
        }));
        assert_eq!(sleeps(), before);
        block_on(select(changed(&word, 1), sleep_until(now_ns() + 1_000_000)));
        assert_eq!(sleeps(), before + 1);
    }

    #[test]
    fn the_earlier_deadline_wins() {
        let start = now_ns();
        let r =
            block_on(select(sleep_until(start + 60_000_000_000), sleep_until(start + 5_000_000)));
        assert_eq!(r, Either::Right(()));
    }

    #[test]
    fn tasks_wake_each_other() {
        let word = AtomicU32::new(0);
        run([
            Box::pin(async {
                changed(&word, 0).await;
            }) as Pin<Box<dyn Future<Output = ()>>>,
            Box::pin(async {
                yield_now().await;
                word.store(1, Ordering::Release);
                wake_all(&word);
                yield_now().await;
            }),
        ]);
    }
}
