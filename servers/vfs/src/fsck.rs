//! Checks the invariants of the whole file system. For tests and for operators who doubt: reads every
//! object, and presumes that nothing changes meanwhile.

use crate::object::{self, Block, LEAF_BYTES};
use crate::{dir, extent, file};
use clustix_ccache::cache::Cache;
use clustix_ccache::name::Name;
use clustix_ccache::set;
use clustix_proto::Answer;
use clustix_proto::vfs::{Inode, NAME_MAX, PAGE_SIZE, ROOT, name};
use std::collections::{BTreeMap, BTreeSet};

/// Something that is not as it should be, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem(pub String);

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names of all objects of the vfs that some nodes list.
#[derive(Clone, Default, Debug)]
pub struct Inventory(pub BTreeSet<Name>);

/// Adds what this node is the primary of. Of a cluster, call it with each node's cache.
pub async fn inventory<C: Cache>(cache: &C, all: &mut Inventory) -> Answer<()> {
    for s in [set::INODE, set::DIRBLOCK, set::SYMLINK, set::PAGE, set::SUPER] {
        let mut after = None;
        loop {
            let page = cache.list(s, after).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            all.0.extend(page.into_iter().map(|(n, _)| n));
        }
    }
    Ok(())
}

/// Checks everything, where one node is primary of all.
pub async fn fsck<C: Cache>(cache: &C) -> Answer<Vec<Problem>> {
    let mut all = Inventory::default();
    inventory(cache, &mut all).await?;
    check(cache, &all).await
}

/// Checks everything in `all`.
pub async fn check<C: Cache>(cache: &C, all: &Inventory) -> Answer<Vec<Problem>> {
    let mut c =
        Check { cache, all, inodes: BTreeMap::new(), seen: BTreeSet::new(), found: Vec::new() };
    c.read_inodes().await?;
    c.check_directories().await?;
    c.check_inodes().await?;
    c.check_left_over();
    Ok(c.found)
}

struct Check<'a, C> {
    cache: &'a C,
    all: &'a Inventory,
    inodes: BTreeMap<u64, Inode>,
    /// Objects that something refers to.
    seen: BTreeSet<Name>,
    found: Vec<Problem>,
}

#[derive(Default)]
struct Names {
    count: u32,
    /// Directories that name it.
    from: Vec<u64>,
}

