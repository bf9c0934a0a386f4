//! Unmodified busybox programs: each script runs on this machine and in a cluster, with the same
//! busybox, and must print the same and end the same. And trees that come and go unchanged.

use anyhow::{Context, Result, ensure};
use clustix_tests::cluster::busybox_tree;
use clustix_tests::{Cluster, Output, Program, data};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

const SCRIPTS: &[(&str, &str)] = &[
    ("exit", "exit 3"),
    ("pipes", "seq 1000 | grep 7 | sort -r | head -5 | tr 1-9 a-i"),
    ("pipe status", "false | true; echo $?; true | false; echo $?"),
    (
        "redirections",
        "echo a > f; echo b >> f; cat < f; cat f nothere > o 2> e; echo $?; cat o e | sed 's/.*: //'",
    ),
    ("here-documents", "x=7; cat <<A | tr a-z A-Z\nvalue $x\n$(echo inner)\nA\ncat <<'B'\n$x\nB"),
    ("globbing", "touch b a .c 'd e'; echo *; echo .?*; echo [ab]; echo nothing*"),
    (
        "functions and arithmetic",
        "f() { [ $1 -le 1 ] && echo 1 || echo $(( $1 * $(f $(($1-1))) )); }; f 6",
    ),
    (
        "loops and case",
        "for i in 1 2 3; do case $i in 2) continue;; esac; echo $i; done; while read a b; do echo \"$b $a\"; done <<A\n1 2\n3 4\nA",
    ),
    ("command substitution", "echo \"$(echo a; echo b)\" `echo c`; echo $(cat /dev/null)x"),
    ("traps", "trap 'echo term' TERM; kill -TERM $$; trap 'echo bye' EXIT; echo last"),
    (
        "signals to children",
        "sleep 100 & p=$!; kill $p; wait $p; echo $?; sleep 100 & p=$!; kill -9 $p; wait $p; echo $?",
    ),
    (
        "stop and continue",
        "(echo in; sleep 0.1; echo out) & p=$!; kill -STOP $p; kill -CONT $p; wait $p; echo $?",
    ),
    (
        "background jobs",
        "for i in 1 2 3 4 5; do (exit $i) & done; wait; echo done; (sleep 0.05; echo late) & wait; echo end",
    ),
    ("sigpipe", "(while :; do echo y || exit 9; done) | head -1; yes | head -2"),
    ("subshells", "x=1; (x=2; cd /; pwd); echo $x; { x=3; }; echo $x"),
    (
        "directories",
        "mkdir -p a/b/c; cd a/b; pwd | sed 's/.*a/a/'; cd ..; rmdir b/c b; ls; cd ..; rmdir a; rmdir a; echo $?",
    ),
    (
        "links",
        "echo x > f; ln f g; ln -s f h; ln -s nowhere i; stat -c '%h %s %F' f g h i; readlink h; cat h; cat i; echo $?; rm f; cat g",
    ),
    (
        "rename",
        "echo 1 > a; echo 2 > b; mv a b; cat b; ls; mkdir d; mv b d; ls d; mv d e; cat e/b; mv e e/f; echo $?",
    ),
    ("unlink of an open file", "echo kept > f; exec 3< f; rm f; ls; cat <&3"),
    (
        "modes",
        "umask 027; touch f; mkdir d; stat -c '%a' f d; chmod u+s,o=r f; stat -c '%a' f; umask",
    ),
    (
        "times",
        "touch -d '2001-02-03 04:05:06' f; stat -c '%Y' f; [ f -ot /bin/sh ] && echo older; date -u -d @0 +%F",
    ),
    (
        "find and xargs",
        "mkdir -p x/y/z; touch x/1 x/y/2 x/y/z/3; find x | sort; find x -type f | sort | xargs -n1 basename; find x -name '?' -type f | xargs rm; find x | sort",
    ),
    (
        "text tools",
        "printf '3 c\\n1 a\\n2 b\\n' > f; sort f; sort -k2r f; cut -d' ' -f2 f; awk '{s+=$1} END {print s}' f; sed -n '2p;s/a/A/p' f; uniq -c f; wc f; tac f; paste f f; tr -d ' ' < f; head -c 3 f; tail -n1 f",
    ),
    ("checksums", "seq 10000 > f; md5sum f; sha1sum f; sha256sum f; sha512sum f"),
    (
        "archives",
        "mkdir t; seq 5000 > t/a; echo b > t/b; tar cf t.tar t; tar tf t.tar | sort; gzip -9 t.tar; gunzip -c t.tar.gz | md5sum | wc -c; mkdir o; tar xzf t.tar.gz -C o; cmp t/a o/t/a && cmp t/b o/t/b && echo same; bzip2 < t/a | bunzip2 | cmp - t/a && echo same; xz -d < /dev/null; echo $?",
    ),
    (
        "dd and seek",
        "dd if=/dev/zero bs=1k count=8 2>/dev/null | wc -c; printf abcdef > f; printf XY | dd of=f bs=1 seek=2 conv=notrunc 2>/dev/null; cat f; dd if=f bs=1 skip=4 2>/dev/null; truncate -s 3 f; cat f; truncate -s 5 f; wc -c < f",
    ),
    (
        "devices",
        "echo gone > /dev/null; head -c 5 /dev/zero | od -An -tx1; head -c 16 /dev/urandom | wc -c; cat /dev/null; echo $?",
    ),
    (
        "environment",
        "A=1 sh -c 'echo $A'; export B=2; sh -c 'echo $B'; env -i C=3 /bin/busybox env; unset B; echo ${B:-none}",
    ),
    ("exec", "exec echo replaced; echo never"),
    (
        "exec fails",
        "./nothere; echo $?; touch f; ./f; echo $?; chmod +x f; ./f; echo $?; echo 'echo in script $1' > s; chmod +x s; ./s arg; printf '#!/bin/sh\\necho sharp $0 $1\\n' > s; ./s arg",
    ),
    (
        "many processes",
        "i=0; while [ $i -lt 100 ]; do /bin/busybox true; i=$((i+1)); done; echo $i",
    ),
    ("deep pipeline", "echo x | cat | cat | cat | cat | cat | cat | cat | cat | cat | cat"),
    ("big pipe", "dd if=/dev/zero bs=64k count=32 2>/dev/null | cat | wc -c"),
    ("fifo", "mkfifo p; (cat p; echo read) & echo through > p; wait"),
    (
        "large directory",
        "i=0; while [ $i -lt 500 ]; do : > f$i; i=$((i+1)); done; ls | wc -l; ls | sort | sed -n '1p;250p;500p'; rm f*; ls | wc -l",
    ),
    (
        "errors",
        "cat nothere; cd nothere; mkdir /dev/null/x; rmdir /; cat .; echo > nothere/x; ls nothere; echo $?",
    ),
    ("set -e", "set -e; echo before; false; echo after"),
    (
        "getopts and printf",
        "set -- -a -b val rest; while getopts ab: o; do echo $o $OPTARG; done; printf '%05d|%-5s|%x|%s\\n' 42 ab 255 'a b'",
    ),
    ("timeout", "timeout 0.1 sleep 10; echo $?; timeout 5 true; echo $?"),
    ("nice and ids", "id -u; id -g; whoami >/dev/null 2>&1; nice -n 5 echo niced"),
];

