//! A terminal for `clustix run -it`: the test holds the other end of a pty, as a terminal program would.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A command on a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    child: Child,
    seen: Vec<u8>,
}

impl Terminal {
    /// Starts `command` with a new terminal as its descriptors 0, 1 and 2.
    ///
    /// # Errors
    /// There is no terminal to be had, or it cannot be started.
    pub fn start(mut command: Command) -> Result<Terminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?.into_string()?;
        let slave = File::options().read(true).write(true).open(name)?;
        let child = command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .spawn()
            .context("could not start the command")?;
        Ok(Terminal { master, child, seen: Vec::new() })
    }

    /// Linux process of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_in(&mut self, text: &str) -> Result<()> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let n = rustix::io::write(&self.master, rest)?;
            rest = rest.get(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until `text` has appeared on the screen since the last call, at most 30 s.
    ///
    /// # Errors
    /// It has not; says what has.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let at = self.seen.windows(text.len()).position(|w| w == text.as_bytes());
            if let Some(at) = at {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.read(left)? {
                bail!(
                    "{text:?} did not appear; on the screen: {:?}",
                    String::from_utf8_lossy(&self.seen)
                );
            }
        }
    }

    /// Reads what is there within `left`; `false`: nothing more will come.
    fn read(&mut self, left: Duration) -> Result<bool> {
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs())?,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut bytes = [0; 4096];
        match rustix::io::read(&self.master, &mut bytes) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.seen.extend_from_slice(&bytes[..n]);
                Ok(true)
            }
            // The last process with the terminal open has ended.
            Err(rustix::io::Errno::IO) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the command's end, showing the terminal meanwhile; its exit status.
    ///
    /// # Errors
    /// It does not end within 30 s.
    pub fn end(mut self) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            if Instant::now() > until {
                self.child.kill()?;
                self.child.wait()?;
                bail!(
                    "the command did not end; on the screen: {:?}",
                    String::from_utf8_lossy(&self.seen)
                );
            }
            self.read(Duration::from_millis(20))?;
        }
    }
}
