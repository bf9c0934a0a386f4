//! The command line, as clap sees it. Long help teaches by example.

use crate::state::{MAX_NODES, WITNESS};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs several nodes as one Unix computer that survives losing any of them.
#[derive(Parser, Debug)]
#[command(
    name = "clustix",
    version,
    about = "Runs several nodes as one Unix computer that survives losing any of them",
    long_about = "Clustix runs several nodes as one Unix computer that survives losing any of them.\n\n\
        Every node is a tree of sandboxed processes on this machine. Unmodified static Linux x86-64 \
        programs run on any node and see one file tree, one set of PIDs. Everything they write is \
        kept in the memory of several nodes, so a node can be killed without losing a file.\n\n\
        A first session:\n\n  \
          clustix up --nodes 3                      start a cluster of three nodes\n  \
          clustix import /bin/busybox /bin/busybox  bring a program in\n  \
          clustix run -- sh -c 'echo hi > /a'       run it, on any node\n  \
          clustix run --node 2 -- cat /a            the same file, from another node\n  \
          clustix kill-node 0                       SIGKILL one node\n  \
          clustix run -- cat /a                     the file is still there\n  \
          clustix start-node 0                      the node rejoins\n  \
          clustix down                              stop; files are kept for the next `up`",
    after_help = "State is kept in $CLUSTIX_STATE, else $XDG_STATE_HOME/clustix, else \
        ~/.local/state/clustix, one folder per cluster. Every command exits 0 on success, 1 on failure \
        and 2 for a wrong command line; `run` exits as its program did.",
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Which cluster, where there are several: 1 to 32 of A-Z a-z 0-9 - _
    #[arg(long, global = true, default_value = "default", value_name = "CLUSTER")]
    pub name: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Start a cluster; returns once it serves
    #[command(
        long_about = "Starts a cluster of N nodes on this machine and returns once it serves.\n\n\
        If the last `down` left a snapshot, its files are restored. If anything fails, or you interrupt \
        it, everything it started is stopped again.\n\n\
        With --hosts it starts one node of a cluster of several hosts, this host's: the first time, all \
        nodes of the file find each other before any serves; later it joins. Such a cluster keeps no \
        snapshot.\n\n\
        Examples:\n  \
          clustix up --nodes 3\n  \
          clustix up --nodes 3 --name test --memory 512M\n  \
          clustix up --nodes 3 --fresh      start empty; the snapshot is discarded\n  \
          clustix up --nodes 2 --witness    one of the two can be lost\n  \
          clustix up --hosts lab.toml --node 2\n  \
          clustix up --hosts lab.toml --witness"
    )]
    Up(Up),
    /// Stop the cluster; its files are kept for the next `up`
    #[command(
        long_about = "Stops the cluster. Programs get SIGTERM, and SIGKILL 5 seconds later; those \
        that were running are listed. Then files are written to a checksummed snapshot, which the next \
        `up` restores. No process is left, and no file but the snapshot and cluster.json.\n\n\
        Examples:\n  clustix down\n  clustix down --discard   don't write a snapshot: what changed is lost"
    )]
    Down(Down),
    /// List the nodes
    Nodes(Listing),
    /// Say whether a node can be lost now, and what is being rebuilt
    #[command(
        long_about = "Says whether a node can be lost now without losing anything, and what is \
        being rebuilt. Exit status 0 if a node can be lost, 3 if not."
    )]
    Status(Listing),
    /// Run a program in the cluster
    #[command(
        long_about = "Runs a program in the cluster, connected to this terminal or pipe as a local \
        command is: stdin, stdout, stderr, Ctrl-C, exit status (128+N if signal N ended it; 137 and \
        \"lost with node K\" if its node died).\n\nIf this command is killed or its terminal \
        closes, the program gets SIGHUP. If the node's own part of the connection is lost, the command goes \
        on with another node's, and no byte is lost or doubled.\n\n\
        The program is a file of the cluster (see `clustix import`), looked up in PATH \
        (/bin:/usr/bin:/sbin:/usr/sbin) unless it has a slash.\n\n\
        Examples:\n  \
          clustix run -- sh -c 'echo hi > /a; cat /a'\n  \
          clustix run --node 2 -- cat /a\n  \
          seq 5 | clustix run -- sort -r > sorted\n  \
          clustix run -it -- sh              an interactive shell on a terminal\n  \
          clustix run --detach -- sleep 100  prints the PID and returns\n  \
          clustix run --restart -- make      again on another node when its node is lost\n  \
          clustix run --env LANG=C --cwd /tmp --user 1000:1000 -- id"
    )]
    Run(Run),
    /// Attend to a program that runs, in place of who did
    #[command(
        long_about = "Connects this terminal, or this command's input and output, to a program that \
        `clustix run` started: one that runs detached, or one whose command is elsewhere, which ends \
        then. It begins with what the program's terminal, or pipes, have kept.\n\n\
        On a terminal Ctrl-] detaches again, and the program goes on. If this command is killed, a \
        program that was started with --detach goes on; any other gets SIGHUP.\n\n\
        Examples:\n  clustix run -t --detach -- sh   prints the PID\n  clustix attach 1025"
    )]
    Attach(Attach),
    /// List the programs that run in the cluster
    Ps(Listing),
    /// Send a signal to a program (default TERM)
    #[command(
        long_about = "Sends a signal to a process of the cluster; a negative PID stands for a process \
        group.\n\nExamples:\n  clustix kill 1025\n  clustix kill -9 1025\n  clustix kill -HUP 1025\n  \
        clustix kill -INT -- -1025"
    )]
    Kill(Kill),
    /// Copy a file or tree of this machine into the cluster
    #[command(
        long_about = "Copies a file or a tree of this machine into the cluster: owners, modes, times, \
        symbolic and hard links are kept. CLUSTERPATH is the name the copy gets; missing parent \
        directories are made. Files that exist are replaced. Devices, sockets and FIFOs are skipped \
        with a warning.\n\n\
        Examples:\n  clustix import /bin/busybox /bin/busybox\n  clustix import ./data /srv/data"
    )]
    Import(Import),
    /// Copy a file or tree of the cluster out to this machine
    #[command(
        long_about = "Copies a file or a tree of the cluster to this machine: modes, times, symbolic \
        and hard links are kept; owners too if you are root. HOSTPATH is the name the copy gets.\n\n\
        Examples:\n  clustix export /srv/data ./data-back\n  clustix export /a ./a"
    )]
    Export(Export),
    /// List the objects of the cluster-cache
    #[command(
        long_about = "Lists the objects of the cluster-cache: set, key, size, version, holder, sharers \
        and replicas.\n\nExamples:\n  clustix objects\n  clustix objects --set inode\n  \
        clustix objects --set page --limit 20 --json"
    )]
    Objects(Objects),
    /// Check every invariant of the file tree
    #[command(
        long_about = "Checks every invariant of the file tree: each name leads to a file, each file has as \
        many names as it says, nothing is left that nothing refers to. It presumes that nothing changes \
        meanwhile. Exit status 1, and a line for each, if something is wrong."
    )]
    Fsck,
    /// List the protection domains of every node
    Pds(Listing),
    /// Kill a node's whole process tree with SIGKILL, or the witness
    #[command(
        long_about = "Kills a node's whole process tree with SIGKILL, as a crash would: nothing is \
        announced to the other nodes. `clustix start-node K` brings it back.\n\n\
        Examples:\n  clustix kill-node 1\n  clustix kill-node witness"
    )]
    KillNode(Node),
    /// Start a node that is down; it joins the cluster again, empty. Or the witness
    #[command(
        long_about = "Starts a node that is down; it joins the cluster again, empty. `start-node witness` \
        starts the witness, also of a cluster that had none: a process that holds nothing and votes \
        where the nodes are even in number, so that one of two goes on without the other.\n\n\
        Examples:\n  clustix start-node 1\n  clustix start-node witness"
    )]
    StartNode(Node),
    /// Make a node the primary of shards: their objects are written from there at the least cost
    #[command(
        long_about = "Makes a node the primary of shards of the cluster-cache, so that their objects \
        are created, and written, at the least cost there. The node must have a complete copy of each \
        of them. What is asked for stands until a node joins or is lost; then the nodes share again, \
        as they do by themselves.\n\n\
        Examples:\n  clustix rehome 2\n  clustix rehome 2 --shards 0-99\n  \
        clustix nodes    shows how many shards each node is primary of"
    )]
    Rehome(Rehome),
    /// Kill and pause nodes and protection domains at random, for a time
    #[command(
        long_about = "Kills and pauses nodes and protection domains of this machine at random, for a time. At \
        most one node is down at a time, and only while `clustix status` says that one can be lost; what \
        was paused goes on and what was killed is started again before the command ends. What is done \
        when follows from the seed, to whom, from the seed and from who is there. Exit status 1 if the \
        cluster is not whole within a minute of the end.\n\n\
        Examples:\n  clustix chaos\n  clustix chaos --seconds 600 --every 2 --seed 7\n  \
        clustix chaos --victims pds"
    )]
    Chaos(Chaos),
    /// Print the nodes' logs
    Logs(Logs),
    /// Print counters as Prometheus text
    Metrics(Metrics),
    /// The microkernel of one node (started by `up` and `start-node`)
    #[command(hide = true)]
    Node(NodeProcess),
    /// One protection domain (started by the microkernel)
    #[command(hide = true)]
    Pd(PdProcess),
    /// Standard input to standard output (started by a node: its domains' log)
    #[command(hide = true)]
    Log,
}

