//! Watches over the jobs whose objects have their primary here: those that nobody attends to any more, and those
//! whose programs are to be started again.

use super::streams::lock;
use super::{Node, job};
use clustix_ccache::cache::Cache;
use clustix_ccache::name::Name;
use clustix_ccache::set;
use clustix_pd::exec;
use clustix_proto::console::{self, Tty};
use clustix_proto::job::{self as jobs, Ending, Io, Job};
use clustix_proto::object::load;
use clustix_proto::process::{Process, name};
use clustix_proto::{Errno, errno};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Between two looks.
const LOOK_NS: u64 = 250_000_000;
/// A client that has lost its node comes back within this time. `clustix run` tries for less
/// (`cmd/attended.rs`).
const GRACE_NS: u64 = 40_000_000_000;
/// Most pages of one listing.
const PAGES: usize = 4096;

/// What becomes of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    Nothing,
    /// Its program is started again, here.
    Start,
    /// Whoever attended is not coming back.
    Leave,
    /// Nothing of it is left that anybody could ask for.
    Remove,
}

/// `program`: its process, if it was ever started and its record is still there; not asked for where nothing follows
/// from it, since somebody should attend and it is not to be started again. `attended`: by a control domain that is
/// there. `alone_ns`: for how long nobody has attended who should.
fn decide(job: &Job, program: Option<&Process>, attended: bool, alone_ns: u64) -> Deed {
    if job.ending.is_some() {
        return Deed::Remove;
    }
    if program.is_some_and(|p| job.starts_again(p)) {
        return Deed::Start;
    }
    if attended {
        return Deed::Nothing;
    }
    match (job.attendant, job.starts) {
        // Its record stays for a while after its end, for whoever wants to know how it ended.
        (None, 1..) if program.is_none() => Deed::Remove,
        (None, 0) if alone_ns > GRACE_NS => Deed::Remove,
        (Some(_), _) if alone_ns > GRACE_NS => Deed::Leave,
        _ => Deed::Nothing,
    }
}

/// Since when nobody has attended to what should be.
#[derive(Default)]
struct Alone(BTreeMap<Name, u64>);

/// Jobs that are being started again, each by a thread of its own: a personality that hangs holds up no other.
type Starting = Arc<Mutex<BTreeSet<u64>>>;

impl Alone {
    fn for_ns(&mut self, name: Name, alone: bool, now: u64) -> u64 {
        if !alone {
            self.0.remove(&name);
            return 0;
        }
        now.saturating_sub(*self.0.entry(name).or_insert(now))
    }
}

/// Looks for ever. A thread of control's.
pub(crate) fn watch(node: &Arc<Node>) {
    exec::block_on(async {
        let mut alone = Alone::default();
        let starting = Starting::default();
        let mut known = false;
        loop {
            if !known {
                known = job::appear(node).await.is_ok();
            }
            if known && let Err(e) = pass(node, &mut alone, &starting).await {
                tracing::debug!("the jobs were not all looked at: {e}");
            }
            exec::sleep_until(exec::now_ns() + LOOK_NS).await;
        }
    })
}

/// All objects of a set whose primary is here.
async fn local(node: &Node, set: u16) -> Result<BTreeSet<Name>, Errno> {
    let mut names = BTreeSet::new();
    let mut after = None;
    for _ in 0..PAGES {
        let page = node.cache.list(set, after).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        names.extend(page.into_iter().map(|(name, _)| name));
    }
    Ok(names)
}

async fn pass(node: &Arc<Node>, alone: &mut Alone, starting: &Starting) -> Result<(), Errno> {
    let there = local(node, set::JOB).await?;
    let terminals = local(node, set::TTY).await?;
    alone.0.retain(|name, _| there.contains(name) || terminals.contains(name));
    if there.is_empty() && terminals.is_empty() {
        return Ok(());
    }
    let members = node.cache.status().await?.members;
    let mut first_error = Ok(());
    for name in there {
        let done = look(node, name, &members, alone, starting).await;
        first_error = first_error.and(done);
    }
    for name in terminals {
        let done = look_at_terminal(node, name, alone).await;
        first_error = first_error.and(done);
    }
    first_error
}

async fn look(
    node: &Arc<Node>,
    object: Name,
    members: &[(u8, u64)],
    alone: &mut Alone,
    starting: &Starting,
) -> Result<(), Errno> {
    let number = object.id() as u64;
    let (Some(job), _) = load::<_, Job>(&node.cache, object).await? else { return Ok(()) };
    // A process's record that is looked at here is one more to tell of each of its changes.
    let program = match job.starts {
        1.. if job.restarts > 0 || job.attendant.is_none() => {
            load::<_, Process>(&node.cache, name::process(job.pid)).await?.0
        }
        _ => None,
    };
    let attended = match job.attendant {
        // Before the start only by his word, who may have given up.
        Some(attendant) => job.starts > 0 && job::lives(node, attendant, members).await?,
        None => false,
    };
    let missed = !attended && (job.attendant.is_some() || job.starts == 0);
    let alone_ns = alone.for_ns(object, missed, exec::now_ns());
    let done = match decide(&job, program.as_ref(), attended, alone_ns) {
        Deed::Nothing => Ok(()),
        Deed::Leave => job::leave(node, number, &job).await,
        Deed::Remove => job::end(node, number, &job, Ending::Over).await,
        Deed::Start => {
            if lock(starting).insert(number) {
                let start = {
                    let (node, starting) = (node.clone(), starting.clone());
                    move || {
                        exec::block_on(start_again(&node, number, &job));
                        lock(&starting).remove(&number);
                    }
                };
                if let Err(e) = std::thread::Builder::new().name("start".into()).spawn(start) {
                    tracing::warn!("no thread to start a program again: {e}");
                    lock(starting).remove(&number);
                }
            }
            Ok(())
        }
    };
    match done {
        // It is not any more as it was seen.
        Err(errno::ESTALE | errno::ESRCH) => Ok(()),
        done => done,
    }
}

