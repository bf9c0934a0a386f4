//! Carrying out what the core orders.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use clustix_abi::{Error, Fault, MessageInfo};
use clustix_kernel_core::{
    Action, ChannelId, Delivery, EndpointId, Event, PdId, RegionId, Request, StubId,
};
use clustix_pd::kernel::{STUB_PREEMPT_SIGNAL, STUB_TAG_FORK, STUB_TAG_REGION, STUB_WINDOW};
use clustix_pd::wire::{
    BootInfo, ChannelInfo, Delivered, Descriptor, Extra, MAX_DESCRIPTORS, Notice,
};

use crate::channel::Channel;
use crate::host::{Host, MAX_STUBS, RegionMemory};
use crate::stub::Stub;
use crate::zygote::Order;
use crate::{memory, metrics, process};

/// Wait status of a domain that could not be started: exit code 127.
const NOT_STARTED: i32 = 127 << 8;

impl Host {
    pub(crate) fn carry_out(&mut self, action: Action, events: &mut Vec<Event>) {
        match action {
            Action::Answer { to, result } => {
                let extra = result.as_ref().map_or(Extra::Nothing, |d| self.extra(d));
                self.answer(to, result.map(delivered), extra, Vec::new());
            }
            Action::PdStart { pd, incarnation } => {
                if let Err(error) = self.start_pd(pd.0, incarnation) {
                    let role = self.pds[usize::from(pd.0)].role.clone();
                    tracing::error!(role, %error, "cannot start");
                    match &self.pds[usize::from(pd.0)].life {
                        // It runs, but did not get all it needs: its death is noticed as any other.
                        Some(life) => life.process.kill(),
                        None => {
                            events.push(Event::PdDied { pd, incarnation, status: NOT_STARTED });
                        }
                    }
                }
            }
            Action::PdKill { pd, incarnation } => {
                if let Some(life) = &self.pds[usize::from(pd.0)].life
                    && life.incarnation == incarnation
                {
                    life.process.kill();
                }
            }
            Action::ChannelOpen { channel, client, server, endpoint, badge } => {
                self.open_channel(channel, (client, server, endpoint), badge);
            }
            Action::ChannelRevoke { channel } => self.revoke_channel(channel),
            Action::StubSpawn { stub, slot, to } => self.spawn_stub(stub, slot, to, events),
            Action::StubFork { stub, parent, slot, to } => {
                self.fork_stub(stub, parent, slot, to, events);
            }
            Action::StubKill { stub } => self.signal_stub(stub, libc::SIGKILL),
            Action::StubDestroy { stub } => self.signal_stub(stub, libc::SIGKILL),
            Action::StubPreempt { stub } => self.signal_stub(stub, STUB_PREEMPT_SIGNAL),
            Action::RegionCreate { region, length, slot, to } => {
                match self.create_region(region, length) {
                    Ok(fds) => {
                        let words = vec![u64::from(region.0), slot];
                        self.answer(to, Ok(words_only(words)), Extra::Nothing, fds);
                    }
                    Err(_) => {
                        self.fail(to);
                        events.push(Event::RegionFailed { region });
                    }
                }
            }
            Action::RegionSeal { region, to } => {
                match self.regions.get(&region.0).map(|r| memory::seal(r.fd.as_fd())) {
                    Some(Ok(())) => {
                        self.answer(to, Ok(Delivered::default()), Extra::Nothing, Vec::new());
                    }
                    _ => {
                        self.fail(to);
                        events.push(Event::SealFailed { region });
                    }
                }
            }
            Action::RegionSend { region, stub, to } => {
                let sent = match (self.regions.get(&region.0), self.stubs.get(stub)) {
                    (Some(region), Some(stub)) => {
                        send_to_stub(stub, STUB_TAG_REGION, &[&region.read_only])
                    }
                    _ => false,
                };
                if sent {
                    self.answer(to, Ok(Delivered::default()), Extra::Nothing, Vec::new());
                } else {
                    self.fail(to);
                }
            }
            Action::RegionMap { region, pd, writable, to: None } => {
                self.pds[usize::from(pd.0)].regions.push((region, writable));
            }
            Action::RegionMap { region, writable, to: Some(to), .. } => {
                match self.regions.get(&region.0) {
                    Some(r) => {
                        let fd = if writable { r.fd.clone() } else { r.read_only.clone() };
                        let words = words_only(vec![r.len]);
                        self.answer(to, Ok(words), Extra::Nothing, vec![fd]);
                    }
                    None => self.fail(to),
                }
            }
            Action::RegionDestroy { region } => {
                self.regions.remove(&region.0);
            }
            Action::MetricsRead { to } => {
                for part in metrics::parts(self.counters()) {
                    self.answer(to, Ok(Delivered::default()), part, Vec::new());
                }
            }
            Action::MetricsPds { to } => {
                let pds = self.pds.iter().map(crate::pd::Pd::info).collect();
                self.answer(to, Ok(Delivered::default()), Extra::Pds(pds), Vec::new());
            }
        }
    }