/// `clustix up`.
#[derive(Args, Debug)]
pub struct Up {
    /// Number of nodes, 1 to 16. With 3 or more, one can be lost at any time
    #[arg(
        long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16),
        required_unless_present = "hosts", conflicts_with = "hosts"
    )]
    pub nodes: Option<u8>,
    /// The hosts of a cluster of several, a TOML file: this host's node is started (see README.md)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "fresh"])]
    pub hosts: Option<PathBuf>,
    /// Which node of the file this host is
    #[arg(
        long, value_name = "K", requires = "hosts", conflicts_with = "nodes",
        required_unless_present_any = ["nodes", "witness"]
    )]
    pub node: Option<u8>,
    /// Start a witness too, a process that holds nothing and votes where the nodes are even in number, so that
    /// one of two can be lost; with --hosts: this host is the file's witness
    #[arg(long, conflicts_with = "node")]
    pub witness: bool,
    /// Memory budget of each node, such as 512M or 2G (default: a quarter of this machine's memory,
    /// divided by the number of nodes)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Start empty, and discard what the last `down` kept
    #[arg(long)]
    pub fresh: bool,
}

/// `clustix down`.
#[derive(Args, Debug)]
pub struct Down {
    /// Don't write a snapshot: what changed since the last `up` is lost (an earlier snapshot stays)
    #[arg(long)]
    pub discard: bool,
    /// Print the programs that were ended as JSON
    #[arg(long)]
    pub json: bool,
}

