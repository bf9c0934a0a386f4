//! A job from its making to its removal: the object, what its program's descriptors lead to, its starts.
//!
//! Every step may be the last of this control domain; whoever comes next goes on from the object.

use super::Node;
use crate::wire::{Run, Stdio};
use clustix_ccache::cache::MAX_OBJECTS;
use clustix_pd::{CallError, exec};
use clustix_process::pipe::{self, End};
use clustix_proto::job::{self, Attendant, Command, Ending, Io, Job, Start};
use clustix_proto::object::{Attempts, Draft, load};
use clustix_proto::process::{self, Pid, Target, Which, name};
use clustix_proto::{Errno, console, errno, posix};

/// Longest that the personality may leave open whether it has started a program; less than a freeze waits.
const START_NS: u64 = 8_000_000_000;
/// Between two looks at that.
const LOOK_NS: u64 = 20_000_000;

/// Longest that the end of a session is tried; a node that cannot for so long is about to leave the cluster.
const LEAVE_NS: u64 = 60_000_000_000;
/// Pause before that is tried again.
const AGAIN_NS: u64 = 20_000_000;

const SIGHUP: u8 = 1;
const SIGCONT: u8 = 18;

/// The job's end of the pipe of descriptor `fd`.
const ENDS: [End; 3] = [End::Write, End::Read, End::Read];

/// The job as it is; ESRCH: there is none.
pub(crate) async fn read(node: &Node, number: u64) -> Result<Job, Errno> {
    let (found, _) = load::<_, Job>(&node.cache, job::name(number)).await?;
    found.ok_or(errno::ESRCH)
}

/// The job of this number: made, if it is not there. Its program is not started.
pub(crate) async fn make(node: &Node, run: &Run) -> Result<Job, Errno> {
    if let (Some(there), _) = load::<_, Job>(&node.cache, job::name(run.job)).await? {
        return Ok(there);
    }
    let io = match run.stdio {
        Stdio::Null => Io::Null,
        Stdio::Pipes => Io::Pipes,
        Stdio::Terminal(winsize) => {
            let reply = node.ask_console(&console::Request::New { winsize, job: run.job }).await?;
            Io::Terminal(u32::try_from(reply.value).map_err(|_| errno::EIO)?)
        }
    };
    let new = Job {
        pid: 0,
        starts: 0,
        io,
        // As `attend` would have it.
        attendant: (!run.kept).then(|| node.attendant()),
        turn: if run.kept { 0 } else { run.turn },
        ending: None,
        kept: run.kept,
        restarts: run.restarts,
        command: (run.restarts > 0).then(|| run.command.clone()),
    };
    let made = put(node, run.job, &new).await;
    if let Io::Terminal(tty) = io
        && !matches!(&made, Ok(there) if there.io == io)
    {
        // One that cannot be removed now goes as one without a job.
        let _ = node.ask_console(&console::Request::Remove { tty, job: run.job }).await;
    }
    made
}

/// Puts a new job and its pipes; the one that is there, if one is.
async fn put(node: &Node, number: u64, new: &Job) -> Result<Job, Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::repeatable(&node.cache);
        if let Some(there) = d.load(job::name(number)).await? {
            return Ok(there);
        }
        d.store(job::name(number), new)?;
        if new.io == Io::Pipes {
            for (fd, end) in (0..).zip(ENDS) {
                d.store(name::pipe(job::pipe(number, fd)), &pipe::of_job(end))?;
            }
        }
        if d.commit().await? {
            return Ok(new.clone());
        }
        attempts.again().await?;
    }
}

/// Starts the job's program on this node, unless somebody else does: the job as it is then. Of the personality's
/// errors ESTALE is none.
pub(crate) async fn start(
    node: &Node,
    number: u64,
    job: &Job,
    command: &Command,
) -> Result<Job, Errno> {
    let Command { argv, env, cwd, uid, gid } = command.clone();
    let request = posix::Request::Spawn {
        argv,
        env,
        cwd,
        uid,
        gid,
        groups: Vec::new(),
        stdio: match job.io {
            Io::Pipes => posix::Stdio::Pipes([0, 1, 2].map(|fd| job::pipe(number, fd))),
            Io::Terminal(tty) => posix::Stdio::Tty(tty),
            Io::Null => posix::Stdio::Null,
        },
        start: Some(Start { job: number, starts: job.starts }),
    };
    let until = exec::now_ns() + START_NS;
    loop {
        match clustix_pd::rpc::<_, posix::Response>(&node.posix, &request).await {
            Ok(Ok(_) | Err(errno::ESTALE)) | Err(CallError::Gone) => {}
            Ok(Err(e)) => return Err(e),
            Err(CallError::Busy) => return Err(errno::EAGAIN),
            Err(CallError::TooLarge) => return Err(errno::E2BIG),
            Err(CallError::Revoked | CallError::Malformed) => return Err(errno::EIO),
        }
        // Whether it was, by whomever, the job tells, and of a dead personality nobody else.
        let now = read(node, number).await?;
        if now.starts != job.starts {
            return Ok(now);
        }
        if exec::now_ns() >= until {
            return Err(errno::EIO);
        }
        exec::sleep_until(exec::now_ns() + LOOK_NS).await;
    }
}

