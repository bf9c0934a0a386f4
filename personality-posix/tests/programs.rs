//! Unmodified programs on a node of one process.

mod common;

use common::local::{Outcome, complete, launch, node, put};

fn ended(status: i32, out: &str, err: &str) -> Outcome {
    Outcome { status, out: out.into(), err: err.into() }
}

#[test]
fn busybox_echo() {
    let node = node();
    assert_eq!(complete(&node, &["/bin/echo", "hello", "world"]), ended(0, "hello world\n", ""));
    assert_eq!(complete(&node, &["false"]).status, 1 << 8);
}

#[test]
fn a_shell_with_its_programs() {
    let node = node();
    let sh = |script: &str| complete(&node, &["sh", "-c", script]);
    assert_eq!(sh("echo hi; exit 3"), ended(3 << 8, "hi\n", ""));
    assert_eq!(sh("/bin/echo one; (echo two); echo three"), ended(0, "one\ntwo\nthree\n", ""));
    assert_eq!(sh("seq 1 5 | cat | wc -l"), ended(0, "5\n", ""));
    assert_eq!(
        sh("echo data > /tmp/f; cat /tmp/f /tmp/f; ls /tmp"),
        ended(0, "data\ndata\nf\n", "")
    );
    assert_eq!(sh("x=$(echo inner); echo \"<$x>\""), ended(0, "<inner>\n", ""));
    assert_eq!(sh("false || echo $?"), ended(0, "1\n", ""));
    assert_eq!(sh("nosuch").status, 127 << 8);
}

#[test]
fn input_reaches_a_program() {
    let node = node();
    let cat = launch(&node, &["cat"]);
    cat.input(b"some\n", false);
    cat.input(b"lines\n", true);
    assert_eq!(cat.outcome(), ended(0, "some\nlines\n", ""));
}

#[test]
fn signals() {
    let node = node();
    let sh = |script: &str| complete(&node, &["sh", "-c", script]);
    assert_eq!(sh("kill -TERM $$; echo not reached").status, 15);
    assert_eq!(
        sh("trap 'echo caught' USR1; kill -USR1 $$; echo after"),
        ended(0, "caught\nafter\n", "")
    );
    assert_eq!(sh("sleep 60 & kill $!; wait $!; echo $?").out, "143\n");
    // A loop in user code is preempted by its handler.
    let r = sh("trap 'exit 7' ALRM; (sleep 0.2; kill -ALRM $$) & while :; do :; done");
    assert_eq!(r.status, 7 << 8);
    // Stopped and continued.
    let r = sh("sleep 60 & p=$!; kill -STOP $p; kill -CONT $p; kill -KILL $p; wait $p; echo $?");
    assert_eq!(r.out, "137\n");
}

/// Runs `sh script folder` on this host and on the node; what each says.
fn both(script: &str) -> (String, String) {
    let node = node();
    let dir = std::env::temp_dir().join(format!("clustix-programs-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    std::fs::create_dir_all(dir.join("work")).unwrap();
    let (bin, work) = (dir.join("bin"), dir.join("work"));
    let busybox = || std::process::Command::new("/bin/busybox");
    assert!(busybox().args(["--install", "-s"]).arg(&bin).status().unwrap().success());
    let path = dir.join("script");
    std::fs::write(&path, script).unwrap();
    let host = busybox()
        .args(["timeout", "30", "/bin/busybox", "sh"])
        .arg(&path)
        .arg(&work)
        .env_clear()
        .env("PATH", &bin)
        .env("HOME", "/")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let host = format!(
        "{}{}",
        String::from_utf8_lossy(&host.stdout),
        String::from_utf8_lossy(&host.stderr)
    );
    let (path, work) = (path.to_str().unwrap(), work.to_str().unwrap());
    assert_eq!(complete(&node, &["busybox", "--install", "-s", "/bin"]).status, 0);
    assert_eq!(complete(&node, &["busybox", "mkdir", "-p", work]).status, 0);
    clustix_pd::exec::block_on(put(&node, path, script.as_bytes(), 0o644));
    let r = complete(&node, &["sh", path, work]);
    assert_eq!(clustix_posix::thread::PANICS.load(std::sync::atomic::Ordering::Relaxed), 0);
    (host, format!("{}{}", r.out, r.err))
}

#[test]
fn tools_as_on_the_host() {
    let (host, node) = both(include_str!("scripts/tools.sh"));
    assert!(host.lines().count() > 100 && host.contains("end\n"), "{host}");
    for (i, (h, n)) in host.lines().zip(node.lines()).enumerate() {
        assert_eq!(h, n, "line {}", i + 1);
    }
    assert_eq!(host.len(), node.len());
}

/// Compiles a C program, runs it on this host and on the node, compares what both print.
fn as_on_the_host(source: &str) {
    let dir = std::env::temp_dir().join(format!("clustix-{source}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let exe = dir.join("program");
    let cc = std::process::Command::new("cc")
        .args(["-static", "-O1", "-w", "-o"])
        .arg(&exe)
        .arg(format!("{}/tests/apps/{source}.c", env!("CARGO_MANIFEST_DIR")))
        .status()
        .unwrap();
    assert!(cc.success());
    let bytes = std::fs::read(&exe).unwrap();
    let host = std::process::Command::new(&exe)
        .current_dir(&dir)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let host = String::from_utf8_lossy(&host.stdout).into_owned();
    let node = node();
    clustix_pd::exec::block_on(put(&node, "/bin/program", &bytes, 0o755));
    let r = complete(&node, &["sh", "-c", "cd /tmp; exec program < /dev/null"]);
    let mut differing = Vec::new();
    let mut section = "";
    for (h, n) in host.lines().zip(r.out.lines()) {
        if h.starts_with("--") {
            section = h;
        }
        if h != n {
            differing.push(format!("{section}: host {h:?}, node {n:?}"));
        }
    }
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!((host.lines().count(), r.status), (r.out.lines().count(), 0), "{}", r.err);
}

#[test]
fn signals_in_detail_as_on_the_host() {
    as_on_the_host("signals");
}

#[test]
fn bad_arguments_as_on_the_host() {
    as_on_the_host("faults");
}
