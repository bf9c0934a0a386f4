//! What the personality tells programs about the machine: read once, before the sandbox.

use std::sync::OnceLock;

/// Facts about the host.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// AT_HWCAP and AT_HWCAP2.
    pub hwcap: [u64; 2],
    /// CPUs.
    pub cpus: u8,
    /// Bytes of memory, and free ones at the start.
    pub memory: [u64; 2],
}

/// The facts. The first call reads them from the host, with calls that the sandbox does not allow.
pub fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(|| {
        let (hwcap, hwcap2) = rustix::param::linux_hwcap();
        let host = rustix::system::sysinfo();
        let unit = u64::from(host.mem_unit);
        Facts {
            hwcap: [hwcap as u64, hwcap2 as u64],
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get()).min(64) as u8,
            memory: [host.totalram as u64 * unit, host.freeram as u64 * unit],
        }
    })
}
