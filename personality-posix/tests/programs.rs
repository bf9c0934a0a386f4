//! Unmodified programs on a node of one process.

mod common;

use common::local::{Outcome, complete, launch, node};

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