/// A command that lists.
#[derive(Args, Debug)]
pub struct Listing {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `clustix run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Node to run on (default: the one with the fewest programs)
    #[arg(long, value_name = "K")]
    pub node: Option<u8>,
    /// Keep standard input open even without a terminal (it always is; accepted for habit's sake)
    #[arg(short = 'i')]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(short = 't')]
    pub tty: bool,
    /// Print the program's PID and return; its descriptors 0, 1 and 2 are /dev/null, with -t a terminal
    /// (`clustix attach`)
    #[arg(long, conflicts_with = "interactive")]
    pub detach: bool,
    /// Start the program again, from its beginning and on another node, when it is lost with its node: at most N
    /// times, or as often as need be
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "4294967295")]
    pub restart: Option<u32>,
    /// Set a variable (NAME=VALUE), or pass this shell's on (NAME); may be repeated
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory in the cluster
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub cwd: String,
    /// User and group, by number
    #[arg(long, value_name = "UID[:GID]", default_value = "0:0", value_parser = user)]
    pub user: (u32, u32),
    /// Program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// `clustix attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// The program's PID, or one of its children's
    pub pid: u32,
}

/// `clustix kill`.
#[derive(Args, Debug)]
pub struct Kill {
    /// [-SIG] PID: a signal by name or number, then the process
    #[arg(required = true, num_args = 1..=3, allow_hyphen_values = true, value_name = "[-SIG] PID")]
    pub words: Vec<String>,
}

/// `clustix import`.
#[derive(Args, Debug)]
pub struct Import {
    /// File or directory of this machine
    pub host: PathBuf,
    /// Absolute path in the cluster
    pub cluster: PathBuf,
}

/// `clustix export`.
#[derive(Args, Debug)]
pub struct Export {
    /// Absolute path in the cluster
    pub cluster: PathBuf,
    /// File or directory of this machine; must not exist
    pub host: PathBuf,
}

/// `clustix objects`.
#[derive(Args, Debug)]
pub struct Objects {
    /// Only this set, such as inode, page, process
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A command on one node, or on the witness.
#[derive(Args, Debug)]
pub struct Node {
    /// Node number, from 0, or `witness`
    #[arg(value_name = "K|witness", value_parser = node)]
    pub node: u8,
}

/// `clustix rehome`.
#[derive(Args, Debug)]
pub struct Rehome {
    /// Node number, from 0
    #[arg(value_name = "K")]
    pub node: u8,
    /// Shards by number: one, or the first and the last
    #[arg(long, value_name = "A[-B]", value_parser = shards, default_value = "0-1023")]
    pub shards: (u16, u16),
}

/// Whom `clustix chaos` hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Victims {
    /// Nodes and protection domains.
    All,
    /// Nodes.
    Nodes,
    /// Protection domains, but for those whose end is their node's.
    Pds,
}