/// Runs a script on this machine with nothing but busybox.
fn on_host(tree: &std::path::Path, script: &str) -> Result<Output> {
    let work = tempfile::tempdir()?;
    let mut command = Command::new(tree.join("bin/sh"));
    command
        .args(["-c", script])
        .current_dir(work.path())
        .env_clear()
        .env("PATH", tree.join("bin"))
        .env("HOME", "/");
    Program::start(command, b"")?.end()
}

#[test]
fn scripts_do_what_they_do_on_linux() -> Result<()> {
    let tree = busybox_tree()?;
    let c = Cluster::up(1)?;
    let mut wrong = Vec::new();
    for (i, (name, script)) in SCRIPTS.iter().enumerate() {
        let host = on_host(tree.path(), script)?;
        let inside = c.sh(None, &format!("mkdir -p /w/{i} && cd /w/{i} || exit 99\n{script}"))?;
        // Messages name the shell's own path; what they say is compared.
        let said = |o: &Output| {
            o.errors()
                .lines()
                .map(|l| l.rsplit(": ").next().unwrap_or("").to_owned())
                .collect::<Vec<_>>()
        };
        let same =
            host.out == inside.out && host.status == inside.status && said(&host) == said(&inside);
        println!("{name}: {}", if same { "same" } else { "DIFFERENT" });
        if !same {
            wrong.push(format!(
                "{name}:\n  linux   {} {:?} {:?}\n  clustix {} {:?} {:?}",
                host.status,
                host.text(),
                host.errors(),
                inside.status,
                inside.text(),
                inside.errors()
            ));
        }
    }
    c.cli(["down", "--discard"])?.ok()?;
    ensure!(
        wrong.is_empty(),
        "{} of {} scripts:\n{}",
        wrong.len(),
        SCRIPTS.len(),
        wrong.join("\n")
    );
    Ok(())
}

