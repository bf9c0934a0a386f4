//! The sets: what kinds of object exist, how large one may be, who may map it, how long it lasts.
//!
//! One table for the whole cluster. A set belongs to a *class*; a capability for a class maps the
//! arena of that class and no other.

/// A class of sets: the unit of an arena's memory file and of a capability.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Class {
    /// Names, inodes, file pages: the vfs's.
    Vfs = 0,
    /// Processes, pipes, inboxes: the process server's.
    Process = 1,
    /// Areas of address spaces: the memory server's.
    Memory = 2,
    /// Terminals: the console server's.
    Console = 3,
    /// Nodes, start-up and configuration: init's and control's.
    System = 4,
}

/// Number of classes.
pub const CLASSES: usize = 5;

impl Class {
    /// All, in the order of their numbers.
    pub const ALL: [Class; CLASSES] =
        [Class::Vfs, Class::Process, Class::Memory, Class::Console, Class::System];
    /// Lower-case name, as in the system description.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Vfs => "vfs",
            Class::Process => "process",
            Class::Memory => "memory",
            Class::Console => "console",
            Class::System => "system",
        }
    }
}

/// What a put of an object of the set survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// In the memory of all of its shard's replicas before the put is acknowledged.
    Replicated,
    /// In a slab of this node's that one PD writes; lost with the node.
    Volatile,
}

/// A set of objects of one type.
#[derive(Clone, Copy, Debug)]
pub struct SetDescriptor {
    /// Number, the high 16 bits of a name.
    pub id: u16,
    /// Name, as `clustix objects` prints it.
    pub name: &'static str,
    /// Class, whose arena holds it.
    pub class: Class,
    /// Largest payload, bytes; 1 to 65 536.
    pub capacity: u32,
    /// What a put survives.
    pub durability: Durability,
    /// Whether [`crate::cache::Cache::wait`] may name its objects.
    pub waitable: bool,
    /// Whether the set outlives programs: `down` writes it to the snapshot, `up` restores it.
    pub snapshot: bool,
    /// Version of the payload's layout; a snapshot of another version is refused.
    pub layout: u16,
    /// Slots that each shard's region has room for.
    pub slots: u32,
}

macro_rules! sets {
    ($($(#[$doc:meta])* $id:literal $name:ident $class:ident $capacity:literal $durability:ident $slots:literal $($flag:ident)*;)*) => {
        $($(#[$doc])* pub const $name: u16 = $id;)*
        /// Every set there is.
        pub const SETS: &[SetDescriptor] = &[$(SetDescriptor {
            id: $id,
            name: stringify!($name),
            class: Class::$class,
            capacity: $capacity,
            durability: Durability::$durability,
            waitable: $(flag!(waitable $flag) ||)* false,
            snapshot: $(flag!(snapshot $flag) ||)* false,
            layout: 1,
            slots: $slots,
        }),*];
    };
}
macro_rules! flag {
    (waitable waitable) => {
        true
    };
    (snapshot snapshot) => {
        true
    };
    ($a:ident $b:ident) => {
        false
    };
}

sets! {
    /// Inodes; number = inode number.
    1 INODE Vfs 256 Replicated 65536 snapshot;
    /// Blocks of directories: part (inode number, trie node).
    2 DIRBLOCK Vfs 16384 Replicated 16384 snapshot;
    /// Targets of symbolic links; number = inode number.
    3 SYMLINK Vfs 4096 Replicated 16384 snapshot;
    /// Pages of files, 4 KiB: part (inode number, page index).
    4 PAGE Vfs 4096 Replicated 131072 snapshot;
    /// Extended state of the whole file system (root, mounts); number 0.
    5 SUPER Vfs 4096 Replicated 16 snapshot;
    /// Answers of the vfs, one per lane: node, its incarnation, client, lane.
    6 VFSANSWER Vfs 64 Replicated 4096;

    /// Processes; number = PID.
    16 PROCESS Process 16384 Replicated 4096 waitable;
    /// Pipes: ends and positions; number = pipe number.
    17 PIPE Process 1024 Replicated 4096 waitable;
    /// Pipe contents: part (pipe number, chunk).
    18 PIPEBUF Process 4096 Replicated 65536;
    /// What a node's personality must look at (signals, spawns); number = node slot.
    19 INBOX Process 16384 Replicated 64 waitable;
    /// Threads' blocked calls, as data (the freeze rule); number = TID.
    20 THREAD Process 4096 Replicated 4096;
    /// Open file descriptions; number = description number.
    21 OFILE Process 256 Volatile 0;
    /// Descriptor tables; number = PID.
    22 FDTABLE Process 8192 Volatile 0;
    /// Signal actions, masks, working directory, umask; number = PID.
    23 PSTATE Process 4096 Volatile 0;

    /// Process groups; number = PGID.
    24 GROUP Process 16384 Replicated 4096 waitable;
    /// Orders to every node's process server; number 0.
    25 BROADCAST Process 4096 Replicated 16 waitable;
    /// Answers of the process server, as [`VFSANSWER`].
    26 PROCANSWER Process 64 Replicated 4096;
    /// Jobs: programs started from outside; number = job number.
    27 JOB Process 65536 Replicated 4096 waitable;

    /// Address spaces: the ordered areas; number = address-space number (the PID of its maker).
    32 AREAS Memory 65536 Replicated 4096;
    /// Answers of the memory server, as [`VFSANSWER`].
    33 MEMANSWER Memory 1024 Replicated 4096;

    /// Terminals: settings, queues; number = terminal number.
    48 TTY Console 16384 Replicated 64 waitable;
    /// Answers of the console server, as [`VFSANSWER`].
    49 TTYANSWER Console 8192 Replicated 4096;

    /// Nodes: role, addresses, start time; number = node slot.
    64 NODE System 4096 Replicated 64;
    /// Small named records of init's and control's.
    65 RECORD System 4096 Replicated 64 waitable;
}

/// Looks a set up by number.
pub fn descriptor(set: u16) -> Option<&'static SetDescriptor> {
    SETS.iter().find(|d| d.id == set)
}

/// Looks a set up by the name that `clustix objects` prints, in any case.
pub fn by_name(name: &str) -> Option<&'static SetDescriptor> {
    SETS.iter().find(|d| d.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_sizes_allowed() {
        for (i, d) in SETS.iter().enumerate() {
            assert!((1..=65_536).contains(&d.capacity), "{}", d.name);
            assert!(SETS[..i].iter().all(|e| e.id != d.id && e.name != d.name), "{}", d.name);
        }
    }
}