/// `clustix chaos`.
#[derive(Args, Debug)]
pub struct Chaos {
    /// For how long, in seconds, 1 to 86400
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Mean time between two deeds, in seconds, 0.1 to 3600
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = every)]
    pub every: f64,
    /// The seed (default: another one each time; it is printed)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Whom it hits
    #[arg(long, value_enum, default_value_t = Victims::All)]
    pub victims: Victims,
}

fn every(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.1..=3600.0).contains(&s) => Ok(s),
        _ => Err("write seconds from 0.1 to 3600".to_owned()),
    }
}

/// `clustix logs`.
#[derive(Args, Debug)]
pub struct Logs {
    /// Only this node's, or the witness's
    #[arg(long, value_name = "K|witness", value_parser = node)]
    pub node: Option<u8>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `clustix metrics`.
#[derive(Args, Debug)]
pub struct Metrics {
    /// Only this node's
    #[arg(long, value_name = "K")]
    pub node: Option<u8>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `clustix node`.
#[derive(Args, Debug)]
pub struct NodeProcess {
    /// The cluster's state folder.
    #[arg(long)]
    pub state: PathBuf,
    /// Slot.
    #[arg(long)]
    pub slot: u8,
    /// Incarnation, counted by the state folder's cluster.json.
    #[arg(long)]
    pub incarnation: u64,
}

/// `clustix pd`.
#[derive(Args, Debug)]
pub struct PdProcess {
    /// Role, as in the system description.
    pub role: String,
}

/// Parses a size: a number with an optional K, M, G or T (powers of 1024).
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1u64,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        other => return Err(format!("unknown unit {other:?}; write for example 512M or 2G")),
    };
    let number: u64 =
        digits.parse().map_err(|_| "not a size; write for example 512M or 2G".to_owned())?;
    let bytes = number.checked_mul(unit).ok_or("too large")?;
    if bytes < 32 << 20 {
        return Err("a node needs at least 32M".to_owned());
    }
    Ok(bytes)
}

/// Parses a node's number, or `witness`.
pub fn node(text: &str) -> Result<u8, String> {
    match text {
        "witness" => Ok(WITNESS),
        number => {
            number.parse().ok().filter(|n| *n < MAX_NODES).ok_or_else(|| {
                format!("nodes are numbered 0 to {}; or write witness", MAX_NODES - 1)
            })
        }
    }
}

/// Parses `UID[:GID]`; the group is the user's number if it is not given.
pub fn user(text: &str) -> Result<(u32, u32), String> {
    let number = |t: &str| {
        t.parse::<u32>()
            .ok()
            .filter(|n| *n != u32::MAX)
            .ok_or_else(|| format!("{t:?} is not a number; write for example 1000:1000"))
    };
    match text.split_once(':') {
        Some((u, g)) => Ok((number(u)?, number(g)?)),
        None => number(text).map(|u| (u, u)),
    }
}

/// Parses `A[-B]`, numbers of shards.
pub fn shards(text: &str) -> Result<(u16, u16), String> {
    let number = |t: &str| {
        t.parse::<u16>()
            .ok()
            .filter(|n| *n < clustix_ccache::name::SHARDS)
            .ok_or_else(|| format!("{t:?} is no shard's number; they are 0 to 1023"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first)?, number(last)?) {
        (first, last) if first <= last => Ok((first, last)),
        _ => Err("write the lower number first, for example 0-99".to_owned()),
    }
}

const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("WINCH", 28),
];