    fn fail(&mut self, to: Request) {
        self.answer(to, Err(Error::HostFailure), Extra::Nothing, Vec::new());
    }

    /// For the log of a supervisor: the process that a told death was. Nothing depends on it.
    fn extra(&self, delivery: &Delivery) -> Extra {
        let message = &delivery.message;
        if message.info.label() != Fault::PdDeath.number() {
            return Extra::Nothing;
        }
        usize::try_from(message.words[0])
            .ok()
            .and_then(|n| self.pds.get(n))
            .map_or(Extra::Nothing, |pd| Extra::Process { pid: pd.last_pid })
    }

    /// Every counter of the node: domain, name, value.
    fn counters(&self) -> Vec<(String, String, u64)> {
        let mut all = Vec::new();
        for pd in &self.pds {
            all.extend(pd.counters().into_iter().map(|(n, v)| (pd.role.clone(), n, v)));
        }
        let mut kernel = |name: String, value| all.push((metrics::KERNEL.to_owned(), name, value));
        for pd in &self.pds {
            let role = &pd.role;
            kernel(format!("clustix_kernel_requests_total{{pd=\"{role}\"}}"), pd.requests);
            let restarts = u64::from(pd.starts.saturating_sub(1));
            kernel(format!("clustix_pd_restarts_total{{pd=\"{role}\"}}"), restarts);
        }
        let mut wakeups = self.wakeups.clone();
        for c in &self.channels {
            wakeups.add(self.role(c.client), self.role(c.server), c.wakeups());
        }
        if self.stubs.made > 0 {
            wakeups.add("app", "posix", self.stubs.wakeups());
        }
        for (name, n) in wakeups.entries() {
            kernel(name, n);
        }
        kernel("clustix_stubs".to_owned(), self.stubs.len() as u64);
        kernel("clustix_stubs_made_total".to_owned(), self.stubs.made);
        all
    }

    fn role(&self, pd: PdId) -> &str {
        self.pds.get(usize::from(pd.0)).map_or("", |p| p.role.as_str())
    }

    // -- Channels ----------------------------------------------------------------------------

    fn open_channel(&mut self, id: ChannelId, ends: (PdId, PdId, EndpointId), badge: u64) {
        let (client, server, endpoint) = ends;
        // A client that outlived its server's last life goes on with the memory it has mapped.
        let known = self.channels.iter().position(|c| {
            c.live.is_none() && (c.client, c.server, c.endpoint) == ends && c.badge == badge
        });
        let at = match known {
            Some(at) => at,
            None => {
                let (name, window) = self.channel_name(client, server, badge);
                match Channel::new((client, server, endpoint), badge, name, window) {
                    Ok(channel) => self.channels.push(channel),
                    Err(error) => {
                        return tracing::error!(
                            client = self.role(client),
                            server = self.role(server),
                            %error,
                            "cannot make a channel"
                        );
                    }
                }
                self.channels.len() - 1
            }
        };
        let channel = &mut self.channels[at];
        if !channel.open(id, &mut self.pds[usize::from(server.0)].badges) {
            return tracing::error!(server = server.0, "too many channels to one server");
        }
        let Some((_, entry)) = channel.live else { return };
        let (window, name) = (channel.window, channel.name.clone());
        let Ok(fd) = memory::duplicate(channel.fd.as_fd()).map(Rc::new) else { return };
        if self.pds[usize::from(server.0)].life.is_some() {
            let info = ChannelInfo { channel: entry, client: self.role(client).to_owned(), window };
            self.tell(server.0, &Notice::Channel(info), vec![fd.clone()]);
        }
        if known.is_none() && self.pds[usize::from(client.0)].life.is_some() {
            self.tell(client.0, &Notice::Client { name, window }, vec![fd]);
        }
    }

