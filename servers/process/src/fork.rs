//! New processes: of `clustix run`, and fork(2)'s.

use crate::server::{COMMAND_MAX, GROUPS_MAX, Server, join, recall, remember, wall_s};
use clustix_ccache::cache::{Cache, Version};
use clustix_proto::errno::{self, Errno};
use clustix_proto::job::{self, Job, Start};
use clustix_proto::object::{Attempts, Draft};
use clustix_proto::once::Record;
use clustix_proto::process::{Group, MAX_CHILDREN, Pid, Process, Reply, name};

/// Who is to be a process: [`clustix_proto::process::Request::Spawn`].
pub(crate) struct Program {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) command: Vec<u8>,
    pub(crate) tty: Option<u32>,
    pub(crate) start: Option<Start>,
    pub(crate) personality: u64,
}

/// Most PIDs in a row that may turn out to be in use.
const MOST_TAKEN: u32 = 100;

impl<C: Cache> Server<C> {
    /// A PID that is neither a process nor a group now; its create settles the rest.
    async fn free_pid(&self) -> Result<Pid, Errno> {
        let mut bytes = Vec::new();
        for _ in 0..MOST_TAKEN {
            let pid = self.cursor.next(&self.cache);
            let process = self.cache.get(name::process(pid), &mut bytes).await?;
            let group = self.cache.get(name::group(pid), &mut bytes).await?;
            if process == Version::ABSENT && group == Version::ABSENT {
                return Ok(pid);
            }
        }
        Err(errno::EAGAIN)
    }

    pub(crate) async fn spawn(
        &self,
        record: Option<&Record>,
        program: Program,
    ) -> Result<Reply, Errno> {
        let Program { uid, gid, groups, mut command, tty, start, personality } = program;
        if groups.len() > GROUPS_MAX {
            return Err(errno::EINVAL);
        }
        command.truncate(COMMAND_MAX);
        let mut attempts = Attempts::new();
        loop {
            let mut d = Draft::once(&self.cache);
            if let Some(answer) = d.recall(record).await? {
                return answer;
            }
            let pid = self.free_pid().await?;
            let p = Process {
                pid,
                ppid: 1,
                pgid: pid,
                sid: pid,
                tty,
                node: self.cache.node(),
                incarnation: self.incarnation,
                personality,
                uid: [uid; 3],
                gid: [gid; 3],
                groups: groups.clone(),
                command: command.clone(),
                exit_signal: crate::signal::SIGCHLD,
                autoreap: false,
                no_cldstop: false,
                execed: false,
                claimed: true,
                job: start.map(|s| s.job),
                ..Process::init(wall_s())
            };
            if let Some(start) = start {
                let started = job::name(start.job);
                let mut job: Job = d.load(started).await?.ok_or(errno::ESTALE)?;
                if job.starts != start.starts || job.ending.is_some() {
                    return Err(errno::ESTALE);
                }
                if job.starts > 0 {
                    job.restarts = job.restarts.saturating_sub(1);
                }
                (job.pid, job.starts) = (pid, job.starts + 1);
                d.store(started, &job)?;
            }
            d.store(name::process(pid), &p)?;
            d.store(name::group(pid), &Group { sid: pid, members: vec![pid] })?;
            if d.commit_once(record, &Reply::Pid(pid)).await? {
                return Ok(Reply::Pid(pid));
            }
            attempts.again().await?;
        }
    }

    pub(crate) async fn fork(
        &self,
        parent: Pid,
        exit_signal: u8,
        request: u64,
    ) -> Result<Reply, Errno> {
        if exit_signal > 64 {
            return Err(errno::EINVAL);
        }
        let mut attempts = Attempts::new();
        loop {
            // With a request number, a retry after an unknown outcome finds its reply.
            let mut d = if request == 0 {
                Draft::once(&self.cache)
            } else {
                Draft::repeatable(&self.cache)
            };
            let mut p = self.own(&mut d, parent).await?;
            if let Some(reply) = recall(&p, request) {
                return Ok(reply);
            }
            if p.children.len() >= MAX_CHILDREN {
                return Err(errno::EAGAIN);
            }
            let pid = self.free_pid().await?;
            let child = Process {
                pid,
                ppid: parent,
                unreported: None,
                pending: 0,
                children: Vec::new(),
                start: wall_s(),
                exit_signal,
                children_us: (0, 0),
                execed: false,
                claimed: false,
                infos: Vec::new(),
                answered: Vec::new(),
                ..p.clone()
            };
            let reply = Reply::Pid(pid);
            p.children.push(pid);
            remember(&mut p, request, &reply);
            join(&mut d, child.pgid, child.sid, pid).await?;
            d.store(name::process(parent), &p)?;
            d.store(name::process(pid), &child)?;
            if d.commit().await? {
                return Ok(reply);
            }
            attempts.again().await?;
        }
    }
}
