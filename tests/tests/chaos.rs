//! `clustix chaos` under two writers: nodes and protection domains are killed and paused at random, and
//! every file that was acknowledged is there afterwards.

use anyhow::{Result, ensure};
use clustix_tests::random::Random;
use clustix_tests::writer::Writers;
use clustix_tests::{Cluster, Program, leftover};
use std::sync::Arc;
use std::time::Duration;

const NODES: u8 = 3;

#[test]
fn nothing_acknowledged_is_lost_in_chaos() -> Result<()> {
    let mut random = Random::seeded("chaos");
    let all = std::env::var_os("CLUSTIX_TEST_ALL").is_some();
    let seconds: u64 = if all { 600 } else { 60 };
    let cluster = Arc::new(Cluster::up(NODES)?);
    let writers = Writers::start(&cluster, NODES, &mut random)?;
    let (seconds, seed) = (seconds.to_string(), random.number().to_string());
    let command =
        cluster.command(["chaos", "--seconds", &seconds, "--every", "1.5", "--seed", &seed]);
    let bound = Duration::from_secs(if all { 900 } else { 240 });
    let went = Program::start(command, b"")?.end_within(bound);
    // Also after a failure: who writes on holds the cluster, which would not be taken down.
    let written = writers.stop()?;
    let went = went?;
    println!("{}", went.text());
    ensure!(went.status == 0, "{}\n{}", went.errors(), cluster.cli(["logs"])?.text());
    ensure!(!went.text().contains("nodes killed 0,"), "no node was killed");
    ensure!(!went.text().contains("domains killed 0,"), "no domain was killed");
    let checked = written.check(&cluster)?;
    ensure!(checked > 0, "nothing was written");
    println!("chaos: {checked} acknowledged files, none lost; {} programs lost", written.lost());
    cluster.cli(["down"])?.ok()?;
    leftover::none(cluster.state())
}