    /// Channels of `client` to servers that do not run just now: their memory exists all the same,
    /// so that the client starts with it and its calls wait for the server.
    fn park_missing_channels(&mut self, client: PdId) -> std::io::Result<()> {
        for i in 0..self.system.channels.len() {
            let c = &self.system.channels[i];
            let Some(server) = self.system.pd(&c.server) else { continue };
            let Some(endpoint) = self.endpoints.get(server).copied().flatten() else { continue };
            if self.system.pd(&c.client) != Some(usize::from(client.0)) {
                continue;
            }
            let (badge, ends) = (c.badge, (client, PdId(server as u16), endpoint));
            let known = |k: &Channel| (k.client, k.server, k.endpoint) == ends && k.badge == badge;
            if !self.channels.iter().any(known) {
                let (name, window) = (c.name().to_owned(), c.window);
                self.channels.push(Channel::new(ends, badge, name, window)?);
            }
        }
        Ok(())
    }

    /// What the description calls a channel, or for one made at run time its server's role and
    /// badge.
    fn channel_name(&self, client: PdId, server: PdId, badge: u64) -> (String, u32) {
        let (client, server) = (self.role(client), self.role(server));
        let mut of_pair =
            self.system.channels.iter().filter(|c| c.client == client && c.server == server);
        match of_pair.clone().find(|c| c.badge == badge) {
            Some(c) => (c.name().to_owned(), c.window),
            None => {
                let window =
                    of_pair.next().map_or(clustix_pd::channel::WINDOW as u32, |c| c.window);
                (format!("{server}#{badge}"), window)
            }
        }
    }

    fn revoke_channel(&mut self, id: ChannelId) {
        let Some(at) = self.channels.iter().position(|c| c.live.is_some_and(|(l, _)| l == id))
        else {
            return;
        };
        let server = self.channels[at].server;
        let served = self.pds[usize::from(server.0)].life.is_some();
        let badges = &mut self.pds[usize::from(server.0)].badges;
        // A dead server's channels wait for its next life.
        let entry = self.channels[at].close(badges, served);
        if !served {
            return;
        }
        let channel = self.channels.remove(at);
        let (client, name) = (channel.client, channel.name.clone());
        self.retire(channel);
        if let Some(channel) = entry {
            self.tell(server.0, &Notice::ChannelGone { channel }, Vec::new());
        }
        self.tell(client.0, &Notice::ClientGone { name }, Vec::new());
    }

    /// Its client died: a next life gets fresh ones.
    pub(crate) fn drop_channels_of(&mut self, client: PdId) {
        while let Some(at) = self.channels.iter().position(|c| c.client == client) {
            let mut channel = self.channels.remove(at);
            let server = channel.server;
            let entry = channel.close(&mut self.pds[usize::from(server.0)].badges, true);
            self.retire(channel);
            if let Some(channel) = entry {
                self.tell(server.0, &Notice::ChannelGone { channel }, Vec::new());
            }
        }
    }

    fn retire(&mut self, channel: Channel) {
        let (from, to) =
            (self.role(channel.client).to_owned(), self.role(channel.server).to_owned());
        self.wakeups.add(&from, &to, channel.wakeups());
        channel.end();
    }

    // -- Boot --------------------------------------------------------------------------------