async fn start_again(node: &Node, number: u64, job: &Job) {
    let Some(_pass) = node.gate.enter() else { return };
    let Some(command) = &job.command else { return };
    let started = async {
        if let Io::Terminal(tty) = job.io {
            let release = console::Request::Release { tty, session: job.pid };
            node.ask_console(&release).await?;
        }
        job::start(node, number, job, command).await
    };
    match started.await {
        Ok(now) => tracing::info!("program {} is started again as {}", job.pid, now.pid),
        Err(e) => tracing::warn!("program {} could not be started again: {e}", job.pid),
    }
}

/// A terminal whose job was never made, or is gone, is nobody's.
async fn look_at_terminal(node: &Node, object: Name, alone: &mut Alone) -> Result<(), Errno> {
    let (Some(tty), _) = load::<_, Tty>(&node.cache, object).await? else { return Ok(()) };
    let (job, _) = load::<_, Job>(&node.cache, jobs::name(tty.job)).await?;
    if alone.for_ns(object, job.is_none(), exec::now_ns()) > GRACE_NS {
        let number = object.id() as u32;
        node.ask_console(&console::Request::Hangup { tty: number, job: tty.job }).await?;
        node.ask_console(&console::Request::Remove { tty: number, job: tty.job }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clustix_proto::job::{Attendant, Command};
    use clustix_proto::process::{State, status};

    fn job() -> Job {
        Job {
            pid: 7,
            starts: 1,
            io: Io::Null,
            attendant: Some(Attendant { node: 1, incarnation: 2, life: 3 }),
            turn: 1,
            ending: None,
            kept: false,
            restarts: 0,
            command: None,
        }
    }

    fn ended(status: i32, verdict: Option<&str>) -> Process {
        Process {
            state: State::Zombie(status),
            verdict: verdict.map(str::to_owned),
            ..Process::init(0)
        }
    }

    #[test]
    fn who_lost_its_attendant_has_time_to_be_found() {
        let running = Process::init(0);
        for program in [Some(&running), None] {
            assert_eq!(decide(&job(), program, true, 0), Deed::Nothing);
            assert_eq!(decide(&job(), program, false, GRACE_NS), Deed::Nothing);
            assert_eq!(decide(&job(), program, false, GRACE_NS + 1), Deed::Leave);
        }
    }

    #[test]
    fn a_kept_job_stays_until_its_program_is_forgotten() {
        let kept = Job { attendant: None, kept: true, ..job() };
        assert_eq!(decide(&kept, Some(&Process::init(0)), false, 0), Deed::Nothing);
        assert_eq!(decide(&kept, Some(&ended(0, None)), false, 0), Deed::Nothing);
        assert_eq!(decide(&kept, None, false, 0), Deed::Remove);
    }

    #[test]
    fn what_is_ending_is_removed_whatever_else() {
        let ending = Job { ending: Some(Ending::HangUp), ..job() };
        for (program, attended) in [(None, true), (Some(Process::init(0)), false)] {
            assert_eq!(decide(&ending, program.as_ref(), attended, 0), Deed::Remove);
        }
    }

    #[test]
    fn a_job_that_was_never_started_goes_after_a_while() {
        let new = Job { pid: 0, starts: 0, attendant: None, ..job() };
        assert_eq!(decide(&new, None, false, GRACE_NS), Deed::Nothing);
        assert_eq!(decide(&new, None, false, GRACE_NS + 1), Deed::Remove);
    }

    #[test]
    fn what_was_lost_is_started_again_so_often_and_what_ended_is_not() {
        let command = Some(Command { argv: vec![], env: vec![], cwd: vec![], uid: 0, gid: 0 });
        let again = Job { restarts: 1, command, ..job() };
        let lost = ended(status::LOST, Some("lost with node 2"));
        for attended in [true, false] {
            assert_eq!(decide(&again, Some(&lost), attended, 0), Deed::Start);
            for program in [ended(status::LOST, None), ended(0, None), Process::init(0)] {
                assert_eq!(decide(&again, Some(&program), attended, 0), Deed::Nothing);
            }
            assert_eq!(decide(&job(), Some(&lost), attended, 0), Deed::Nothing);
            let spent = Job { restarts: 0, ..again.clone() };
            assert_eq!(decide(&spent, Some(&lost), attended, 0), Deed::Nothing);
        }
    }

    #[test]
    fn time_alone_counts_from_the_first_look_that_saw_it() {
        let mut alone = Alone::default();
        let name = jobs::name(5);
        assert_eq!(alone.for_ns(name, true, 100), 0);
        assert_eq!(alone.for_ns(name, true, 130), 30);
        assert_eq!(alone.for_ns(name, false, 140), 0);
        assert_eq!(alone.for_ns(name, true, 150), 0);
    }
}