impl Kill {
    /// The signal and the target (negative: a process group).
    ///
    /// # Errors
    /// What is wrong with the words, in words.
    pub fn parse(&self) -> Result<(u8, i64), String> {
        let mut words: Vec<&str> =
            self.words.iter().map(String::as_str).filter(|w| *w != "--").collect();
        let target = words.pop().ok_or("which PID?")?;
        let target: i64 = target
            .parse()
            .ok()
            .filter(|t: &i64| *t != 0 && t.unsigned_abs() < 1 << 31)
            .ok_or_else(|| format!("{target:?} is not a PID; `clustix ps` lists them"))?;
        let signal = match words.as_slice() {
            [] => 15,
            [word] => {
                let name = word.strip_prefix('-').ok_or_else(|| {
                    format!("{word:?}: one PID at a time; a signal is written as -HUP or -9")
                })?;
                let upper = name.to_ascii_uppercase();
                let upper = upper.strip_prefix("SIG").unwrap_or(&upper);
                SIGNALS
                    .iter()
                    .find(|(n, _)| *n == upper)
                    .map(|(_, s)| *s)
                    .or_else(|| upper.parse().ok().filter(|s| *s <= 64))
                    .ok_or_else(|| {
                        format!("{word:?} is not a signal; write for example -HUP or -9")
                    })?
            }
            _ => return Err("too many words; write `clustix kill [-SIG] PID`".to_owned()),
        };
        Ok((signal, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn kill(words: &[&str]) -> Result<(u8, i64), String> {
        let line = ["clustix", "kill"].iter().chain(words);
        match Cli::try_parse_from(line).map_err(|e| e.to_string())?.command {
            Command::Kill(k) => k.parse(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kill_takes_signals_by_name_and_number() {
        assert_eq!(kill(&["5"]), Ok((15, 5)));
        assert_eq!(kill(&["-9", "5"]), Ok((9, 5)));
        assert_eq!(kill(&["-HUP", "5"]), Ok((1, 5)));
        assert_eq!(kill(&["-sigterm", "5"]), Ok((15, 5)));
        assert_eq!(kill(&["-INT", "--", "-5"]), Ok((2, -5)));
        assert_eq!(kill(&["-0", "5"]), Ok((0, 5)));
        assert!(kill(&["-NONE", "5"]).is_err());
        assert!(kill(&["-65", "5"]).is_err());
        assert!(kill(&["5", "6"]).is_err());
        assert!(kill(&["0"]).is_err());
        assert!(kill(&["x"]).is_err());
        assert!(kill(&[]).is_err());
    }

    #[test]
    fn wrong_flags_are_refused() {
        for line in [
            &["clustix"][..],
            &["clustix", "up"],
            &["clustix", "up", "--nodes", "0"],
            &["clustix", "up", "--hosts", "f"],
            &["clustix", "up", "--witness"],
            &["clustix", "up", "--hosts", "f", "--node", "1", "--witness"],
            &["clustix", "kill-node", "16"],
            &["clustix", "up", "--nodes", "3", "--node", "1"],
            &["clustix", "up", "--nodes", "3", "--hosts", "f", "--node", "1"],
            &["clustix", "up", "--nodes", "17"],
            &["clustix", "up", "--nodes", "3", "--memory", "1M"],
            &["clustix", "up", "--nodes", "3", "--memory", "3 apples"],
            &["clustix", "run"],
            &["clustix", "run", "--detach", "-i", "--", "sh"],
            &["clustix", "run", "--restart", "x", "--", "sh"],
            &["clustix", "attach"],
            &["clustix", "attach", "x"],
            &["clustix", "run", "--user", "root", "--", "sh"],
            &["clustix", "kill-node"],
            &["clustix", "nodes", "--xml"],
            &["clustix", "rehome"],
            &["clustix", "chaos", "--seconds", "0"],
            &["clustix", "chaos", "--every", "0"],
            &["clustix", "chaos", "--victims", "cats"],
            &["clustix", "rehome", "1", "--shards", "9-3"],
            &["clustix", "rehome", "1", "--shards", "0-1024"],
            &["clustix", "dance"],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn run_takes_everything_after_the_dashes() {
        let cli = Cli::try_parse_from([
            "clustix", "run", "-it", "--env", "A=b", "--", "sh", "-c", "--help",
        ]);
        let Command::Run(run) = cli.unwrap().command else { panic!() };
        assert!(run.tty && run.interactive);
        assert_eq!(run.command, ["sh", "-c", "--help"]);
    }

    #[test]
    fn restart_takes_a_number_or_none() {
        let restart = |flag: &str| match Cli::try_parse_from(["clustix", "run", flag, "--", "x"]) {
            Ok(Cli { command: Command::Run(run), .. }) => run.restart,
            other => panic!("{other:?}"),
        };
        assert_eq!((restart("--restart"), restart("--restart=3")), (Some(u32::MAX), Some(3)));
        assert_eq!(restart("-t"), None);
    }

    #[test]
    fn shards_and_sizes() {
        assert_eq!((shards("7"), shards("0-1023")), (Ok((7, 7)), Ok((0, 1023))));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert!(size("99999999999T").is_err());
        assert!(size("").is_err());
    }
}
