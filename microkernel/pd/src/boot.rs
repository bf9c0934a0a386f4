//! The start of a domain: what the kernel sends it on descriptor 3.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::channel::{BADGE_TABLE_LEN, ChannelId, Client, Inbox, Server, channel_len};
use crate::kernel::{Kernel, Stub, StubWindow};
use crate::region::{Mapping, Region};
use crate::wire::{BootInfo, Descriptor, MAX_PACKET, Notice};
use crate::{fault, metrics, sandbox, socket};

/// Descriptor of the kernel socket.
pub const KERNEL_FD: i32 = 3;

/// Most descriptors a boot message may announce.
const MAX_BOOT_DESCRIPTORS: usize = 8192;

/// Why a domain could not start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Descriptor 3 is not the kernel's socket, or the kernel went away.
    #[error("cannot read the boot message from descriptor 3: {0}")]
    Socket(std::io::Error),
    /// The boot message is not what this program understands.
    #[error("the boot message is malformed: {0}")]
    Malformed(&'static str),
    /// A region or channel could not be mapped.
    #[error("cannot map {0}: {1}")]
    Map(String, std::io::Error),
    /// The system description grants this domain nothing of that name.
    #[error("this domain was granted no {0} named {1:?}")]
    NotGranted(&'static str, String),
    /// The sandbox could not be entered.
    #[error("cannot enter the sandbox: {0}")]
    Sandbox(#[from] sandbox::SandboxError),
}

/// What a domain starts with.
pub struct Boot {
    /// Its role in the system description.
    pub role: String,
    /// The node's slot.
    pub node: u8,
    /// The node's incarnation: one start of its kernel process.
    pub incarnation: u64,
    /// The cluster's name.
    pub cluster: String,
    /// Opaque configuration from the launcher.
    pub args: Vec<u8>,
    /// The slow path.
    pub kernel: Kernel,
    /// The receiving end of all endpoints this domain serves.
    pub server: Server,
    /// The stubs of this domain's last life, where it keeps them; pid 0: not born yet.
    pub stubs: Vec<Stub>,
    regions: HashMap<String, Region>,
    descriptors: RefCell<HashMap<String, OwnedFd>>,
    trace_sandbox: bool,
}

fn receive(fd: &OwnedFd, bytes: &mut Vec<u8>) -> Result<(Notice, Vec<OwnedFd>), BootError> {
    let received = socket::receive(fd.as_fd(), bytes, false)
        .map_err(BootError::Socket)?
        .ok_or_else(|| BootError::Socket(std::io::ErrorKind::UnexpectedEof.into()))?;
    let notice =
        postcard::from_bytes(bytes).map_err(|_| BootError::Malformed("unreadable packet"))?;
    Ok((notice, received.descriptors))
}

impl Boot {
    /// Reads the boot message from descriptor 3, maps what it names and starts the listener thread.
    /// Call it once, first of all, in a process that the kernel made.
    pub fn from_kernel() -> Result<Boot, BootError> {
        // One heap for all threads: to give memory back from a second one, glibc first reads a file
        // below /proc, which is the death of a domain in its sandbox.
        // SAFETY: mallopt takes two numbers; no thread has been made yet that could allocate.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        // SAFETY: the kernel starts a domain with its socket as descriptor 3, and nothing else in
        // this process owns that number; a wrong descriptor only fails to receive.
        let fd = unsafe { OwnedFd::from_raw_fd(KERNEL_FD) };
        Boot::from_socket(fd)
    }

    fn from_socket(fd: OwnedFd) -> Result<Boot, BootError> {
        let _ =
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
        let mut bytes = Vec::with_capacity(MAX_PACKET);
        let (notice, block) = receive(&fd, &mut bytes)?;
        let Notice::Boot { len, descriptors: count } = notice else {
            return Err(BootError::Malformed("the first packet is not the boot message"));
        };
        let block = block.first().ok_or(BootError::Malformed("no boot information"))?;
        let (len, count) = (len as usize, count as usize);
        if len == 0 || count > MAX_BOOT_DESCRIPTORS {
            return Err(BootError::Malformed("lengths out of range"));
        }
        let mut info = vec![0; len];
        let mapping = Mapping::new(block.as_fd(), len, false)
            .map_err(|e| BootError::Map("the boot information".into(), e))?;
        if !mapping.read(0, &mut info) {
            return Err(BootError::Malformed("boot information cut short"));
        }
        let info: BootInfo = postcard::from_bytes(&info)
            .map_err(|_| BootError::Malformed("unreadable boot information"))?;
        let mut descriptors = Vec::with_capacity(count);
        while descriptors.len() < count {
            let (notice, more) = receive(&fd, &mut bytes)?;
            if notice != Notice::Descriptors || more.is_empty() {
                return Err(BootError::Malformed("descriptors missing"));
            }
            descriptors.extend(more);
        }
        if info.descriptors.len() != descriptors.len() {
            return Err(BootError::Malformed("wrong number of descriptors"));
        }
        fault::listen(&info.role);
        Boot::assemble(fd, info, descriptors)
    }

    fn assemble(fd: OwnedFd, info: BootInfo, descriptors: Vec<OwnedFd>) -> Result<Boot, BootError> {
        let mut channels = HashMap::new();
        let mut regions = HashMap::new();
        let mut host = HashMap::new();
        let (mut stubs, mut caps_of_stubs) = (Vec::new(), HashMap::new());
        let mut badges = None;
        let mut served = Vec::new();
        for (what, fd) in info.descriptors.into_iter().zip(descriptors) {
            match what {
                Descriptor::Client { name, window } => {
                    let window = window as usize;
                    let client = Mapping::new(fd.as_fd(), channel_len(window), true)
                        .and_then(|m| Client::new(m, window))
                        .map_err(|e| BootError::Map(format!("channel {name}"), e))?;
                    channels.insert(name, client);
                }
                Descriptor::Server(channel) => served.push((channel, fd)),
                Descriptor::Region { name, len, writable, keep } => {
                    let region = Region::map(fd, len as usize, writable, keep)
                        .map_err(|e| BootError::Map(format!("region {name}"), e))?;
                    regions.insert(name, region);
                }
                Descriptor::Host { name } => {
                    host.insert(name, fd);
                }
                Descriptor::Stub { id, slot, pid } => {
                    let window = StubWindow::map(&fd)
                        .map_err(|e| BootError::Map(format!("the window of stub {id}"), e))?;
                    caps_of_stubs.insert(id, Some(slot));
                    stubs.push(Stub { id, pid, window });
                }
                Descriptor::Metrics => metrics::install(
                    Region::map(fd, metrics::PAGE_LEN, true, false)
                        .map_err(|e| BootError::Map("the metrics page".into(), e))?,
                ),
                Descriptor::Badges => {
                    badges = Some(
                        Mapping::new(fd.as_fd(), BADGE_TABLE_LEN, false)
                            .map_err(|e| BootError::Map("the badge table".into(), e))?,
                    );
                }
            }
        }
        let inbox = Arc::<Inbox>::default();
        let server = Server::new(badges, inbox.clone());
        for (channel, fd) in served {
            let window = channel.window as usize;
            Mapping::new(fd.as_fd(), channel_len(window), true)
                .and_then(|m| {
                    server.attach(ChannelId(channel.channel), channel.client.clone(), m, window)
                })
                .map_err(|e| BootError::Map(format!("channel of {}", channel.client), e))?;
        }
        let kernel = Kernel::new(fd, info.caps, info.roles, channels, caps_of_stubs, inbox);
        let listener = kernel.clone();
        std::thread::Builder::new()
            .name("kernel".into())
            .stack_size(512 * 1024)
            .spawn(move || listener.listen())
            .map_err(BootError::Socket)?;
        Ok(Boot {
            role: info.role,
            node: info.node,
            incarnation: info.incarnation,
            cluster: info.cluster,
            args: info.args,
            kernel,
            server,
            stubs,
            regions,
            descriptors: RefCell::new(host),
            trace_sandbox: info.trace_sandbox,
        })
    }

    /// The client's end of the channel called `name` here: as the system description has it, or for
    /// one that a capability received or minted since brought, its server's role, `#` and its badge.
    pub fn channel(&self, name: &str) -> Result<Client, BootError> {
        self.kernel.channel(name).ok_or_else(|| BootError::NotGranted("channel", name.to_owned()))
    }

    /// The region called `name`, mapped.
    pub fn region(&self, name: &str) -> Result<Region, BootError> {
        self.regions
            .get(name)
            .cloned()
            .ok_or_else(|| BootError::NotGranted("region", name.to_owned()))
    }

    /// Takes the host's descriptor called `name`; each can be taken once.
    pub fn descriptor(&mut self, name: &str) -> Result<OwnedFd, BootError> {
        self.descriptors
            .borrow_mut()
            .remove(name)
            .ok_or_else(|| BootError::NotGranted("descriptor", name.to_owned()))
    }

    /// Enters the sandbox of this domain's role: from now on a system call outside its allow-list
    /// ends the process. Host descriptors not taken until now are closed. In a server, so is every
    /// descriptor but the kernel socket and the log. A domain whose configuration makes it need more
    /// names the variant of its role (`member` and `tcp`: the table's `member-tcp`).
    pub fn enter_sandbox(&self, variant: Option<&str>) -> Result<(), BootError> {
        self.descriptors.borrow_mut().clear();
        let _none_comes_in = self.kernel.hold_descriptors();
        let role = match variant {
            Some(variant) => format!("{}-{variant}", self.role),
            None => self.role.clone(),
        };
        Ok(sandbox::enter(&role, self.trace_sandbox)?)
    }
}
