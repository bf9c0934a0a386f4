//! Every bound of the kernel, in one place.

/// Protection domains. A node has about ten, and one per driver.
pub const PDS: usize = 64;
/// Capability slots in all, the kernel's own included.
pub const SLOTS: usize = 16384 + KERNEL_SLOTS;
/// Slots for the first capabilities of declared objects.
pub const KERNEL_SLOTS: usize = 2048;
/// Endpoints, notifications and reply objects, of each kind, that one PD may make. The tables hold
/// that many for every PD, so that no PD can take another's place.
pub const MADE_PER_PD: usize = 56;
/// Endpoints and notifications, of each kind, that may be declared.
pub const DECLARED: usize = 512;
/// Endpoints.
pub const ENDPOINTS: usize = PDS * MADE_PER_PD + DECLARED;
/// Notifications.
pub const NOTIFICATIONS: usize = PDS * MADE_PER_PD + DECLARED;
/// Reply objects.
pub const REPLIES: usize = PDS * MADE_PER_PD;
/// Memory regions, declared and made. Shared by the PDs that are granted the region pool.
pub const REGIONS: usize = 2048;
/// Stubs: POSIX address spaces on one node. Shared by the PDs that are granted the stub pool.
pub const STUBS: usize = 4096;
/// Operations that one PD may have waiting. The table holds them for every PD, so that no PD can
/// take another's place.
pub const WAITS_PER_PD: usize = 16;
/// Waiting operations in all.
pub const WAITS: usize = PDS * WAITS_PER_PD;
/// Channels that one PD may be client of. As for waits, no PD can take another's.
pub const CHANNELS_PER_PD: usize = 16;
/// Channels in all.
pub const CHANNELS: usize = PDS * CHANNELS_PER_PD;
/// Declared capabilities.
pub const GRANTS: usize = 1024;
/// Most actions of one step: the worst is a death or a revocation that ends everything there is.
pub const ACTIONS: usize = STUBS + REGIONS + CHANNELS + WAITS + GRANTS + PDS + 8;
/// Places in queues: every waiting operation, and every PD's and stub's one untold death.
pub const QUEUE_NODES: usize = WAITS + PDS + STUBS;
/// Smallest and largest radix of a PD's root CNode.
pub const RADIX: core::ops::RangeInclusive<u8> = 6..=13;
/// Longest region: 8 TiB. Regions are sparse; the file system's objects have the largest one.
pub const REGION_LENGTH: u64 = 1 << 43;
/// Most objects of one Untyped_Retype (`seL4_UntypedRetypeMaxObjects`).
pub const RETYPE_OBJECTS: u64 = 256;
