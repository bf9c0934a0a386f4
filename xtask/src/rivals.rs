//! Redis and etcd on this machine, for `cargo xtask bench cache`: started by it, ended by it, with
//! their data in memory. Each is asked over TCP by the smallest client that does it.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Bytes of a value.
const BYTES: usize = 256;
/// Keys of each client.
const KEYS: usize = 64;
/// How long each client writes, and then reads.
const LOAD: Duration = Duration::from_millis(600);
/// How long a cluster may take to be up.
const BOUND: Duration = Duration::from_secs(30);

/// One connection: writes or reads the key of that number.
pub type Ask = Box<dyn FnMut(bool, usize) -> Result<()> + Send>;

/// Median latency of one operation, ns, and operations of all clients per second.
#[derive(Clone, Copy)]
pub struct Load {
    /// Latency.
    pub ns: f64,
    /// Throughput.
    pub per_second: f64,
}

/// Processes of one cluster, and where their data is. Its drop ends and removes them.
struct Processes {
    children: Vec<Child>,
    folder: PathBuf,
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Processes {
    fn new(name: &str) -> Result<Processes> {
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        let folder = base.join(format!("clustix-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Processes { children: Vec::new(), folder })
    }
    fn start(&mut self, program: &str, arguments: &[String]) -> Result<()> {
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        self.children.push(child);
        Ok(())
    }
}

/// Ports that are free now.
fn ports<const N: usize>() -> Result<[u16; N]> {
    let listeners: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let ports: Result<Vec<u16>, _> =
        listeners.iter().map(|l| l.local_addr().map(|a| a.port())).collect();
    ports?.try_into().map_err(|_| anyhow::anyhow!("ports"))
}

/// Tries until it works.
fn until<T>(what: &str, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + BOUND;
    loop {
        match f() {
            Err(e) if Instant::now() > end => return Err(e.context(format!("no {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            ok => return ok,
        }
    }
}

fn connect(port: u16) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(BOUND))?;
    Ok(BufReader::new(stream))
}

fn line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "the connection ended");
    Ok(line.trim_end().to_owned())
}

/// One primary and two replicas; a write is acknowledged once both replicas have it (in memory).
pub struct Redis {
    port: u16,
    _processes: Processes,
}

impl Redis {
    /// Starts it.
    pub fn start() -> Result<Redis> {
        let mut processes = Processes::new("redis")?;
        let [primary, first, second] = ports()?;
        for port in [primary, first, second] {
            let mut arguments: Vec<String> =
                ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]
                    .map(String::from)
                    .to_vec();
            arguments.push(processes.folder.display().to_string());
            arguments.extend(["--port".into(), port.to_string()]);
            arguments.extend(["--dbfilename".into(), format!("{port}.rdb")]);
            arguments.extend(["--repl-diskless-sync-delay".into(), "0".into()]);
            if port != primary {
                arguments.extend(["--replicaof".into(), format!("127.0.0.1 {primary}")]);
            }
            processes.start("redis-server", &arguments)?;
        }
        let redis = Redis { port: primary, _processes: processes };
        until("Redis with two replicas", || redis.connect(0)?(true, 0))?;
        Ok(redis)
    }

    /// A connection of one client.
    pub fn connect(&self, client: usize) -> Result<Ask> {
        let mut stream = connect(self.port)?;
        Ok(Box::new(move |write, key| {
            let key = format!("{client:04}-{key:04}");
            let request = if write {
                let value = "v".repeat(BYTES);
                format!(
                    "*3\r\n$3\r\nSET\r\n$9\r\n{key}\r\n${BYTES}\r\n{value}\r\n\
                     *3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$4\r\n1000\r\n"
                )
            } else {
                format!("*2\r\n$3\r\nGET\r\n$9\r\n{key}\r\n")
            };
            stream.get_mut().write_all(request.as_bytes())?;
            let first = line(&mut stream)?;
            if write {
                ensure!(first == "+OK", "Redis says {first:?}");
                let copies = line(&mut stream)?;
                ensure!(copies == ":2", "not on both replicas: {copies:?}");
            } else {
                ensure!(first == format!("${BYTES}"), "Redis says {first:?}");
                let mut value = [0; BYTES + 2];
                stream.read_exact(&mut value)?;
            }
            Ok(())
        }))
    }
}

/// Three members; a write is acknowledged by a majority, in its log (in memory here); a read is
/// linearizable. Asked through its HTTP gateway, which is one more step inside of each member.
pub struct Etcd {
    port: u16,
    _processes: Processes,
}

impl Etcd {
    /// Starts it.
    pub fn start() -> Result<Etcd> {
        let mut processes = Processes::new("etcd")?;
        let peers = ports::<3>()?;
        let clients = ports::<3>()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> =
            peers.iter().enumerate().map(|(i, p)| format!("m{i}={}", url(*p))).collect();
        for (i, (peer, client)) in peers.iter().zip(clients).enumerate() {
            let arguments = [
                ("name", format!("m{i}")),
                ("data-dir", processes.folder.join(i.to_string()).display().to_string()),
                ("listen-peer-urls", url(*peer)),
                ("initial-advertise-peer-urls", url(*peer)),
                ("listen-client-urls", url(client)),
                ("advertise-client-urls", url(client)),
                ("initial-cluster", all.join(",")),
                ("log-level", "error".into()),
            ];
            let arguments = arguments.map(|(name, value)| format!("--{name}={value}"));
            processes.start("etcd", &arguments)?;
        }
        let mut etcd = Etcd { port: clients[0], _processes: processes };
        until("etcd with three members", || etcd.connect(0)?(true, 0))?;
        // A leader has no follower to ask: the best case is the one measured.
        for port in clients {
            let mut stream = connect(port)?;
            let status = post(&mut stream, "/v3/maintenance/status", "{}")?;
            let field = |name: &str| {
                let at = status.find(&format!("\"{name}\":\""))? + name.len() + 4;
                status[at..].split('"').next().map(str::to_owned)
            };
            if field("leader").is_some() && field("leader") == field("member_id") {
                etcd.port = port;
            }
        }
        Ok(etcd)
    }

