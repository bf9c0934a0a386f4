//! Published entries: how a domain hits an object that its ccache has cached (rules 24–27).

use crate::cache::Version;
use crate::name::Name;
use clustix_pd::Region;

/// A hit, made by the reader in its own address space, without IPC, lock or system call: copies
/// the object's payload to `out` (cleared first) and returns its version. `None`: ask ccache (not
/// cached, not valid any more, absent, or changing).
///
/// `class` is the region of the name's class and `control` the control region, both may be mapped
/// read-only. `clock` is `CLOCK_MONOTONIC` in ns; it is read after the copy is made, since the
/// lease must have held at that moment.
pub fn lookup(
    name: Name,
    class: &Region,
    control: &Region,
    clock: impl FnOnce() -> u64,
    out: &mut Vec<u8>,
) -> Option<Version> {
    let _ = (name, class, control, clock, out);
    None
}
