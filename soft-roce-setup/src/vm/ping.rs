//! Whether machines reach each other over RDMA, and how fast: with rdma-core's own programs, so that what
//! fails is the link and not Clustix.

use super::run::{Bounds, Ending, capture};
use super::state::State;
use anyhow::{Context, Result, bail};
use std::thread;
use std::time::{Duration, Instant};

/// One pair's figures.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Pair {
    /// Who connects.
    pub from: u8,
    /// Who listens.
    pub to: u8,
    /// Microseconds per round of SEND, there and back, by the client's clock.
    pub round: f64,
    /// Rounds measured.
    pub rounds: u32,
}

/// Runs `server` on node `to` and `client` on node `from` until the client has ended well; its output.
///
/// A server says nothing once it listens; a client that comes before is refused at once, and goes again.
fn meet(
    state: &State,
    (from, to): (u8, u8),
    server: &[&str],
    client: &[&str],
    deadline: Instant,
) -> Result<String> {
    let bounds = || {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        Bounds { start: left, end: Some(left) }
    };
    thread::scope(|s| {
        let serving = s.spawn(|| capture(state, to, server, bounds()));
        let met = loop {
            let client = capture(state, from, client, bounds())?;
            match client.ending {
                Ending::Exited(0) => break client.out,
                Ending::Exited(_) if early(&client.err) && !serving.is_finished() => {}
                Ending::OutOfTime => bail!("no answer in time"),
                Ending::Lost => bail!("lost with node {from}"),
                Ending::Exited(n) => bail!("status {n}: {}", last(&client.err)),
                Ending::Refused(_, why) => bail!("{why}"),
            }
        };
        let served = serving.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        match served.ending {
            // Its status says nothing: rping's may see its buffers flushed before it sees the client leave, and
            // calls that an error. The client has checked what it was sent.
            Ending::Exited(_) => Ok(met),
            Ending::Lost => bail!("lost with node {to}"),
            Ending::OutOfTime => bail!("no answer in time"),
            Ending::Refused(_, why) => bail!("server: {why}"),
        }
    })
}

/// Whether a client was refused because nobody listens yet.
fn early(err: &str) -> bool {
    err.contains("Couldn't connect") || err.contains("REJECTED")
}

fn last(text: &str) -> &str {
    text.trim().lines().last().unwrap_or("")
}

/// Checks one pair: connects through rdma_cm and lets `rping` verify data that each READs and WRITEs; then times
/// `rounds` of `ibv_rc_pingpong`, waiting on events (a spin on one emulated CPU starves rxe).
///
/// # Errors
/// They do not reach each other within `bound`, or a check fails.
pub fn pair(state: &State, from: u8, to: u8, rounds: u32, bound: Duration) -> Result<Pair> {
    let begun = Instant::now();
    let deadline = begun + bound;
    let address = format!("10.77.0.{to}");
    let unreachable = || {
        format!(
            "node {from} does not reach node {to} over RDMA ({:.1} s)",
            begun.elapsed().as_secs_f32()
        )
    };
    let server = ["rping", "-s", "-a", &address, "-C", "10"];
    let client = ["rping", "-c", "-a", &address, "-C", "10", "-V"];
    meet(state, (from, to), &server, &client, deadline)
        .context("rping")
        .with_context(unreachable)?;
    let n = rounds.to_string();
    // The shell asks each node for its own index of the GID.
    let pingpong = format!("set -- $(rxe-gid); exec ibv_rc_pingpong -d rxe0 -g $1 -e -s 64 -n {n}");
    let client = format!("{pingpong} {address}");
    let out = meet(state, (from, to), &["sh", "-c", &pingpong], &["sh", "-c", &client], deadline)
        .context("ibv_rc_pingpong")
        .with_context(unreachable)?;
    let round =
        per_round(&out).with_context(|| format!("ibv_rc_pingpong printed no time: {out}"))?;
    Ok(Pair { from, to, round, rounds })
}

/// `1000 iters in 0.01 seconds = 12.35 usec/iter`.
fn per_round(out: &str) -> Option<f64> {
    let line = out.lines().find(|l| l.contains("usec/iter"))?;
    line.split(" = ").nth(1)?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_time_is_found() {
        let out = "8192 bytes in 0.01 seconds = 5.2 Mbit/sec\n1000 iters in 0.01 seconds = 12.35 usec/iter\n";
        assert_eq!(super::per_round(out), Some(12.35));
        assert_eq!(super::per_round("nothing"), None);
    }
}