    /// Sends a domain what it starts with.
    pub(crate) fn send_boot(&mut self, n: u16, metrics: OwnedFd) -> std::io::Result<()> {
        let at = usize::from(n);
        let role = self.pds[at].role.clone();
        self.park_missing_channels(PdId(n))?;
        let mut descriptors = vec![Descriptor::Metrics, Descriptor::Badges];
        let badges = memory::duplicate(self.pds[at].badges.read_only.as_fd())?;
        let mut fds = vec![Rc::new(metrics), Rc::new(badges)];
        for c in &self.channels {
            if c.client == PdId(n) {
                descriptors.push(Descriptor::Client { name: c.name.clone(), window: c.window });
                fds.push(Rc::new(memory::duplicate(c.fd.as_fd())?));
            }
            if let (true, Some((_, entry))) = (c.server == PdId(n), c.live) {
                descriptors.push(Descriptor::Server(ChannelInfo {
                    channel: entry,
                    client: self.role(c.client).to_owned(),
                    window: c.window,
                }));
                fds.push(Rc::new(memory::duplicate(c.fd.as_fd())?));
            }
        }
        let keep = self.system.pds[at].keeps_descriptors;
        for (region, writable) in std::mem::take(&mut self.pds[at].regions) {
            if let Some(r) = self.regions.get(&region.0) {
                let name = r.name.clone();
                descriptors.push(Descriptor::Region { name, len: r.len, writable, keep });
                fds.push(if writable { r.fd.clone() } else { r.read_only.clone() });
            }
        }
        if let Some(granted) = self.descriptors.get(&role) {
            let wanted = &self.system.pds[at].descriptors;
            for (name, fd) in granted.iter().filter(|(name, _)| wanted.contains(name)) {
                descriptors.push(Descriptor::Host { name: name.clone() });
                fds.push(fd.clone());
            }
        }
        let lives = |id: u32| self.kernel.stub(StubId(id)) == Some((PdId(n), false));
        for (id, stub) in self.stubs.of(n).filter(|(id, _)| lives(*id)) {
            let (slot, pid) = (stub.owner.1, stub.pid.unwrap_or(0));
            descriptors.push(Descriptor::Stub { id, slot, pid });
            fds.push(Rc::new(memory::duplicate(stub.window.as_fd())?));
        }
        let info = BootInfo {
            role,
            node: self.node,
            incarnation: self.incarnation,
            cluster: self.cluster.clone(),
            args: self.args.get(&self.pds[at].role).cloned().unwrap_or_default(),
            caps: self.pds[at].caps.clone(),
            roles: self.pds[at].roles.clone(),
            descriptors,
            trace_sandbox: self.trace_sandbox,
        };
        let bytes = postcard::to_stdvec(&info).map_err(|_| std::io::ErrorKind::InvalidData)?;
        let block = Rc::new(memory::constant("clustix-boot", &bytes)?);
        let notice = Notice::Boot { len: bytes.len() as u32, descriptors: fds.len() as u32 };
        self.tell(n, &notice, vec![block]);
        for part in fds.chunks(MAX_DESCRIPTORS) {
            self.tell(n, &Notice::Descriptors, part.to_vec());
        }
        Ok(())
    }

    // -- Regions -----------------------------------------------------------------------------

    fn create_region(&mut self, id: RegionId, len: u64) -> std::io::Result<Vec<Rc<OwnedFd>>> {
        let name = format!("region-{}", id.0);
        let fd = Rc::new(memory::create(&name, len)?);
        let read_only = Rc::new(memory::read_only(fd.as_fd())?);
        let fds = vec![fd.clone(), read_only.clone()];
        self.regions.insert(id.0, RegionMemory { fd, read_only, len, name });
        Ok(fds)
    }

    // -- Stubs -------------------------------------------------------------------------------