/// This control domain attends to the job from now on, in this turn, or the next. ESTALE: another has come since;
/// ESRCH: the job is ending.
pub(crate) async fn attend(node: &Node, number: u64, turn: Option<u64>) -> Result<Job, Errno> {
    let me = Some(node.attendant());
    change(node, number, |job| match turn {
        _ if job.ending.is_some() => Err(errno::ESRCH),
        // Committed before, though nobody could say so.
        Some(turn) if (job.turn, job.attendant) == (turn, me) => Ok(()),
        Some(turn) if turn <= job.turn => Err(errno::ESTALE),
        turn => {
            job.attendant = me;
            job.turn = turn.unwrap_or(job.turn + 1);
            Ok(())
        }
    })
    .await
}

/// Changes the job, unless that makes no difference; ESRCH: there is none.
async fn change(
    node: &Node,
    number: u64,
    change: impl Fn(&mut Job) -> Result<(), Errno>,
) -> Result<Job, Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::repeatable(&node.cache);
        let old: Job = d.load(job::name(number)).await?.ok_or(errno::ESRCH)?;
        let mut job = old.clone();
        change(&mut job)?;
        if job == old {
            return Ok(job);
        }
        d.store(job::name(number), &job)?;
        if d.commit().await? {
            return Ok(job);
        }
        attempts.again().await?;
    }
}

/// The job goes on when nobody attends to it.
pub(crate) async fn keep(node: &Node, number: u64) -> Result<(), Errno> {
    change(node, number, |job| {
        job.kept = true;
        Ok(())
    })
    .await
    .map(drop)
}