#[test]
fn trees_come_and_go_unchanged() -> Result<()> {
    let c = Cluster::up(1)?;
    let folder = tempfile::tempdir()?;
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("dir/empty"))?;
    for (name, size) in
        [("zero", 0), ("one", 1), ("page", 4096), ("page+1", 4097), ("big", 3_000_001)]
    {
        let bytes: Vec<u8> =
            (0..size).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(tree.join("dir").join(name), bytes)?;
    }
    fs::set_permissions(tree.join("dir/one"), fs::Permissions::from_mode(0o4751))?;
    fs::set_permissions(tree.join("dir/empty"), fs::Permissions::from_mode(0o2555))?;
    fs::hard_link(tree.join("dir/big"), tree.join("dir/other-name"))?;
    symlink("dir/big", tree.join("link"))?;
    symlink("/no where", tree.join("dangling"))?;
    fs::write(tree.join("dir/n\u{e4}me with space"), "x")?;
    let listing = |root: &std::path::Path| -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut stack = vec![root.to_owned()];
        while let Some(path) = stack.pop() {
            let m = fs::symlink_metadata(&path)?;
            let below = path.strip_prefix(root)?.display().to_string();
            let size = if m.is_dir() { 0 } else { m.len() };
            let links = if m.is_dir() { 0 } else { m.nlink() };
            lines.push(format!(
                "{below} {:o} {size} {links} {}.{:09} {}:{}",
                m.mode(),
                m.mtime(),
                m.mtime_nsec(),
                m.uid(),
                m.gid()
            ));
            if m.is_dir() {
                for e in fs::read_dir(&path)? {
                    stack.push(e?.path());
                }
            }
        }
        lines.sort();
        Ok(lines)
    };
    let path = |p: &std::path::Path| p.to_str().map(str::to_owned).context("path");
    c.cli(["import", &path(&tree)?, "/deep/er/tree"])?.ok()?;
    // Once more over itself: files are replaced, nothing is added.
    c.cli(["import", &path(&tree)?, "/deep/er/tree"])?.ok()?;
    let back = folder.path().join("back");
    c.cli(["export", "/deep/er/tree", &path(&back)?])?.ok()?;
    ensure!(data::contents(&tree)? == data::contents(&back)?, "contents differ");
    let (left, right) = (listing(&tree)?, listing(&back)?);
    for (l, r) in left.iter().zip(&right) {
        ensure!(l == r, "{l:?} came back as {r:?}");
    }
    ensure!(left.len() == right.len(), "{} names became {}", left.len(), right.len());
    c.cli(["down", "--discard"])?.ok()?;
    Ok(())
}
