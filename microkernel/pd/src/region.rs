//! Memory regions: mapped ranges of memfds that other domains may map too.
//!
//! What stands in a region may change under the reader at any time, so no Rust reference to plain
//! data is ever made from it: only atomics, and copies in and out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::kernel::Kernel;

/// Copies of at most this many bytes go by atomic words, whose loads wait for memory together;
/// longer ones by the processor's string copy, which has a start-up cost of some tens of cycles.
const SHORT_COPY: usize = 512;
/// Bytes of a line of the processor's caches.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// A shared mapping of a memfd, unmapped on drop. The mapping itself never moves or shrinks while
/// it lives, and the kernel seals the memfds it hands out against shrinking, so every access
/// within `len` bytes hits a page.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: AtomicBool,
}

// SAFETY: the mapping is plain shared memory, touched only through atomics and opaque copies;
// nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `fd`, shared. `len` must not be 0.
    pub fn new(fd: BorrowedFd<'_>, len: usize, writable: bool) -> std::io::Result<Mapping> {
        let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice cannot overlap anything.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len, writable: AtomicBool::new(writable) })
    }

    /// An anonymous mapping of zeroes, for tests and for what a domain keeps to itself.
    pub fn anonymous(len: usize) -> std::io::Result<Mapping> {
        let fd = rustix::fs::memfd_create("anonymous", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        Mapping::new(fd.as_fd(), len, true)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping is empty (it never is).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether stores are allowed; a store into a read-only mapping ends the process.
    pub fn writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Puts a read-only mapping of `fd` (the same memory, opened read-only) in this one's place, at
    /// the same address, so that the memory can be sealed against writing.
    fn make_read_only(&self, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        self.writable.store(false, Ordering::Release);
        // SAFETY: MAP_FIXED replaces exactly this mapping, which this value owns; the address
        // range stays mapped at every moment, so references into it stay valid.
        let base = unsafe {
            libc::mmap(
                self.base.as_ptr().cast(),
                self.len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_FIXED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// The whole region as 64-bit words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the base is page-aligned and `len` bytes stay mapped while `self` lives; atomics
        // allow any concurrent change by others.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len / 8) }
    }

    /// The 32-bit word at byte offset `at`, if it is aligned and inside.
    pub fn word32(&self, at: usize) -> Option<&AtomicU32> {
        if !at.is_multiple_of(4) || at.checked_add(4)? > self.len {
            return None;
        }
        // SAFETY: aligned and in bounds as just checked; mapped while `self` lives.
        Some(unsafe { &*self.base.as_ptr().add(at).cast::<AtomicU32>() })
    }

    /// The 64-bit word at byte offset `at`, if it is aligned and inside.
    pub fn word64(&self, at: usize) -> Option<&AtomicU64> {
        if !at.is_multiple_of(8) {
            return None;
        }
        self.words().get(at / 8)
    }

    /// Asks for the `len` bytes from offset `at` to be brought into the processor's caches, without
    /// waiting for them.
    #[inline]
    pub fn prefetch(&self, at: usize, len: usize) {
        #[cfg(target_arch = "x86_64")]
        for offset in (at..at.saturating_add(len).min(self.len)).step_by(LINE) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: in bounds. A hint, which reads nothing that the program sees; every x86-64
            // has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.as_ptr().add(offset).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, len);
    }

    /// Copies out from byte offset `at`; `false` (and nothing copied) when the range is not inside.
    /// The bytes may be torn if another writes them meanwhile.
    #[must_use]
    pub fn read(&self, at: usize, into: &mut [u8]) -> bool {
        if at.checked_add(into.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: in bounds as just checked.
        let from = unsafe { self.base.as_ptr().add(at) };
        if into.len() <= SHORT_COPY {
            let words = if at.is_multiple_of(8) { into.len() / 8 } else { 0 };
            let (whole, rest) = into.split_at_mut(words * 8);
            for (i, b) in whole.chunks_exact_mut(8).enumerate() {
                // SAFETY: `from + 8 * i` and the seven bytes after it are in bounds; it is aligned,
                // for the base is, and `at` is a multiple of 8.
                let word = unsafe { &*from.add(8 * i).cast::<AtomicU64>() };
                b.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
            for (i, b) in rest.iter_mut().enumerate() {
                // SAFETY: `from + i` is in bounds; a byte needs no alignment.
                *b =
                    unsafe { &*from.add(words * 8 + i).cast::<AtomicU8>() }.load(Ordering::Relaxed);
            }
            return true;
        }
        // SAFETY: source in bounds and mapped, target a live slice of the same length; the copy is
        // opaque to the compiler, so concurrent writers only make the bytes arbitrary.
        unsafe { copy_bytes(from, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Appends `len` bytes from offset `at` to `into`; `false` (and nothing appended) when the
    /// range is not inside.
    #[must_use]
    pub fn append_to(&self, at: usize, len: usize, into: &mut Vec<u8>) -> bool {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return false;
        }
        into.reserve(len);
        // SAFETY: source in bounds as just checked, target has `len` bytes of spare capacity; every
        // one of them is written before the length grows.
        unsafe {
            copy_bytes(self.base.as_ptr().add(at), into.as_mut_ptr().add(into.len()), len);
            into.set_len(into.len() + len);
        }
        true
    }

    /// Copies `from` in at byte offset `at`; `false` (and nothing copied) when the range is not
    /// inside or the mapping is read-only.
    #[must_use]
    pub fn write(&self, at: usize, from: &[u8]) -> bool {
        if at.checked_add(from.len()).is_none_or(|end| end > self.len) || !self.writable() {
            return false;
        }
        // SAFETY: in bounds as just checked.
        let into = unsafe { self.base.as_ptr().add(at) };
        if from.len() <= SHORT_COPY {
            let words = if at.is_multiple_of(8) { from.len() / 8 } else { 0 };
            let (whole, rest) = from.split_at(words * 8);
            for (i, b) in whole.chunks_exact(8).enumerate() {
                let mut word = [0; 8];
                word.copy_from_slice(b);
                // SAFETY: `into + 8 * i` and the seven bytes after it are in bounds and writable;
                // it is aligned, for the base is, and `at` is a multiple of 8.
                unsafe { &*into.add(8 * i).cast::<AtomicU64>() }
                    .store(u64::from_ne_bytes(word), Ordering::Relaxed);
            }
            for (i, b) in rest.iter().enumerate() {
                // SAFETY: `into + i` is in bounds and writable; a byte needs no alignment.
                unsafe { &*into.add(words * 8 + i).cast::<AtomicU8>() }
                    .store(*b, Ordering::Relaxed);
            }
            return true;
        }
        // SAFETY: target in bounds, mapped and writable, source a live slice of the same length.
        unsafe { copy_bytes(from.as_ptr(), into, from.len()) };
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `new` mapped; no reference outlives `self`.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len);
        }
    }
}

/// A copy the compiler cannot see into, since one side may change meanwhile.
///
/// # Safety
/// `from` must be readable and `into` writable for `len` bytes, and they must not overlap.
unsafe fn copy_bytes(from: *const u8, into: *mut u8, len: usize) {
    // SAFETY: the caller's contract; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") into => _,
            options(nostack, preserves_flags),
        );
    }
}

/// What the kernel keeps for a region that this domain had made; given back on drop.
struct Granted {
    id: u32,
    cptr: u64,
    kernel: Kernel,
}

impl Drop for Granted {
    fn drop(&mut self) {
        let _ = self.kernel.delete(self.cptr);
    }
}

struct Inner {
    mapping: Mapping,
    fd: Option<OwnedFd>,
    granted: Option<Granted>,
}

/// A mapped memory region. Clones share the mapping, which ends with the last of them.
#[derive(Clone)]
pub struct Region(Arc<Inner>);

impl Region {
    /// Maps `len` bytes of `fd`; the descriptor is kept only if `keep` says so.
    pub fn map(fd: OwnedFd, len: usize, writable: bool, keep: bool) -> std::io::Result<Region> {
        let mapping = Mapping::new(fd.as_fd(), len, writable)?;
        Ok(Region(Arc::new(Inner { mapping, fd: keep.then_some(fd), granted: None })))
    }

    /// A region of zeroes of this process's own, for tests.
    pub fn anonymous(len: usize) -> std::io::Result<Region> {
        let fd = rustix::fs::memfd_create("anonymous", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        Region::map(fd, len, true, true)
    }

    /// A region that the kernel made for this domain under `id`. `read_only` is the same memory
    /// opened read-only, kept for [`Region::make_read_only`].
    pub(crate) fn granted(
        fd: OwnedFd,
        read_only: OwnedFd,
        len: usize,
        id: u32,
        cptr: u64,
        kernel: Kernel,
    ) -> std::io::Result<Region> {
        let mapping = Mapping::new(fd.as_fd(), len, true)?;
        Ok(Region(Arc::new(Inner {
            mapping,
            fd: Some(read_only),
            granted: Some(Granted { id, cptr, kernel }),
        })))
    }

    /// Ends write access of this domain, before the kernel seals the memory.
    pub(crate) fn make_read_only(&self) -> std::io::Result<()> {
        match &self.0.fd {
            Some(fd) => self.0.mapping.make_read_only(fd.as_fd()),
            None => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    /// The kernel's number for a region that this domain had made.
    pub fn id(&self) -> Option<u32> {
        self.0.granted.as_ref().map(|g| g.id)
    }

    /// The capability for a region that this domain had made.
    pub(crate) fn cptr(&self) -> Option<u64> {
        self.0.granted.as_ref().map(|g| g.cptr)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.mapping.len()
    }

    /// Whether the region is empty (it never is).
    pub fn is_empty(&self) -> bool {
        self.0.mapping.is_empty()
    }

    /// Whether this domain may store into it; a store into a read-only region ends the domain.
    pub fn writable(&self) -> bool {
        self.0.mapping.writable()
    }

    /// The whole region as 64-bit words.
    pub fn words(&self) -> &[AtomicU64] {
        self.0.mapping.words()
    }

    /// The 32-bit word at byte offset `at` (for futexes), if it is aligned and inside.
    pub fn word32(&self, at: usize) -> Option<&AtomicU32> {
        self.0.mapping.word32(at)
    }

    /// Asks for `len` bytes from offset `at` to be brought into the processor's caches.
    #[inline]
    pub fn prefetch(&self, at: usize, len: usize) {
        self.0.mapping.prefetch(at, len);
    }

    /// Copies out from byte offset `at`; `false` when the range is not inside.
    #[must_use]
    pub fn read(&self, at: usize, into: &mut [u8]) -> bool {
        self.0.mapping.read(at, into)
    }

    /// Copies in at byte offset `at`; `false` when the range is not inside or not writable.
    #[must_use]
    pub fn write(&self, at: usize, from: &[u8]) -> bool {
        self.0.mapping.write(at, from)
    }

    /// The descriptor, for passing on to a peer: kept only in ccache (and read-only for a region
    /// that this domain had made).
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_stay_inside() {
        let r = Region::anonymous(8192).unwrap();
        let long: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        assert!(r.write(4000, &long));
        let mut back = vec![0; 1000];
        assert!(r.read(4000, &mut back));
        assert_eq!(back, long);
        assert!(!r.write(8000, &long));
        assert!(!r.read(usize::MAX, &mut back));
        assert!(r.word32(8192).is_none() && r.word32(3).is_none() && r.word32(8188).is_some());
    }
}
