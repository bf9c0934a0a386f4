//! Random bytes from the host's generator.

use rustix::rand::{GetRandomFlags, getrandom};

/// Which of the host's pools; both are the same generator once it is seeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// As getrandom(2) without flags: waits until the generator was seeded.
    Random,
    /// As GRND_NONBLOCK: fails until then.
    NonBlocking,
}

/// Fills `out`. Fails with the host's errno: EAGAIN before seeding, ENOSYS where a sandbox forbids it.
pub fn fill(out: &mut [u8], source: Source) -> Result<(), i32> {
    let flags = match source {
        Source::Random => GetRandomFlags::empty(),
        Source::NonBlocking => GetRandomFlags::NONBLOCK,
    };
    let mut done = 0;
    while done < out.len() {
        // A signal may cut a request of more than 256 bytes short, or end it with EINTR.
        match getrandom(&mut out[done..], flags) {
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.raw_os_error()),
        }
    }
    Ok(())
}