    /// The kernel's end and the stub's end of a stub's socket, and its window.
    fn new_stub(&mut self) -> std::io::Result<(OwnedFd, OwnedFd, OwnedFd)> {
        if self.stubs.len() >= MAX_STUBS {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        let (ours, theirs) = process::packet_pair()?;
        // A hello carries its sender's pid.
        rustix::net::sockopt::set_socket_passcred(&ours, true)?;
        let window = memory::create("clustix-stub-window", STUB_WINDOW as u64)?;
        Ok((ours, theirs, window))
    }

    fn spawn_stub(&mut self, id: StubId, slot: u64, to: Request, events: &mut Vec<Event>) {
        let made = self.new_stub().and_then(|(ours, theirs, window)| {
            self.watch_stub(ours.as_fd(), id)?;
            let fds = vec![Rc::new(theirs), Rc::new(memory::duplicate(window.as_fd())?)];
            Ok((ours, window, fds))
        });
        let Ok((socket, window, fds)) = made else {
            self.fail(to);
            return events.push(Event::StubFailed { stub: id });
        };
        let stub = Stub {
            socket,
            window,
            owner: (to.pd.0, slot),
            pid: None,
            doomed: false,
            starting: Some(to),
            forked: false,
        };
        self.stubs.insert(id, stub);
        self.order_zygote(&Order::Spawn { token: id.0 }, fds);
    }

    fn fork_stub(
        &mut self,
        id: StubId,
        parent: StubId,
        slot: u64,
        to: Request,
        events: &mut Vec<Event>,
    ) {
        let made = self.new_stub().and_then(|(ours, theirs, window)| {
            let parent = self.stubs.get(parent).ok_or(std::io::ErrorKind::NotFound)?;
            if !send_to_stub(parent, STUB_TAG_FORK, &[&window, &theirs]) {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            self.watch_stub(ours.as_fd(), id)?;
            let fd = Rc::new(memory::duplicate(window.as_fd())?);
            Ok((ours, window, fd))
        });
        let Ok((socket, window, fd)) = made else {
            self.fail(to);
            return events.push(Event::StubFailed { stub: id });
        };
        let owner = (to.pd.0, slot);
        let stub =
            Stub { socket, window, owner, pid: None, doomed: false, starting: None, forked: true };
        self.stubs.insert(id, stub);
        let words = words_only(vec![u64::from(id.0), slot, 0]);
        self.answer(to, Ok(words), Extra::Nothing, vec![fd]);
    }

    fn signal_stub(&mut self, id: StubId, signal: i32) {
        let Some(stub) = self.stubs.get_mut(id) else { return };
        match stub.pid {
            Some(pid) => self.order_zygote(&Order::Signal { pid, signal }, Vec::new()),
            None if signal == libc::SIGKILL => stub.doomed = true,
            // It runs no user code yet.
            None => {}
        }
    }

    /// The zygote started a stub, or could not.
    pub(crate) fn stub_spawned(&mut self, id: StubId, result: Result<u32, i32>) {
        let Some(stub) = self.stubs.get_mut(id) else { return };
        let (starting, slot) = (stub.starting.take(), stub.owner.1);
        let window = memory::duplicate(stub.window.as_fd());
        match (result, window) {
            (Ok(pid), Ok(window)) => {
                if let Some(to) = starting {
                    let words = words_only(vec![u64::from(id.0), slot, u64::from(pid)]);
                    self.answer(to, Ok(words), Extra::Nothing, vec![Rc::new(window)]);
                }
                self.stub_born(id, pid);
            }
            (result, _) => {
                if let Some(to) = starting {
                    self.fail(to);
                }
                match result {
                    Ok(pid) => {
                        stub_doom(&mut self.stubs, id);
                        self.stub_born(id, pid);
                    }
                    Err(_) => {
                        self.forget_stub(id);
                        self.step(Event::StubFailed { stub: id });
                    }
                }
            }
        }
    }

    /// The process of a stub is known.
    pub(crate) fn stub_born(&mut self, id: StubId, pid: u32) {
        if let Some(status) = self.stubs.born(id, pid) {
            return self.stub_died(id, status);
        }
        if self.stubs.get(id).is_some_and(|s| s.doomed) {
            self.order_zygote(&Order::Signal { pid, signal: libc::SIGKILL }, Vec::new());
        }
    }

    pub(crate) fn stub_died(&mut self, id: StubId, status: i32) {
        self.forget_stub(id);
        self.step(Event::StubDied { stub: id, status });
    }

    fn forget_stub(&mut self, id: StubId) {
        if let Some(stub) = self.stubs.remove(id) {
            self.unwatch(stub.socket.as_fd());
            if let Some(to) = stub.starting {
                self.fail(to);
            }
        }
    }
}

fn stub_doom(stubs: &mut crate::stub::Stubs, id: StubId) {
    if let Some(stub) = stubs.get_mut(id) {
        stub.doomed = true;
    }
}

/// Sends a stub a message of four bytes, its tag, with descriptors. A stub that does not read gets
/// no more once its socket is full.
fn send_to_stub(stub: &Stub, tag: u32, fds: &[&OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    clustix_pd::socket::send(stub.socket.as_fd(), &tag.to_le_bytes(), &fds, true).is_ok()
}

fn words_only(words: Vec<u64>) -> Delivered {
    Delivered {
        badge: 0,
        info: MessageInfo::new(0, 0, 0, words.len()).word(),
        words,
        caps: Vec::new(),
    }
}

fn delivered(d: Delivery) -> Delivered {
    let info = d.message.info;
    let length = info.length().min(d.message.words.len());
    let caps = info.extra_caps().min(d.caps.len());
    Delivered {
        badge: d.badge,
        info: info.word(),
        words: d.message.words[..length].to_vec(),
        caps: d.caps[..caps].to_vec(),
    }
}
