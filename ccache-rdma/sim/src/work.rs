//! What simulated clients do, and to which objects.

use clustix_ccache::cache::Version;
use clustix_ccache::layout;
use clustix_ccache::name::{Name, Shard};
use clustix_ccache::set::{DIRBLOCK, INODE, PAGE, RECORD};
use std::sync::OnceLock;

/// What an account holds at first.
pub const START: i64 = 1000;

/// Objects that are read and counted up.
pub fn counters() -> [Name; 4] {
    [
        Name::new(RECORD, Shard(0), 1),
        Name::new(INODE, Shard(1), 2),
        Name::new(DIRBLOCK, Shard(2), 3),
        Name::new(PAGE, Shard(4), 4),
    ]
}

/// Objects between which amounts are moved.
pub fn accounts() -> [Name; 3] {
    [
        Name::new(INODE, Shard(3), 10),
        Name::new(RECORD, Shard(1), 11),
        Name::new(DIRBLOCK, Shard(5), 12),
    ]
}

/// Objects that are created and removed.
pub fn flags() -> [Name; 3] {
    [
        Name::new(INODE, Shard(1), 20),
        Name::new(RECORD, Shard(2), 21),
        Name::new(INODE, Shard(1), 22),
    ]
}

/// Two objects with the same validity counter, written without regard to what they held: a write
/// of one voids copies of the other, whose readers then register again and again.
pub fn twins() -> [Name; 2] {
    static TWINS: OnceLock<[Name; 2]> = OnceLock::new();
    *TWINS.get_or_init(|| {
        let counter = |n: Name| layout::hash(n) % layout::control::COUNTER_COUNT;
        let first = Name::new(INODE, Shard(2), 30);
        let second = (31..).map(|id| Name::new(INODE, Shard(3), id));
        let mut second = second.filter(|n| counter(*n) == counter(first));
        [first, second.next().unwrap_or(first)]
    })
}

/// All of them.
pub fn objects() -> Vec<Name> {
    let mut all = Vec::from(counters());
    all.extend(accounts());
    all.extend(flags());
    all.extend(twins());
    all
}

/// A value: a number, and a tag that no other write carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Value {
    /// What it counts.
    pub number: i64,
    /// Who wrote it; 0 stands for "absent".
    pub tag: u64,
}

impl Value {
    /// A payload that says the value and, if it is torn, that it is. `len`: of all payloads, if
    /// they are to be alike.
    pub fn payload(&self, name: Name, len: Option<usize>) -> Vec<u8> {
        let most = layout::set(name.set()).map_or(64, |l| l.set.capacity as usize);
        let len = len.unwrap_or(40 + (self.tag as usize * 97) % 3000).min(most);
        let mut data = self.number.to_le_bytes().to_vec();
        data.extend_from_slice(&self.tag.to_le_bytes());
        data.extend_from_slice(&(len as u64).to_le_bytes());
        let fill = |i: usize| (self.tag as u8).wrapping_add(i as u8);
        data.extend((24..len).map(fill));
        data
    }

    /// Reads a payload; the error says how it is torn.
    pub fn parse(name: Name, data: &[u8]) -> Result<Value, String> {
        let word = |i: usize| data.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok());
        let words: Option<[[u8; 8]; 3]> = (|| Some([word(0)?, word(1)?, word(2)?]))();
        let Some([number, tag, len]) = words else {
            return Err(format!("{name}: a payload of {} bytes", data.len()));
        };
        let value = Value { number: i64::from_le_bytes(number), tag: u64::from_le_bytes(tag) };
        let len = u64::from_le_bytes(len) as usize;
        if len == data.len() && value.payload(name, Some(len)) == data {
            Ok(value)
        } else {
            Err(format!("{name}: a torn payload of {} bytes", data.len()))
        }
    }
}

/// One thing that a client does, in several requests.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Reads and writes one more.
    Increment(Name),
    /// Takes ownership, then the same.
    Grab(Name),
    /// Moves an amount from one account to another.
    Transfer(Name, Name, i64),
    /// Adds all accounts up and has what was read confirmed.
    Sum,
    /// Creates what is absent, removes what is there.
    Flip(Name),
    /// Waits for a change.
    Wait(Name),
    /// Writes without reading.
    Set(Name),
    /// Reads.
    Look(Name),
}

/// How often each kind of work is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Weights of increment, grab, transfer, sum, flip, wait, set, look.
    pub weights: [usize; 8],
    /// So many of the counters are in use.
    pub counters: usize,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { weights: [4, 1, 4, 2, 2, 1, 2, 3], counters: 4 }
    }
}

impl Mix {
    /// The next work, from chance.
    pub fn choose(&self, random: &mut crate::random::Random) -> Work {
        let mut left = random.below(self.weights.iter().sum());
        let kind = self.weights.iter().position(|w| {
            let here = left < *w;
            left = left.saturating_sub(*w);
            here
        });
        let counter = counters()[random.below(self.counters)];
        let twin = twins()[random.below(2)];
        match kind.unwrap_or(0) {
            0 => Work::Increment(counter),
            1 => Work::Grab(counter),
            2 => {
                let a = random.below(3);
                let b = (a + 1 + random.below(2)) % 3;
                Work::Transfer(accounts()[a], accounts()[b], random.below(50) as i64 - 25)
            }
            3 => Work::Sum,
            4 => Work::Flip(flags()[random.below(3)]),
            5 => Work::Wait(counters()[0]),
            6 => Work::Set(twin),
            _ => {
                let all = objects();
                let any = all[random.below(all.len())];
                Work::Look([counter, twin, twin, any][random.below(4)])
            }
        }
    }
}

/// What has been read of an object.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Which.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Its value; the default for an absent one.
    pub value: Value,
}