    /// A connection of one client.
    pub fn connect(&self, client: usize) -> Result<Ask> {
        let mut stream = connect(self.port)?;
        let value = base64(&[b'v'; BYTES]);
        Ok(Box::new(move |write, key| {
            let key = base64(format!("{client:04}-{key:04}").as_bytes());
            if write {
                let body = format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}");
                post(&mut stream, "/v3/kv/put", &body)?;
            } else {
                let reply = post(&mut stream, "/v3/kv/range", &format!("{{\"key\":\"{key}\"}}"))?;
                ensure!(reply.contains(&value), "etcd does not have it: {reply}");
            }
            Ok(())
        }))
    }
}

fn post(stream: &mut BufReader<TcpStream>, path: &str, body: &str) -> Result<String> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.get_mut().write_all(request.as_bytes())?;
    let status = line(stream)?;
    let mut length = None;
    loop {
        let header = line(stream)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(text) = header.strip_prefix("content-length:") {
            length = Some(text.trim().parse::<usize>()?);
        }
    }
    let Some(length) = length else { bail!("an answer without a length") };
    let mut reply = vec![0; length];
    stream.read_exact(&mut reply)?;
    let reply = String::from_utf8(reply)?;
    ensure!(status.contains(" 200 "), "etcd says {status}: {reply}");
    Ok(reply)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |w, i| w << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// What `clients` connections at once get: writes, then reads.
pub fn load(clients: usize, connect: impl Fn(usize) -> Result<Ask>) -> Result<[Load; 2]> {
    let asks: Vec<Ask> = (0..clients).map(connect).collect::<Result<_>>()?;
    let barrier = Barrier::new(clients);
    let one = |mut ask: Ask| -> Result<[(Vec<u64>, f64); 2]> {
        for key in 0..KEYS {
            ask(true, key)?;
        }
        let mut phase = |write: bool| -> Result<(Vec<u64>, f64)> {
            barrier.wait();
            let (start, mut times) = (Instant::now(), Vec::new());
            while start.elapsed() < LOAD {
                let start = Instant::now();
                ask(write, times.len() % KEYS)?;
                times.push(start.elapsed().as_nanos() as u64);
            }
            Ok((times, start.elapsed().as_secs_f64()))
        };
        Ok([phase(true)?, phase(false)?])
    };
    let all: Vec<[(Vec<u64>, f64); 2]> = std::thread::scope(|s| {
        let one = &one;
        let threads: Vec<_> = asks.into_iter().map(|ask| s.spawn(move || one(ask))).collect();
        let ended = threads.into_iter().map(|t| t.join());
        ended.map(|r| r.map_err(|_| anyhow::anyhow!("a client panicked"))?).collect::<Result<_>>()
    })?;
    Ok([0, 1].map(|phase| {
        let mut times: Vec<u64> = all.iter().flat_map(|c| c[phase].0.clone()).collect();
        times.sort_unstable();
        let longest = all.iter().map(|c| c[phase].1).fold(0.0, f64::max);
        let ns = times.get(times.len() / 2).copied().unwrap_or(0) as f64;
        Load { ns, per_second: times.len() as f64 / longest }
    }))
}