/// A signal to the program's process group.
pub(crate) async fn signal(node: &Node, pid: Pid, number: u8) -> Result<(), Errno> {
    let request = process::Request::Kill { sender: 0, target: Target::Group(pid), signal: number };
    match node.ask_process(&request).await {
        // One that has ended needs none.
        Ok(_) | Err(errno::ESRCH) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Nobody attends to the job any more, as it was seen: one that is kept goes on; any other is told so, and removed.
/// ESTALE: it is not as it was seen, and nothing was done. To be tried again after other errors.
pub(crate) async fn leave(node: &Node, number: u64, seen: &Job) -> Result<(), Errno> {
    if !seen.kept {
        return end(node, number, seen, Ending::HangUp).await;
    }
    if let Io::Terminal(tty) = seen.io {
        let turn = seen.turn;
        let request = console::Request::Attach { tty, job: number, turn, attached: false };
        match node.ask_console(&request).await {
            Ok(_) | Err(errno::ENXIO) => {}
            Err(e) => return Err(e),
        }
    }
    change(node, number, |job| {
        if job.turn == seen.turn {
            job.attendant = None;
        }
        Ok(())
    })
    .await
    .map(drop)
}

/// Nobody attends to the job, as it was seen, though somebody should: he has time to come.
pub(crate) async fn orphan(node: &Node, number: u64, seen: &Job) -> Result<(), Errno> {
    change(node, number, |job| {
        if let Some(attendant) = job.attendant.as_mut().filter(|_| job.turn == seen.turn) {
            attendant.life = 0;
        }
        Ok(())
    })
    .await
    .map(drop)
}

/// Ends the job, if it still is as it was seen (else ESTALE), and what its program has of it. To be tried again after
/// other errors, by whomever: the object goes last.
pub(crate) async fn end(node: &Node, number: u64, seen: &Job, how: Ending) -> Result<(), Errno> {
    let ending = change(node, number, |job| match job.ending {
        Some(_) => Ok(()),
        None if (job.turn, job.starts) != (seen.turn, seen.starts) => Err(errno::ESTALE),
        None => {
            job.ending = Some(how);
            Ok(())
        }
    });
    let hang_up = match ending.await {
        Ok(job) => job.ending == Some(Ending::HangUp),
        Err(errno::ESRCH) => return Ok(()),
        Err(e) => return Err(e),
    };
    if let Io::Terminal(tty) = seen.io
        && hang_up
    {
        let hangup = console::Request::Hangup { tty, job: number };
        match node.ask_console(&hangup).await {
            Ok(_) | Err(errno::ENXIO) => {}
            Err(e) => return Err(e),
        }
    }
    if seen.starts > 0 && hang_up {
        signal(node, seen.pid, SIGHUP).await?;
        signal(node, seen.pid, SIGCONT).await?;
    }
    if let Io::Terminal(tty) = seen.io {
        node.ask_console(&console::Request::Remove { tty, job: number }).await?;
    }
    remove(node, number, seen.io).await
}

/// Removes the job, and first what it holds of pipes.
async fn remove(node: &Node, number: u64, io: Io) -> Result<(), Errno> {
    let mut attempts = Attempts::new();
    'again: loop {
        let mut d = Draft::repeatable(&node.cache);
        if io == Io::Pipes {
            for fd in 0..3 {
                pipe::disown(&mut d, job::pipe(number, fd)).await?;
                // Mostly all of them are one transaction.
                if d.objects() + pipe::DISOWNED + 1 > MAX_OBJECTS {
                    if !d.commit().await? {
                        attempts.again().await?;
                        continue 'again;
                    }
                    d = Draft::repeatable(&node.cache);
                }
            }
        }
        if d.load_bytes(job::name(number)).await?.is_some() {
            d.remove(job::name(number));
        }
        if d.commit().await? {
            return Ok(());
        }
        attempts.again().await?;
    }
}

/// Does what ends a session, again until it is done or the job is another's.
pub(crate) async fn finish(node: &Node, what: &str, end: impl AsyncFn() -> Result<(), Errno>) {
    let until = exec::now_ns() + LEAVE_NS;
    loop {
        match end().await {
            Ok(()) | Err(errno::ESTALE | errno::ESRCH) => return,
            Err(e) if exec::now_ns() >= until => {
                return tracing::error!("node {}: {what} is left over: {e}", node.slot);
            }
            Err(_) => exec::sleep_until(exec::now_ns() + AGAIN_NS).await,
        }
    }
}

/// Takes the status of a program that has ended; its record goes by itself after a while if this fails.
pub(crate) async fn reap(node: &Node, pid: Pid) {
    let request = process::Request::Wait {
        parent: 1,
        which: Which::Pid(pid),
        options: 0,
        keep: false,
        request: 0,
    };
    let _ = node.ask_process(&request).await;
}

/// Says which life of this node's control serves.
pub(crate) async fn appear(node: &Node) -> Result<(), Errno> {
    let mut attempts = Attempts::new();
    loop {
        let mut d = Draft::repeatable(&node.cache);
        let known: Option<Attendant> = d.load(job::control(node.slot)).await?;
        if known == Some(node.attendant()) {
            return Ok(());
        }
        d.store(job::control(node.slot), &node.attendant())?;
        d.commit().await?;
        attempts.again().await?;
    }
}

/// The position up to which the program's input was taken, as its pipe or terminal counts; `None`: it takes none.
pub(crate) async fn typed(node: &Node, number: u64, job: &Job) -> Result<Option<u64>, Errno> {
    match job.io {
        Io::Null => Ok(None),
        Io::Pipes => {
            let object = name::pipe(job::pipe(number, 0));
            let (pipe, _) = load::<_, process::Pipe>(&node.cache, object).await?;
            let open =
                pipe.filter(|p| p.writers.iter().any(|e| e.node == process::Process::NOWHERE));
            Ok(open.map(|p| p.written))
        }
        Io::Terminal(tty) => {
            let (tty, _) = load::<_, console::Tty>(&node.cache, console::tty(tty)).await?;
            Ok(tty.map(|t| t.typed))
        }
    }
}

/// Whether any node of the view has this life of control.
pub(crate) async fn lives(
    node: &Node,
    attendant: Attendant,
    members: &[(u8, u64)],
) -> Result<bool, Errno> {
    if !members.contains(&(attendant.node, attendant.incarnation)) {
        return Ok(false);
    }
    let (serves, _) = load::<_, Attendant>(&node.cache, job::control(attendant.node)).await?;
    Ok(serves == Some(attendant))
}
