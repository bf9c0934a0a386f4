//! The commands that list.

use crate::args::{Logs, Metrics, Objects};
use crate::connection::{Connection, ask, ask_all, candidates};
use crate::state::{Folder, Phase, WITNESS, called};
use crate::wire::{Metric, Object, Pd, Program, Reply, Request, Status};
use anyhow::{Context, Result, bail};
use clustix_ccache::set;
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Prints to standard output; a reader that has gone is no error.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context("could not write to standard output")
        }
        _ => Ok(()),
    }
}

fn print_json(value: &Value) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Columns as wide as their widest cell; the last is not padded.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head = head.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        for (i, cell) in row.iter().enumerate() {
            if i + 1 == row.len() {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:<w$}  ", w = widths[i]));
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

fn slots(list: &[u8]) -> String {
    if list.is_empty() {
        return "-".to_owned();
    }
    list.iter().map(u8::to_string).collect::<Vec<_>>().join(",")
}

/// A program's or log's bytes, harmless on a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '?' } else { c }).collect()
}

/// Of a node that serves, if one answers soon; else of any that answers.
pub(super) fn get_status(folder: &Folder) -> Result<Status> {
    /// A node that is about to be evicted may not answer for long; another knows better then.
    const SOON: Duration = Duration::from_millis(500);
    let mut found = None;
    for slot in candidates(folder, None)? {
        let asked = Connection::open(folder, slot, Request::Status)
            .and_then(|mut c| c.all_within(SOON))
            .and_then(status_of);
        match asked {
            Ok(status) if status.serving => return Ok(status),
            Ok(status) => found = found.or(Some(status)),
            Err(_) => {}
        }
    }
    match found {
        Some(status) => Ok(status),
        None => status_of(ask(folder, None, &Request::Status)?.1),
    }
}

fn status_of(replies: Vec<Reply>) -> Result<Status> {
    replies
        .into_iter()
        .find_map(|r| if let Reply::Status(s) = r { Some(s) } else { None })
        .context("the node did not tell its status")
}

