//! The kernel process: one loop over what its children send and how they end.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard};

use clustix_abi::{Error, MessageInfo, Syscall};
use clustix_kernel_core::{EndpointId, Event, Invocation, Kernel, Message, PdId, Request, StubId};
use clustix_pd::exec::now_ns;
use clustix_pd::wire::{Delivered, Exit, Extra, Notice, Packet};
use rustix::event::epoll;

use crate::channel::Channel;
use crate::health::{Health, LOOK_NS};
use crate::metrics::Wakeups;
use crate::pd::{Outbox, Pd, Sent};
use crate::process::{Process, Program};
use crate::stub::Stubs;
use crate::system::{OnDeath, Start, SystemDescription, SystemError};
use crate::zygote::{Order, Report};
use crate::{memory, process, signals, zygote};

/// A domain that the kernel restarts itself may die this often…
const DEATHS: usize = 5;
/// …in this time (ns), else the node ends.
const DEATHS_WITHIN_NS: u64 = 10_000_000_000;

/// How long the stubs of a domain that keeps them wait for its next life, ns.
pub const KEPT_NS: u64 = 60_000_000_000;

/// Packets read from one domain before the others have their turn.
const TURN: usize = 16;

/// Most stubs at a time.
pub(crate) const MAX_STUBS: usize = 4096;

/// What a kernel process is started with.
pub struct Config {
    /// The node's slot.
    pub node: u8,
    /// Its incarnation: this start.
    pub incarnation: u64,
    /// The cluster's name.
    pub cluster: String,
    /// Domains, regions, channels and capabilities.
    pub system: SystemDescription,
    /// Opaque configuration, by role.
    pub args: HashMap<String, Vec<u8>>,
    /// Host descriptors, by role and name. A domain that is restarted gets the same again.
    pub descriptors: HashMap<String, Vec<(String, OwnedFd)>>,
    /// The stub's executable image.
    pub stub_image: Vec<u8>,
    /// The node's log: every domain's descriptor 2. The kernel's own descriptor 2 if absent.
    pub log: Option<OwnedFd>,
    /// What to execute for a domain; `/proc/self/exe` in general.
    pub program: PathBuf,
    /// Arguments before the role; `pd` in general.
    pub arguments: Vec<OsString>,
    /// Whether a domain that breaks its sandbox says by which system call before it dies.
    pub trace_sandbox: bool,
}

/// Why a kernel process could not go on.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The system description is wrong.
    #[error("the system description is wrong: {0}")]
    System(#[from] SystemError),
    /// The system description asks for more than the kernel's tables hold.
    #[error("the kernel refused the declaration of {0}: {1}")]
    Declaration(String, &'static str),
    /// The host refused something.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// There is a kernel in this process already.
    #[error("a process can hold one kernel only")]
    Twice,
}

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was asked to (SIGTERM, SIGINT).
    Asked,
    /// A domain died without which it cannot live.
    Lost {
        /// The domain, or `zygote`.
        role: String,
        /// How it ended.
        exit: Exit,
    },
}

impl End {
    /// What the kernel process should exit with: 0 if it was asked to end, else 70.
    pub fn exit_code(&self) -> i32 {
        match self {
            End::Asked => 0,
            End::Lost { .. } => 70,
        }
    }
}

pub(crate) fn io(what: &'static str) -> impl Fn(std::io::Error) -> HostError {
    move |e| HostError::Io(what, e)
}

/// The core's tables: large, so they are not on anybody's stack.
static KERNEL: Mutex<Kernel> = Mutex::new(Kernel::new());

/// What an event of the loop is about.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Zygote,
    ZygoteDeath,
    Pd(u16),
    PdDeath(u16),
    Stub(u32),
}

impl Source {
    fn token(self) -> u64 {
        match self {
            Source::Signals => 0,
            Source::Zygote => 1,
            Source::ZygoteDeath => 2,
            Source::Pd(n) => 1 << 32 | u64::from(n),
            Source::PdDeath(n) => 2 << 32 | u64::from(n),
            Source::Stub(n) => 3 << 32 | u64::from(n),
        }
    }

