//! The memory server: every mapping of every address space is an area, and this server alone
//! chooses addresses.
//!
//! 1. It keeps no state: an address space is one object of the cluster-cache.
//! 2. What a request does to an address space is a pure function ([`space`]) that also says, step by
//!    step, what the personality must order the stub to do.
//! 3. Nothing it hands out reaches the stub's own memory ([`clustix_proto::memory::HIGHEST`]).
//!
//! Called by the personality only.

#![forbid(unsafe_code)]

pub mod space;

use clustix_ccache::cache::Cache;
use clustix_ccache::client::CacheClient;
use clustix_ccache::set;
use clustix_pd::channel::Task;
use clustix_pd::{Boot, BootError, Call};
use clustix_proto::errno::{self, Errno};
use clustix_proto::memory::{Areas, Mapped, Request, Response, Step, areas};
use clustix_proto::object::{Attempts, Draft};
use clustix_proto::once::Record;
use clustix_proto::{once, service};

/// One node's memory server.
pub struct Server<C> {
    cache: C,
}

impl<C: Cache> Server<C> {
    /// Over this cluster-cache.
    pub fn new(cache: C) -> Self {
        Server { cache }
    }

    /// Serves one request, which will not be repeated unless that is harmless.
    pub async fn handle(&self, request: Request) -> Response {
        self.serve(None, request).await
    }

    /// Serves one request, whose answer is recorded with its effect.
    pub async fn handle_once(&self, record: Option<&Record>, request: Request) -> Response {
        once::serve(&self.cache, record, self.serve(record, request)).await
    }

    async fn serve(&self, record: Option<&Record>, request: Request) -> Response {
        match request {
            Request::Map { space, hint, len, prot, source, fixed, no_replace } => {
                let ask = space::Ask { hint, len, prot, source, fixed, no_replace };
                self.change(space, record, |a| space::map(a, ask)).await
            }
            Request::Unmap { space, start, len } => {
                self.change(space, record, |a| space::unmap(a, start, len)).await
            }
            Request::Protect { space, start, len, prot } => {
                self.change(space, record, |a| space::protect(a, start, len, prot)).await
            }
            Request::Break { space, to } => {
                self.change(space, record, |a| space::set_break(a, to)).await
            }
            Request::Remap { space, start, old_len, new_len, may_move, to } => {
                self.change(space, record, |a| {
                    space::remap(a, start, old_len, new_len, may_move, to)
                })
                .await
            }
            Request::Replace { space, areas } => self.replace(space, areas).await,
            Request::Fork { parent, child } => self.fork(parent, child).await,
            Request::Remove { space } => self.remove(space).await,
        }
    }

    /// Runs a step function on an address space and keeps what it leaves.
    async fn change(
        &self,
        space: u32,
        record: Option<&Record>,
        step: impl Fn(&mut Areas) -> Result<(u64, Vec<Step>), Errno>,
    ) -> Response {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::once(&self.cache);
            if let Some(answer) = d.recall(record).await? {
                return answer;
            }
            let old: Areas = d.load(areas(space)).await?.ok_or(errno::ESRCH)?;
            let mut new = old.clone();
            let (addr, steps) = step(&mut new)?;
            // The steps are an effect too: a map over what is there empties it.
            if new != old || !steps.is_empty() {
                d.store(areas(space), &new)?;
            }
            let mapped = Mapped { addr, steps };
            if d.commit_once(record, &mapped).await? {
                return Ok(mapped);
            }
            attempts.again().await?;
        }
    }

    async fn replace(&self, space: u32, new: Areas) -> Response {
        space::check(&new)?;
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            let old: Areas = d.load(areas(space)).await?.unwrap_or_default();
            let steps = old.areas.iter().map(|a| Step::Unmap(a.start, a.end));
            let steps = steps.chain(new.areas.iter().map(|a| Step::Map(*a))).collect();
            d.store(areas(space), &new)?;
            if d.commit().await? {
                return Ok(Mapped { addr: new.brk, steps });
            }
            attempts.again().await?;
        }
    }

    async fn fork(&self, parent: u32, child: u32) -> Response {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            let copy: Areas = d.load(areas(parent)).await?.ok_or(errno::ESRCH)?;
            d.load::<Areas>(areas(child)).await?;
            d.store(areas(child), &copy)?;
            if d.commit().await? {
                return Ok(Mapped { addr: 0, steps: Vec::new() });
            }
            attempts.again().await?;
        }
    }

    async fn remove(&self, space: u32) -> Response {
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::repeatable(&self.cache);
            if d.load_bytes(areas(space)).await?.is_some() {
                d.remove(areas(space));
            }
            if d.commit().await? {
                return Ok(Mapped { addr: 0, steps: Vec::new() });
            }
            attempts.again().await?;
        }
    }
}

/// The protection domain `memory`. Returns only when it cannot start.
pub fn main(boot: Boot) -> Result<(), BootError> {
    let cache = CacheClient::new(&boot)?;
    let here = (boot.node, boot.incarnation);
    let server = Server::new(cache.clone());
    boot.enter_sandbox(None)?;
    let handler = async |_: &Call, record: Option<&Record>, request: Request| {
        server.handle_once(record, request).await
    };
    let others: Vec<Task<'_>> = vec![Box::pin(once::tend(&cache, set::MEMANSWER))];
    service::run_once(&boot.server, set::MEMANSWER, here, handler, others);
    Ok(())
}