/// `clustix nodes`.
///
/// # Errors
/// The cluster is not up.
pub fn nodes(folder: &Folder, json: bool) -> Result<ExitCode> {
    let cluster = folder.running()?;
    let status = get_status(folder)?;
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for slot in cluster.slots() {
        let process = folder.process(slot)?;
        let here = cluster.check_here(slot).is_ok();
        let member = status.nodes.iter().find(|n| n.node == slot);
        let state = match (&process, member) {
            (Some(_), Some(_)) => "up",
            (Some(_), None) => "joining",
            (None, Some(_)) if !here => "up",
            (None, _) => "down",
        };
        let incarnation = match member {
            Some(m) => m.incarnation,
            None => cluster.incarnations.get(usize::from(slot)).copied().unwrap_or(0),
        };
        let pid = process.map(|p| p.pid);
        rows.push(vec![
            slot.to_string(),
            state.to_owned(),
            pid.map_or("-".to_owned(), |p| p.to_string()),
            incarnation.to_string(),
            member.map_or("-".to_owned(), |m| m.primaries.to_string()),
        ]);
        values.push(json!({
            "node": slot, "state": state, "pid": pid, "incarnation": incarnation,
            "primaries": member.map_or(0, |m| m.primaries),
        }));
    }
    let process = folder.process(WITNESS)?;
    let pid = process.map(|p| p.pid);
    if let Some(incarnation) = status.witness.or(cluster.witness) {
        let state = match (pid, status.witness) {
            (_, Some(_)) => "up",
            (Some(_), None) => "joining",
            (None, None) => "down",
        };
        rows.push(vec![
            "witness".to_owned(),
            state.to_owned(),
            pid.map_or("-".to_owned(), |p| p.to_string()),
            incarnation.to_string(),
            "-".to_owned(),
        ]);
        values.push(json!({
            "node": "witness", "state": state, "pid": pid, "incarnation": incarnation,
            "primaries": 0,
        }));
    }
    if json {
        print_json(&Value::Array(values))?;
    } else {
        let head = ["NODE", "STATE", "PID", "INCARNATION", "PRIMARIES"];
        print(&table(&head, &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `clustix status`.
///
/// # Errors
/// The cluster is not up.
pub fn status(folder: &Folder, json: bool) -> Result<ExitCode> {
    let cluster = folder.running()?;
    let s = get_status(folder)?;
    if json {
        print_json(&json!({
            "cluster": cluster.name, "serving": s.serving, "epoch": s.epoch,
            "nodes": cluster.nodes, "live": s.nodes.iter().map(|n| n.node).collect::<Vec<_>>(),
            "can_lose_a_node": s.can_lose_a_node, "two_copies_of_all": s.copies,
            "majority_without_one": s.votes, "shards": s.shards,
            "shards_rebuilding": s.rebuilding, "shards_lost": s.lost,
            "witness": s.witness.is_some(),
        }))?;
    } else {
        let mut text = format!(
            "cluster {:?}: {} of {} nodes, view {}\n",
            cluster.name,
            s.nodes.len(),
            cluster.nodes,
            s.epoch
        );
        text.push_str(match (s.serving, s.can_lose_a_node) {
            (false, _) => {
                "not serving now: a change of view is under way, or these nodes are no majority\n"
            }
            (true, true) => "a node can be lost now\n",
            (true, false) if !s.votes => {
                "no node can be lost now: those left would be no majority\n"
            }
            (true, false) => "no node can be lost now: something has one complete copy only\n",
        });
        match (s.witness, cluster.witness) {
            (Some(_), _) => text.push_str("a witness is there\n"),
            (None, Some(_)) => text.push_str("the witness is not there\n"),
            (None, None) => {}
        }
        match s.rebuilding {
            0 => text.push_str("nothing is being rebuilt\n"),
            n => text.push_str(&format!("being rebuilt: {n} of {} shards\n", s.shards)),
        }
        if s.lost > 0 {
            text.push_str(&format!(
                "lost: {} of {} shards have no complete copy left\n",
                s.lost, s.shards
            ));
        }
        print(&text)?;
    }
    Ok(ExitCode::from(if s.serving && s.can_lose_a_node { 0 } else { 3 }))
}

/// Programs as JSON.
pub fn programs_json(programs: &[Program]) -> Value {
    programs
        .iter()
        .map(|p| {
            json!({
                "pid": p.pid, "ppid": p.ppid, "pgid": p.pgid, "node": p.node, "uid": p.uid,
                "state": p.state.to_string(), "tty": p.tty, "start": p.start, "command": p.command,
            })
        })
        .collect()
}

/// `clustix ps`.
///
/// # Errors
/// The cluster is not up.
pub fn ps(folder: &Folder, json: bool) -> Result<ExitCode> {
    let mut programs: Vec<Program> = Vec::new();
    for (_, replies) in ask_all(folder, None, &Request::Ps)? {
        for reply in replies {
            if let Reply::Programs(p) = reply {
                programs.extend(p);
            }
        }
    }
    programs.sort_by_key(|p| p.pid);
    programs.dedup_by_key(|p| p.pid);
    if json {
        print_json(&programs_json(&programs))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = programs
        .iter()
        .map(|p| {
            vec![
                p.pid.to_string(),
                p.ppid.to_string(),
                p.node.to_string(),
                p.uid.to_string(),
                p.state.to_string(),
                p.tty.map_or("-".to_owned(), |t| format!("tty{t}")),
                plain(&p.command),
            ]
        })
        .collect();
    print(&table(&["PID", "PPID", "NODE", "UID", "S", "TTY", "COMMAND"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// `clustix objects`.
///
/// # Errors
/// The cluster is not up; there is no such set.
pub fn objects(folder: &Folder, args: &Objects) -> Result<ExitCode> {
    let set = match &args.set {
        None => None,
        Some(name) => {
            let Some(d) = set::by_name(name) else {
                let names: Vec<String> = set::SETS.iter().map(|s| s.name.to_lowercase()).collect();
                bail!("there is no set {name:?}; the sets are: {}", names.join(" "))
            };
            Some(d.id)
        }
    };
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut found: Vec<Object> = Vec::new();
    for (_, replies) in ask_all(folder, None, &Request::Objects { set })? {
        for reply in replies {
            if let Reply::Objects(page) = reply {
                found.extend(page);
            }
        }
    }
    found.sort_by_key(|o| o.name);
    found.truncate(limit);
    let name = |o: &Object| set::descriptor(o.name.set()).map_or("?", |d| d.name).to_lowercase();
    let key = |o: &Object| format!("{}/{:x}", o.name.shard().0, o.name.id());
    if args.json {
        let values: Vec<Value> = found
            .iter()
            .map(|o| {
                json!({
                    "set": name(o), "key": key(o), "size": o.size, "version": o.version,
                    "holder": o.holder, "sharers": o.sharers, "replicas": o.replicas,
                })
            })
            .collect();
        print_json(&Value::Array(values))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|o| {
            vec![
                name(o),
                key(o),
                o.size.to_string(),
                o.version.to_string(),
                o.holder.map_or("-".to_owned(), |h| h.to_string()),
                slots(&o.sharers),
                slots(&o.replicas),
            ]
        })
        .collect();
    let head = ["SET", "KEY", "SIZE", "VERSION", "HOLDER", "SHARERS", "REPLICAS"];
    print(&table(&head, &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// `clustix pds`.
///
/// # Errors
/// The cluster is not up.
pub fn pds(folder: &Folder, json: bool) -> Result<ExitCode> {
    let mut found: Vec<Pd> = Vec::new();
    for (_, replies) in ask_all(folder, None, &Request::Pds)? {
        for reply in replies {
            if let Reply::Pds(list) = reply {
                found.extend(list);
            }
        }
    }
    if json {
        let values: Vec<Value> = found
            .iter()
            .map(|p| {
                json!({
                    "role": p.role, "node": p.node, "pid": p.pid, "restarts": p.restarts,
                    "ends": p.ends.iter()
                        .map(|(how, ago)| json!({"how": how, "ms_ago": ago}))
                        .collect::<Vec<_>>(),
                })
            })
            .collect();
        print_json(&Value::Array(values))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|p| {
            vec![
                p.role.clone(),
                p.node.to_string(),
                if p.pid == 0 { "-".to_owned() } else { p.pid.to_string() },
                p.restarts.to_string(),
                p.ends.last().map_or_else(
                    || "-".to_owned(),
                    |(how, ago)| format!("{how}, {} s ago", ago / 1_000),
                ),
            ]
        })
        .collect();
    print(&table(&["ROLE", "NODE", "PID", "RESTARTS", "LAST END"], &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// `clustix metrics`: Prometheus's text format, with the labels `node` and `pd` added.
///
/// # Errors
/// The cluster is not up.
pub fn metrics(folder: &Folder, args: &Metrics) -> Result<ExitCode> {
    let mut found: Vec<(u8, Metric)> = Vec::new();
    for (node, replies) in ask_all(folder, args.node, &Request::Metrics)? {
        for reply in replies {
            if let Reply::Metrics(list) = reply {
                found.extend(list.into_iter().map(|m| (node, m)));
            }
        }
    }
    if args.json {
        let values: Vec<Value> = found
            .iter()
            .map(|(n, m)| json!({"node": n, "pd": m.pd, "name": m.name, "value": m.value}))
            .collect();
        print_json(&Value::Array(values))?;
    } else {
        print(&prometheus(&found))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Formats counters; all of one family stand together, after its type.
fn prometheus(found: &[(u8, Metric)]) -> String {
    let family = |m: &Metric| m.name.split('{').next().unwrap_or_default().to_owned();
    let mut sorted: Vec<&(u8, Metric)> = found.iter().collect();
    sorted.sort_by_key(|(n, m)| (family(m), *n, m.pd.clone(), m.name.clone()));
    let mut text = String::new();
    let mut last = String::new();
    for (node, m) in sorted {
        let family = family(m);
        if family != last {
            let kind = if family.ends_with("_total") { "counter" } else { "gauge" };
            text.push_str(&format!("# TYPE {family} {kind}\n"));
            last.clone_from(&family);
        }
        let more = m.name[family.len()..].trim_start_matches('{').trim_end_matches('}');
        // A counter of the kernel's about a domain names that domain itself.
        let mut labels = vec![format!("node=\"{node}\"")];
        if !more.contains("pd=") {
            labels.push(format!("pd=\"{}\"", m.pd));
        }
        if !more.is_empty() {
            labels.push(more.to_owned());
        }
        text.push_str(&format!("{family}{{{}}} {}\n", labels.join(","), m.value));
    }
    text
}

/// `clustix logs`: from the state folder, so they can be read when nothing serves.
///
/// # Errors
/// There is no such log.
pub fn logs(folder: &Folder, args: &Logs) -> Result<ExitCode> {
    let Some(cluster) = folder.cluster()? else {
        bail!("cluster {:?} was never up", folder.name())
    };
    let wanted: Vec<u8> = match args.node {
        Some(slot) => {
            cluster.check_here(slot)?;
            vec![slot]
        }
        None => cluster.slots().into_iter().chain([WITNESS]).collect(),
    };
    let mut values = Vec::new();
    let mut any = false;
    for slot in wanted {
        let Ok(bytes) = std::fs::read(folder.node(slot).join("log")) else { continue };
        any = true;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let node = if slot == WITNESS { json!("witness") } else { json!(slot) };
        let who = if slot == WITNESS { "witness".to_owned() } else { called(slot) };
        for line in text.lines() {
            if args.json {
                values.push(json!({"node": node, "line": line}));
            } else {
                print(&format!("{who}: {}\n", plain(line)))?;
            }
        }
    }
    if !any {
        let why = if cluster.phase == Phase::Stopped {
            "it is down, and logs go with its nodes"
        } else {
            "no node has one"
        };
        bail!("cluster {:?} has no logs: {why}", cluster.name);
    }
    if args.json {
        print_json(&Value::Array(values))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["1".into(), "long cell".into(), "x".into()]];
        assert_eq!(table(&["NODE", "B", "C"], &rows), "NODE  B          C\n1     long cell  x\n");
    }

    #[test]
    fn labels_are_merged() {
        let metric = |name: &str| Metric { name: name.into(), pd: "posix".into(), value: 7 };
        let text = prometheus(&[
            (1, metric("a_total{to=\"x\"}")),
            (0, metric("a_total")),
            (0, metric("b")),
        ]);
        assert_eq!(
            text,
            "# TYPE a_total counter\na_total{node=\"0\",pd=\"posix\"} 7\n\
             a_total{node=\"1\",pd=\"posix\",to=\"x\"} 7\n# TYPE b gauge\nb{node=\"0\",pd=\"posix\"} 7\n"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(plain("a\x1b[31mb\n"), "a?[31mb?");
    }
}