    fn of(token: u64) -> Option<Source> {
        let n = token as u32;
        Some(match (token >> 32, n) {
            (0, 0) => Source::Signals,
            (0, 1) => Source::Zygote,
            (0, 2) => Source::ZygoteDeath,
            (1, n) => Source::Pd(n as u16),
            (2, n) => Source::PdDeath(n as u16),
            (3, n) => Source::Stub(n),
            _ => return None,
        })
    }
}

/// A region's memory.
pub(crate) struct RegionMemory {
    pub(crate) fd: Rc<OwnedFd>,
    pub(crate) read_only: Rc<OwnedFd>,
    pub(crate) len: u64,
    pub(crate) name: String,
}

/// A system call of a domain that was not answered yet.
pub(crate) struct Pending {
    pub(crate) pd: u16,
    pub(crate) incarnation: u32,
    pub(crate) sequence: u32,
}

/// The kernel of one node.
pub struct Host {
    pub(crate) kernel: MutexGuard<'static, Kernel>,
    pub(crate) system: SystemDescription,
    pub(crate) node: u8,
    pub(crate) incarnation: u64,
    pub(crate) cluster: String,
    pub(crate) args: HashMap<String, Vec<u8>>,
    pub(crate) descriptors: HashMap<String, Vec<(String, Rc<OwnedFd>)>>,
    pub(crate) trace_sandbox: bool,
    log: Option<OwnedFd>,
    program: Program,
    epoll: OwnedFd,
    signals: OwnedFd,
    /// Keeps number 3 taken, so that no descriptor of std's stands there when a child is made.
    _reserved: OwnedFd,
    zygote: Process,
    zygote_socket: OwnedFd,
    zygote_outbox: Outbox,
    pub(crate) pds: Vec<Pd>,
    pub(crate) regions: HashMap<u32, RegionMemory>,
    pub(crate) channels: Vec<Channel>,
    pub(crate) stubs: Stubs,
    pub(crate) pending: HashMap<u64, Pending>,
    next_request: u64,
    /// Wake-ups of channels that are gone.
    pub(crate) wakeups: Wakeups,
    /// The endpoint each domain serves.
    pub(crate) endpoints: Vec<Option<EndpointId>>,
    /// When the domains' beats are looked at next (CLOCK_MONOTONIC, ns).
    look_at: u64,
    end: Option<End>,
}

impl Host {
    /// Makes the node and keeps it until it ends; then all its processes are gone. Call it from the
    /// only thread of a process that stays for as long as the node does.
    pub fn run(config: Config) -> Result<End, HostError> {
        let mut host = Host::new(config)?;
        host.start_first();
        let end = host.serve();
        host.end_all();
        end
    }