impl<C: Cache> Check<'_, C> {
    fn problem(&mut self, text: String) {
        self.found.push(Problem(text));
    }

    async fn read_inodes(&mut self) -> Answer<()> {
        let mut bytes = Vec::new();
        for &n in self.all.0.iter().filter(|n| n.set() == set::INODE) {
            let ino = n.id() as u64;
            if name::inode(ino) != n {
                self.found.push(Problem(format!("{n}: in a shard that is not its number's")));
            }
            if !self.cache.get(n, &mut bytes).await?.exists() {
                self.found.push(Problem(format!("{n}: listed but absent")));
                continue;
            }
            match object::decode_inode(&bytes) {
                Ok(inode) => {
                    self.inodes.insert(ino, inode);
                }
                Err(_) => self.found.push(Problem(format!("{n}: not an inode"))),
            }
        }
        if !self.inodes.get(&ROOT).is_some_and(|r| r.is_dir() && r.parent == ROOT) {
            self.problem("no root directory".into());
        }
        if !self.all.0.contains(&name::superblock()) {
            self.problem("no superblock".into());
        }
        self.seen.insert(name::superblock());
        Ok(())
    }

    async fn check_directories(&mut self) -> Answer<()> {
        let mut names: BTreeMap<u64, Names> = BTreeMap::new();
        let dirs: Vec<u64> = self.inodes.iter().filter(|i| i.1.is_dir()).map(|i| *i.0).collect();
        for &ino in &dirs {
            let mut nodes = vec![(dir::TRIE_ROOT, 0u64, u64::MAX)];
            let (mut size, mut subdirs) = (0u64, 0u32);
            let mut positions = BTreeSet::new();
            while let Some((node, low, high)) = nodes.pop() {
                let block = name::dirblock(ino, node);
                self.seen.insert(block);
                let mut bytes = Vec::new();
                if !self.cache.get(block, &mut bytes).await?.exists() {
                    self.problem(format!("directory {ino:x}: block {node} is missing"));
                    continue;
                }
                match Block::parse(&bytes) {
                    Ok(Block::Split) if node < 1 << 31 => {
                        let middle = low + (high - low) / 2;
                        nodes.push((node << 1 | 1, middle + 1, high));
                        nodes.push((node << 1, low, middle));
                    }
                    Ok(Block::Leaf(list)) => {
                        let mut before = None;
                        if bytes.len() > LEAF_BYTES {
                            self.problem(format!("directory {ino:x}: block {node} is too large"));
                        }
                        for entry in list {
                            let Ok(e) = entry else {
                                self.problem(format!(
                                    "directory {ino:x}: block {node} is malformed"
                                ));
                                break;
                            };
                            let shown = String::from_utf8_lossy(e.name).into_owned();
                            let h = dir::hash(ino, e.name);
                            if h < low || h > high || before.is_some_and(|b| b >= h) {
                                self.problem(format!("directory {ino:x}: {shown:?} misplaced"));
                            }
                            before = Some(h);
                            if !positions.insert(dir::position(h)) {
                                self.problem(format!("directory {ino:x}: {shown:?} hides a name"));
                            }
                            let bad = e.name.is_empty()
                                || e.name.len() > NAME_MAX
                                || e.name.contains(&b'/')
                                || e.name.contains(&0)
                                || matches!(e.name, b"." | b"..");
                            if bad {
                                self.problem(format!("directory {ino:x}: bad name {shown:?}"));
                            }
                            match self.inodes.get(&e.ino) {
                                None => self.problem(format!(
                                    "directory {ino:x}: {shown:?} leads to no inode ({:x})",
                                    e.ino
                                )),
                                Some(i) if i.kind() != e.kind => self.problem(format!(
                                    "directory {ino:x}: {shown:?} has the wrong type"
                                )),
                                Some(_) => {}
                            }
                            size += 1;
                            subdirs += u32::from(e.kind == clustix_proto::vfs::mode::S_IFDIR);
                            let n = names.entry(e.ino).or_default();
                            n.count += 1;
                            n.from.push(ino);
                        }
                    }
                    _ => self.problem(format!("directory {ino:x}: block {node} is malformed")),
                }
            }
            let inode = &self.inodes[&ino];
            let (said, nlink) = (inode.size, inode.nlink);
            if said != size {
                self.problem(format!("directory {ino:x}: size {said}, but {size} names"));
            }
            if nlink != 0 && nlink != 2 + subdirs {
                self.problem(format!("directory {ino:x}: nlink {nlink}, {subdirs} subdirectories"));
            }
        }
        self.check_links(&names);
        Ok(())
    }

    fn check_links(&mut self, names: &BTreeMap<u64, Names>) {
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            let none = Names::default();
            let n = names.get(ino).unwrap_or(&none);
            if inode.nlink == 0 && inode.openers == 0 {
                found.push(format!("inode {ino:x}: neither names nor openers"));
            }
            if inode.is_dir() {
                let expected = u32::from(*ino != ROOT && inode.nlink > 0);
                if n.count != expected {
                    found.push(format!("directory {ino:x}: {} names", n.count));
                }
                if *ino != ROOT && inode.nlink > 0 && n.from != [inode.parent] {
                    found.push(format!("directory {ino:x}: its parent does not name it"));
                }
                let mut at = *ino;
                let steps = (0..=self.inodes.len()).take_while(|_| {
                    let on = at != ROOT && inode.nlink > 0;
                    at = self.inodes.get(&at).map_or(ROOT, |i| i.parent);
                    on
                });
                if steps.count() > self.inodes.len() {
                    found.push(format!("directory {ino:x}: in a cycle"));
                }
            } else if n.count != inode.nlink {
                found.push(format!("inode {ino:x}: nlink {}, but {} names", inode.nlink, n.count));
            }
        }
        self.found.extend(found.into_iter().map(Problem));
    }

    async fn check_inodes(&mut self) -> Answer<()> {
        let mut bytes = Vec::new();
        let mut found = Vec::new();
        for (ino, inode) in &self.inodes {
            self.seen.insert(name::inode(*ino));
            if inode.is_symlink() {
                self.seen.insert(name::symlink(*ino));
                let there = self.cache.get(name::symlink(*ino), &mut bytes).await?.exists();
                if !there || bytes.len() as u64 != inode.size {
                    found.push(format!("symbolic link {ino:x}: no target of {} bytes", inode.size));
                }
            }
            if !inode.extents.is_empty() && !inode.is_regular() {
                found.push(format!("inode {ino:x}: pages, but no regular file"));
            }
        }
        for &n in self.all.0.iter().filter(|n| n.set() == set::PAGE) {
            let (ino, index) = (n.part_number(), n.part_index());
            let Some(inode) = self.inodes.get(&ino) else { continue };
            if !extent::contains(&inode.extents, index) {
                found.push(format!("{n}: outside of its inode's extents"));
                continue;
            }
            self.seen.insert(n);
            if u64::from(index) >= file::pages_of(inode.size) {
                found.push(format!("{n}: past the end of its file, {} bytes", inode.size));
            }
            self.cache.get(n, &mut bytes).await?;
            let last = u64::from(index) * PAGE_SIZE as u64 + bytes.len() as u64;
            if last > inode.size && u64::from(index) + 1 == file::pages_of(inode.size) {
                found.push(format!("{n}: bytes past the end of its file, {}", inode.size));
            }
        }
        self.found.extend(found.into_iter().map(Problem));
        Ok(())
    }

    fn check_left_over(&mut self) {
        for n in self.all.0.difference(&self.seen) {
            self.found.push(Problem(format!("{n}: nothing refers to it")));
        }
    }
}
