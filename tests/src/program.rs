//! The `clustix` program and other commands, run with a bound.

use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest that any single command of a suite may take.
pub const BOUND: Duration = Duration::from_secs(120);

/// What a command did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; 128 + n if signal n ended it.
    pub status: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: Vec<u8>,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }
    /// Itself, if the status was 0.
    ///
    /// # Errors
    /// It was not; says what the command printed.
    pub fn ok(self) -> Result<Output> {
        if self.status != 0 {
            bail!("exit status {}: {}{}", self.status, self.errors(), self.text());
        }
        Ok(self)
    }
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The `clustix` program under test: `$CLUSTIX_PROGRAM`, else the release build, which is made if need be.
///
/// # Errors
/// It cannot be built.
pub fn clustix() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| built("CLUSTIX_PROGRAM", "clustix", &[]));
    built.clone().map_err(|e| anyhow::anyhow!(e))
}

/// The `clustix` program with the verbs fabric: `$CLUSTIX_VERBS_PROGRAM`, else the release build.
///
/// # Errors
/// It cannot be built: it needs the RDMA libraries' packages (`cargo xtask test` installs them).
pub fn clustix_verbs() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let features = ["--package", "clustix", "--features", "verbs"];
    let built = BUILT.get_or_init(|| built("CLUSTIX_VERBS_PROGRAM", "clustix-verbs", &features));
    built.clone().map_err(|e| anyhow::anyhow!(e))
}

/// The `clustix` program with fault points: `$CLUSTIX_FAULTS_PROGRAM`, else the release build.
///
/// # Errors
/// It cannot be built.
pub fn clustix_faults() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let features = ["--package", "clustix", "--features", "faults"];
    let built = BUILT.get_or_init(|| built("CLUSTIX_FAULTS_PROGRAM", "clustix-faults", &features));
    built.clone().map_err(|e| anyhow::anyhow!(e))
}

/// The `soft-roce-setup` program under test: `$CLUSTIX_VM_PROGRAM`, else the release build.
///
/// # Errors
/// It cannot be built.
pub fn soft_roce_setup() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| built("CLUSTIX_VM_PROGRAM", "soft-roce-setup", &[]));
    built.clone().map_err(|e| anyhow::anyhow!(e))
}

/// A static program of `tests/programs`, compiled into `folder`.
///
/// # Errors
/// There is no gcc, or it refuses.
pub fn compiled(folder: &Path, name: &str) -> Result<PathBuf> {
    let out = folder.join(name);
    let status = Command::new("gcc")
        .args(["-O2", "-static", "-Wall", "-Werror", "-o"])
        .arg(&out)
        .arg(workspace().join("tests/programs").join(name).with_extension("c"))
        .status()
        .context("cannot run gcc")?;
    ensure!(status.success(), "gcc {name}.c failed: {status}");
    Ok(out)
}

/// What the environment's `variable` says, else the release build of the program.
fn built(variable: &str, program: &str, args: &[&str]) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--bin", program])
        .args(args)
        .current_dir(workspace())
        .status()
        .map_err(|e| format!("could not run cargo: {e}"))?;
    if !status.success() {
        return Err(format!("{program} does not build: {status}"));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join("release").join(program))
}

/// A command under way.
#[derive(Debug)]
pub struct Program {
    child: Child,
    name: String,
    begin: Instant,
    input: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    /// Starts `command` with these bytes as its standard input.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, input: &[u8]) -> Result<Program> {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        let input = child.stdin.take().map(|mut to| {
            let bytes = input.to_vec();
            // A program may end without having read everything.
            std::thread::spawn(move || drop(to.write_all(&bytes)))
        });
        Ok(Program { child, name, begin: Instant::now(), input })
    }

    /// Linux process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("could not signal {}", self.name))
    }

    /// Waits for its end, at most [`BOUND`]; then it is killed, which is an error.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn end(self) -> Result<Output> {
        self.end_within(BOUND)
    }

    /// As [`Program::end`], with another bound.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn end_within(mut self, bound: Duration) -> Result<Output> {
        use std::io::Read;
        use std::os::unix::process::ExitStatusExt;
        let reader = |pipe: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut pipe) = pipe {
                    let _ = pipe.read_to_end(&mut bytes);
                }
                bytes
            })
        };
        let out = reader(self.child.stdout.take().map(|p| Box::new(p) as Box<dyn Read + Send>));
        let err = reader(self.child.stderr.take().map(|p| Box::new(p) as Box<dyn Read + Send>));
        let pid = rustix::process::Pid::from_child(&self.child);
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .with_context(|| format!("could not watch {}", self.name))?;
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: i64::try_from(bound.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: bound.subsec_nanos().into(),
        };
        let late = loop {
            match rustix::event::poll(&mut fds, Some(&limit)) {
                Ok(n) => break n == 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        if late {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        let took = self.begin.elapsed();
        if let Some(input) = self.input.take() {
            let _ = input.join();
        }
        let out = out.join().unwrap_or_default();
        let err = err.join().unwrap_or_default();
        if late {
            bail!(
                "{} did not end within {} s; it printed {:?} {:?}",
                self.name,
                bound.as_secs(),
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&err)
            );
        }
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Output { status, out, err, took })
    }
}