    fn new(config: Config) -> Result<Host, HostError> {
        config.system.check()?;
        let kernel = KERNEL.try_lock().map_err(|_| HostError::Twice)?;
        let reserved = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|e| io("cannot open /dev/null")(e.into()))?;
        raise_descriptor_limit();
        let image =
            memory::constant("stub", &config.stub_image).map_err(io("cannot keep the stub"))?;
        let (zygote, zygote_socket) = zygote::start(&image).map_err(io("cannot fork"))?;
        drop(image);
        // Stubs that outlive the zygote, by a moment, come to this process, which waits for them.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| io("cannot adopt stubs")(e.into()))?;
        let signals =
            signals::descriptor(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE])
                .map_err(io("cannot receive signals"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| io("cannot make an epoll")(e.into()))?;
        let mut pds = Vec::new();
        for p in &config.system.pds {
            pds.push(Pd::new(p.role.clone()).map_err(io("cannot make a badge table"))?);
        }
        let mut host = Host {
            kernel,
            system: config.system,
            node: config.node,
            incarnation: config.incarnation,
            cluster: config.cluster,
            args: config.args,
            descriptors: config
                .descriptors
                .into_iter()
                .map(|(r, l)| (r, l.into_iter().map(|(n, fd)| (n, Rc::new(fd))).collect()))
                .collect(),
            trace_sandbox: config.trace_sandbox,
            log: config.log,
            program: Program { path: config.program, arguments: config.arguments },
            epoll,
            signals,
            _reserved: reserved,
            zygote,
            zygote_socket,
            zygote_outbox: Outbox::default(),
            pds,
            regions: HashMap::new(),
            channels: Vec::new(),
            stubs: Stubs::default(),
            pending: HashMap::new(),
            next_request: 1,
            wakeups: Wakeups::default(),
            endpoints: Vec::new(),
            look_at: now_ns() + LOOK_NS,
            end: None,
        };
        let watched = host
            .watch(host.signals.as_fd(), Source::Signals, false)
            .and_then(|()| host.watch(host.zygote_socket.as_fd(), Source::Zygote, false))
            .and_then(|()| host.watch(host.zygote.pidfd.as_fd(), Source::ZygoteDeath, false));
        watched.map_err(io("cannot watch the zygote"))?;
        host.declare()?;
        Ok(host)
    }

    // -- The loop ----------------------------------------------------------------------------

    fn start_first(&mut self) {
        for n in 0..self.pds.len() {
            if self.system.pds[n].start == Start::Kernel {
                self.step(Event::Start { pd: PdId(n as u16) });
            }
        }
    }

    fn serve(&mut self) -> Result<End, HostError> {
        let mut events = Vec::with_capacity(64);
        loop {
            if let Some(end) = self.end.take() {
                return Ok(end);
            }
            events.clear();
            self.look();
            let pause = self.look_at.saturating_sub(now_ns());
            let pause = rustix::event::Timespec {
                tv_sec: (pause / 1_000_000_000) as i64,
                tv_nsec: (pause % 1_000_000_000) as i64,
            };
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, Some(&pause)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(io("cannot wait")(e.into())),
            }
            for event in &events {
                let Some(source) = Source::of(event.data.u64()) else { continue };
                let flags = event.flags;
                let writable = flags.contains(epoll::EventFlags::OUT);
                match source {
                    Source::Signals => self.signalled(),
                    Source::Zygote => self.hear_zygote(writable),
                    Source::ZygoteDeath => {
                        if let Some(status) = self.zygote.reap(false) {
                            self.lose("zygote", Exit::from_wait_status(status));
                        }
                    }
                    Source::Pd(n) => self.hear_pd(n, writable),
                    Source::PdDeath(n) => self.pd_died(n),
                    Source::Stub(n) => {
                        let hung =
                            flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                        self.hear_stub(StubId(n), hung);
                    }
                }
                if self.end.is_some() {
                    break;
                }
            }
        }
    }

    /// Kills the domains whose loops do not turn any more.
    fn look(&mut self) {
        let (now, due) = (now_ns(), self.look_at);
        if now < due {
            return;
        }
        self.look_at = now + LOOK_NS;
        for pd in &mut self.pds {
            let Some(life) = pd.life.as_mut().filter(|l| !l.hung) else { continue };
            let beats = clustix_pd::metrics::beats(&life.metrics);
            if let Some(silent) = life.health.look(now, due, beats) {
                life.hung = true;
                life.process.kill();
                // After what others wait for: the log's disk may take its time.
                tracing::warn!(
                    role = pd.role,
                    pid = life.process.pid,
                    "killed: it hangs, without a turn of its loop for {} ms",
                    silent / 1_000_000
                );
            }
        }
        for n in 0..self.pds.len() {
            let late = self.pds[n].forget_at.take_if(|at| *at <= now);
            if late.is_some() {
                self.step(Event::StubsForgotten { pd: PdId(n as u16) });
            }
        }
    }

    /// Kills what still runs and waits for it: children first, the zygote's too.
    fn end_all(&mut self) {
        self.zygote.kill();
        for pd in &self.pds {
            if let Some(life) = &pd.life {
                life.process.kill();
            }
        }
        for pd in &mut self.pds {
            if let Some(life) = pd.life.take() {
                life.process.reap(true);
            }
        }
        self.zygote.reap(true);
        // Who reads the log comes to its end.
        self.log = None;
        process::reap_orphans();
    }

    fn signalled(&mut self) {
        while let Some(signal) = signals::take(&self.signals) {
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                self.end = Some(End::Asked);
            }
        }
    }

    pub(crate) fn lose(&mut self, role: &str, exit: Exit) {
        tracing::error!(role, %exit, "the node ends");
        self.end.get_or_insert(End::Lost { role: role.to_owned(), exit });
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source, writable: bool) -> std::io::Result<()> {
        let flags = interest(writable);
        let data = epoll::EventData::new_u64(source.token());
        match epoll::add(&self.epoll, fd, data, flags) {
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.epoll, fd, data, flags)?),
            other => Ok(other?),
        }
    }

    pub(crate) fn watch_stub(&self, fd: BorrowedFd<'_>, id: StubId) -> std::io::Result<()> {
        self.watch(fd, Source::Stub(id.0), false)
    }

    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        // It fails only when the descriptor is not watched.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// One event through the core, and all that follows from it.
    pub(crate) fn step(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let actions = self.kernel.handle(event).to_vec();
            for action in actions {
                self.carry_out(action, &mut events);
            }
        }
    }

    // -- Domains -----------------------------------------------------------------------------

    fn hear_pd(&mut self, n: u16, writable: bool) {
        if writable {
            self.flush(n);
        }
        let mut bytes = Vec::new();
        for _ in 0..TURN {
            let Some(life) = self.pds.get(usize::from(n)).and_then(|p| p.life.as_ref()) else {
                return;
            };
            match clustix_pd::socket::receive(life.socket.as_fd(), &mut bytes, true) {
                Ok(Some(_)) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                // It closed the socket, or broke the rules of packets: it cannot be served.
                Ok(None) | Err(_) => {
                    self.unwatch(life.socket.as_fd());
                    return life.process.kill();
                }
            }
            let incarnation = life.incarnation;
            match postcard::from_bytes::<Packet>(&bytes) {
                Ok(packet) => self.system_call(n, incarnation, packet),
                Err(_) => return self.kill_pd(n, "sent an unreadable packet"),
            }
        }
    }

    fn system_call(&mut self, n: u16, incarnation: u32, packet: Packet) {
        let Some(pd) = self.pds.get_mut(usize::from(n)) else { return };
        pd.requests += 1;
        let request = self.next_request;
        self.next_request += 1;
        let sequence = packet.sequence;
        self.pending.insert(request, Pending { pd: n, incarnation, sequence });
        match invocation(PdId(n), request, &packet) {
            Ok(invocation) => self.step(Event::Invoke(invocation)),
            Err(e) => {
                self.answer(Request { pd: PdId(n), request }, Err(e), Extra::Nothing, Vec::new())
            }
        }
    }

    /// Tells a domain how its system call ended. Nothing happens when it died meanwhile.
    pub(crate) fn answer(
        &mut self,
        to: Request,
        result: Result<Delivered, Error>,
        extra: Extra,
        fds: Vec<Rc<OwnedFd>>,
    ) {
        let more = matches!(extra, Extra::Metrics { more: true, .. });
        let known = match self.pending.get(&to.request) {
            Some(p) => (p.pd, p.incarnation, p.sequence),
            None => return,
        };
        if !more {
            self.pending.remove(&to.request);
        }
        let (n, incarnation, sequence) = known;
        let lives =
            self.pds[usize::from(n)].life.as_ref().is_some_and(|l| l.incarnation == incarnation);
        if lives {
            let result = result.map_err(Error::number);
            self.tell(n, &Notice::Answer { sequence, result, extra }, fds);
        }
    }

    pub(crate) fn tell(&mut self, n: u16, notice: &Notice, fds: Vec<Rc<OwnedFd>>) {
        let Some(pd) = self.pds.get_mut(usize::from(n)) else { return };
        let sent = pd.tell(notice, fds);
        self.sent(n, sent);
    }

    fn flush(&mut self, n: u16) {
        let Some(life) = self.pds.get_mut(usize::from(n)).and_then(|p| p.life.as_mut()) else {
            return;
        };
        let sent = life.outbox.flush(&life.socket);
        if sent == Sent::All {
            let life = &*life;
            let _ = epoll::modify(
                &self.epoll,
                life.socket.as_fd(),
                epoll::EventData::new_u64(Source::Pd(n).token()),
                interest(false),
            );
        }
        self.sent(n, sent);
    }

    fn sent(&mut self, n: u16, sent: Sent) {
        match sent {
            Sent::All => {}
            Sent::Waits => {
                if let Some(life) = &self.pds[usize::from(n)].life {
                    let _ = self.watch(life.socket.as_fd(), Source::Pd(n), true);
                }
            }
            Sent::Hopeless => self.kill_pd(n, "does not read what it is sent"),
        }
    }

    pub(crate) fn kill_pd(&mut self, n: u16, why: &str) {
        let Some(pd) = self.pds.get(usize::from(n)) else { return };
        if let Some(life) = &pd.life {
            tracing::warn!(role = pd.role, pid = life.process.pid, "killed: {why}");
            life.process.kill();
        }
    }

    /// Starts a domain's process and sends it its boot message.
    pub(crate) fn start_pd(&mut self, n: u16, incarnation: u32) -> std::io::Result<()> {
        let (kernel_end, pd_end) = process::packet_pair()?;
        let role = self.pds[usize::from(n)].role.clone();
        let process = {
            let inherited = rustix::stdio::stderr();
            let log = self.log.as_ref().map_or(inherited, |l| l.as_fd());
            process::start(&self.program, &role, pd_end, log)?
        };
        if self.system.pds[usize::from(n)].realtime
            && let Err(e) = process::make_realtime(&process)
        {
            tracing::warn!(
                role,
                "runs no sooner than others on a machine that has more to run than processors: {e}"
            );
        }
        let (page, page_fd) = crate::pd::metrics_page()?;
        self.watch(kernel_end.as_fd(), Source::Pd(n), false)?;
        self.watch(process.pidfd.as_fd(), Source::PdDeath(n), false)?;
        let deadline = u64::from(self.system.pds[usize::from(n)].deadline_ms) * 1_000_000;
        let pd = &mut self.pds[usize::from(n)];
        pd.starts += 1;
        pd.forget_at = None;
        pd.started_ns = now_ns();
        pd.last_pid = process.pid;
        tracing::info!(role, pid = process.pid, start = pd.starts, "started");
        pd.life = Some(crate::pd::Life {
            process,
            socket: kernel_end,
            outbox: Outbox::default(),
            metrics: page,
            health: Health::new(deadline, pd.started_ns),
            hung: false,
            incarnation,
        });
        self.send_boot(n, page_fd)
    }

    fn pd_died(&mut self, n: u16) {
        let Some(pd) = self.pds.get_mut(usize::from(n)) else { return };
        let Some(life) = &pd.life else { return };
        let Some(status) = life.process.reap(false) else { return };
        let incarnation = life.incarnation;
        // One that ended by itself was only long in giving up its memory.
        let exit = match Exit::from_wait_status(status) {
            Exit::Signal(_) if life.hung => Exit::Hung,
            exit => exit,
        };
        let now = now_ns();
        let pid = life.process.pid;
        pd.bury(exit, now);
        pd.forget_at = self.system.pds[usize::from(n)].keeps_stubs.then_some(now + KEPT_NS);
        pd.deaths.retain(|&d| now - d <= DEATHS_WITHIN_NS);
        let role = pd.role.clone();
        let often = pd.deaths.len() > DEATHS;
        self.pending.retain(|_, p| p.pd != n);
        for channel in &self.channels {
            if channel.server == PdId(n) {
                channel.server_died();
            }
        }
        self.drop_channels_of(PdId(n));
        self.step(Event::PdDied { pd: PdId(n), incarnation, status });
        match self.system.pds[usize::from(n)].on_death {
            OnDeath::TellSupervisor => {}
            OnDeath::EndNode => self.lose(&role, exit),
            OnDeath::Restart if often => self.lose(&role, exit),
            OnDeath::Restart => self.step(Event::Start { pd: PdId(n) }),
        }
        tracing::warn!(role, pid, %exit, "died");
    }

    // -- The zygote and its stubs ------------------------------------------------------------

    pub(crate) fn order_zygote(&mut self, order: &Order, fds: Vec<Rc<OwnedFd>>) {
        let Ok(bytes) = postcard::to_stdvec(order) else { return };
        if !self.zygote_outbox.push(bytes, fds) {
            return self.lose("zygote", Exit::Code(0));
        }
        self.flush_zygote();
    }

    fn flush_zygote(&mut self) {
        let waits = self.zygote_outbox.flush(&self.zygote_socket) == Sent::Waits;
        let _ = self.watch(self.zygote_socket.as_fd(), Source::Zygote, waits);
    }

    fn hear_zygote(&mut self, writable: bool) {
        if writable {
            self.flush_zygote();
        }
        let mut bytes = Vec::new();
        while let Ok(Some(_)) =
            clustix_pd::socket::receive(self.zygote_socket.as_fd(), &mut bytes, true)
        {
            match postcard::from_bytes(&bytes) {
                Ok(Report::Spawned { token, result }) => {
                    self.stub_spawned(StubId(token), result);
                }
                Ok(Report::Died { pid, status }) => {
                    if let Some(id) = self.stubs.died(pid, status) {
                        self.stub_died(id, status);
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// Has a stub said hello, or is its socket closed?
    fn hear_stub(&mut self, id: StubId, hung: bool) {
        // What the zygote knows comes first: a pid in a hello may be one that it has reaped since.
        let Some(stub) = self.stubs.get(id) else { return };
        let mut bytes = Vec::new();
        let hello = match clustix_pd::socket::receive(stub.socket.as_fd(), &mut bytes, true) {
            Ok(Some(received)) => received.sender,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && !hung => return,
            _ => None,
        };
        // A stub says one thing in its life; whatever else it does on its socket is not heard.
        self.unwatch(stub.socket.as_fd());
        let unborn = stub.pid.is_none() && stub.forked;
        match hello {
            Some(pid) if pid > 1 && unborn => {
                self.hear_zygote(false);
                self.stub_born(id, pid as u32);
            }
            _ if unborn => {
                // The fork failed, or the child died before it could speak.
                self.stub_died(id, libc::SIGKILL);
            }
            _ => {}
        }
    }
}

fn interest(writable: bool) -> epoll::EventFlags {
    if writable { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
}

/// Stubs cost two descriptors each, domains and channels a few.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without it fewer stubs are possible, and their makers are told so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A packet as the core takes it; what cannot be one is refused here.
fn invocation(pd: PdId, request: u64, packet: &Packet) -> Result<Invocation, Error> {
    let syscall = Syscall::from_number(packet.syscall).ok_or(Error::IllegalOperation)?;
    let info = MessageInfo::from_word(packet.info);
    let mut message = Message { info, ..Message::default() };
    let mut caps = [0; clustix_kernel_core::event::MESSAGE_CAPS];
    if info.length() != packet.words.len() || info.extra_caps() != packet.caps.len() {
        return Err(Error::TruncatedMessage);
    }
    message
        .words
        .get_mut(..packet.words.len())
        .ok_or(Error::RangeError)?
        .copy_from_slice(&packet.words);
    caps.get_mut(..packet.caps.len()).ok_or(Error::RangeError)?.copy_from_slice(&packet.caps);
    Ok(Invocation {
        pd,
        request,
        syscall,
        cptr: packet.cptr,
        send: packet.send,
        reply: packet.reply,
        message,
        caps,
        receive: packet.receive,
    })
}
