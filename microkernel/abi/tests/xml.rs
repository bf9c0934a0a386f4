//! Every name, number and argument order that Clustix shares with seL4, against the interface
//! description that the locked package `sel4-sys` 0.0.28 carries. The package is never compiled:
//! only its XML, bitfield and header files are read.

use clustix_abi::{
    Error, Fault, Hosted, Invocation, LookupFailure, MessageInfo, ObjectType, Rights, Syscall,
    cap_data, error, fault, hosted, message, object, syscall,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `libsel4` of the package, as cargo has unpacked it (cargo fetches it if need be: it is locked).
fn libsel4() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find_libsel4)
}

fn find_libsel4() -> PathBuf {
    let metadata = |offline: &[&str]| {
        Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .args(offline)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs")
    };
    let mut output = metadata(&["--offline"]);
    if !output.status.success() {
        output = metadata(&[]);
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let found: Vec<_> = packages.iter().filter(|p| p["name"] == "sel4-sys").collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["version"], "0.0.28");
    let manifest = Path::new(found[0]["manifest_path"].as_str().unwrap());
    manifest.parent().unwrap().join("seL4/libsel4")
}

fn read(path: &str) -> String {
    let path = libsel4().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Identifiers of a C enumeration that are defined in order from 0, with conditional parts left out
/// as this variant does.
fn c_enumeration(header: &str, first: &str) -> Vec<String> {
    let text = read(header);
    let start = text.find(first).unwrap_or_else(|| panic!("{first} in {header}"));
    let mut on = true;
    let mut found = Vec::new();
    for line in text[start..].lines() {
        let line = line.trim();
        if line.starts_with('}') {
            break;
        }
        if line.starts_with("#ifdef") {
            on = false;
        } else if line.starts_with("#endif") {
            on = true;
        } else if on && line.starts_with("seL4_") {
            let end = line.find(|c: char| !c.is_alphanumeric() && c != '_');
            found.push(line[..end.unwrap_or(line.len())].to_owned());
        }
    }
    found
}

#[test]
fn system_calls() {
    let text = read("include/api/syscall.xml");
    let xml = roxmltree::Document::parse(&text).unwrap();
    let api = xml.descendants().find(|n| n.has_tag_name("api")).unwrap();
    let names: Vec<_> = api
        .descendants()
        .filter(|n| n.has_tag_name("syscall"))
        .map(|n| n.attribute("name").unwrap())
        .collect();
    assert_eq!(names.len(), 8);
    // The generator counts down from -1 in the file's order.
    for (i, name) in names.iter().enumerate() {
        let number = -1 - i as i64;
        assert_eq!(Syscall::from_number(number).map(Syscall::name), Some(*name), "{number}");
    }
    for s in Syscall::ALL {
        let shared = names.contains(&s.name());
        assert_eq!(!shared, s.number() <= syscall::OWN_FIRST, "{s:?}");
    }
}

struct Method {
    id: String,
    interface: String,
    name: String,
    arguments: Vec<String>,
}

/// Methods in the order in which seL4's generators number them, those of absent options left out.
fn methods() -> Vec<Method> {
    let files = [
        "include/interfaces/sel4.xml",
        "sel4_arch_include/x86_64/interfaces/sel4arch.xml",
        "arch_include/x86/interfaces/sel4arch.xml",
    ];
    let mut methods = Vec::new();
    for file in files {
        let text = read(file);
        let options =
            roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
        let xml = roxmltree::Document::parse_with_options(&text, options).unwrap();
        for m in xml.descendants().filter(|n| n.has_tag_name("method")) {
            match m.attribute("condition") {
                None => {}
                Some(
                    "CONFIG_MAX_NUM_NODES > 1"
                    | "defined(CONFIG_VTX)"
                    | "defined(CONFIG_HARDWARE_DEBUG_API)",
                ) => continue,
                Some(other) => panic!("a condition nobody has decided about: {other}"),
            }
            let arguments = m
                .children()
                .filter(|p| p.has_tag_name("param") && p.attribute("dir") == Some("in"))
                .map(|p| p.attribute("name").unwrap().to_owned())
                .collect();
            methods.push(Method {
                id: m.attribute("id").unwrap().to_owned(),
                interface: m.parent().unwrap().attribute("name").unwrap().to_owned(),
                name: m.attribute("name").unwrap().to_owned(),
                arguments,
            });
        }
    }
    methods
}

#[test]
fn invocations() {
    let methods = methods();
    // 0 is InvalidInvocation.
    assert_eq!(Invocation::from_number(0), None);
    for (i, m) in methods.iter().enumerate() {
        let number = i as u64 + 1;
        let ours = Invocation::from_number(number)
            .unwrap_or_else(|| panic!("{number}: {}_{}", m.interface, m.name));
        assert_eq!(ours.name(), m.id, "{number}");
        assert_eq!(ours.arguments(), m.arguments, "{}", m.id);
    }
    assert_eq!(Invocation::ALL.len(), methods.len());
}

/// What the kernel takes as words and as capabilities, in which order: what core's decoding rests
/// on, checked here against the types that the description gives.
#[test]
fn words_and_capabilities_of_carried_out_invocations() {
    let text = read("include/interfaces/sel4.xml");
    let xml = roxmltree::Document::parse(&text).unwrap();
    let split = |id: &str| -> (Vec<String>, Vec<String>) {
        let m = xml.descendants().find(|n| n.attribute("id") == Some(id)).unwrap();
        let params = m.children().filter(|p| p.has_tag_name("param"));
        let (caps, words): (Vec<_>, Vec<_>) = params.partition(|p| {
            matches!(p.attribute("type"), Some("seL4_CNode" | "seL4_CPtr" | "seL4_TCB"))
        });
        let names = |of: Vec<roxmltree::Node>| {
            of.iter().map(|p| p.attribute("name").unwrap().to_owned()).collect()
        };
        (names(words), names(caps))
    };
    let cases: [(Invocation, &[&str], &[&str]); 9] = [
        (
            Invocation::UntypedRetype,
            &["type", "size_bits", "node_index", "node_depth", "node_offset", "num_objects"],
            &["root"],
        ),
        (Invocation::CNodeRevoke, &["index", "depth"], &[]),
        (Invocation::CNodeDelete, &["index", "depth"], &[]),
        (Invocation::CNodeCancelBadgedSends, &["index", "depth"], &[]),
        (
            Invocation::CNodeCopy,
            &["dest_index", "dest_depth", "src_index", "src_depth", "rights"],
            &["src_root"],
        ),
        (
            Invocation::CNodeMint,
            &["dest_index", "dest_depth", "src_index", "src_depth", "rights", "badge"],
            &["src_root"],
        ),
        (
            Invocation::CNodeMove,
            &["dest_index", "dest_depth", "src_index", "src_depth"],
            &["src_root"],
        ),
        (
            Invocation::CNodeMutate,
            &["dest_index", "dest_depth", "src_index", "src_depth", "badge"],
            &["src_root"],
        ),
        (
            Invocation::CNodeRotate,
            &[
                "dest_index",
                "dest_depth",
                "dest_badge",
                "pivot_index",
                "pivot_depth",
                "pivot_badge",
                "src_index",
                "src_depth",
            ],
            &["pivot_root", "src_root"],
        ),
    ];
    for (invocation, words, caps) in cases {
        let (w, c) = split(invocation.name());
        assert_eq!((w.as_slice(), c.as_slice()), (&words.map_owned()[..], &caps.map_owned()[..]));
    }
}

trait MapOwned {
    fn map_owned(&self) -> Vec<String>;
}

impl MapOwned for &[&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|s| (*s).to_owned()).collect()
    }
}

#[test]
fn errors_and_lookup_failures() {
    let names = c_enumeration("include/sel4/errors.h", "seL4_NoError = 0");
    assert_eq!(names[0], "seL4_NoError");
    let end = names.iter().position(|n| n == "seL4_NumErrors").unwrap();
    assert_eq!(error::NO_ERROR, 0);
    for (number, name) in names.iter().enumerate().take(end).skip(1) {
        let ours = Error::from_number(number as u64).map(Error::name);
        assert_eq!(ours, name.strip_prefix("seL4_"), "{number}");
    }
    for e in Error::ALL {
        assert!(e.number() < end as u64 || e.number() >= 0x1000, "{e:?}");
    }
    let names = c_enumeration("include/sel4/constants.h", "seL4_NoFailure = 0");
    assert_eq!(names.len(), 1 + LookupFailure::ALL.len());
    for (number, name) in names.iter().enumerate().skip(1) {
        let ours = LookupFailure::from_number(number as u64).map(LookupFailure::name);
        assert_eq!(ours, name.strip_prefix("seL4_"), "{number}");
    }
}

#[test]
fn object_types() {
    let mut names = c_enumeration("include/sel4/objecttype.h", "seL4_UntypedObject");
    assert_eq!(names.pop().as_deref(), Some("seL4_NonArchObjectTypeCount"));
    let mode = "sel4_arch_include/x86_64/sel4/sel4_arch/objecttype.h";
    names.extend(c_enumeration(mode, "seL4_X86_PDPTObject = seL4_NonArchObjectTypeCount"));
    assert_eq!(names.pop().as_deref(), Some("seL4_ModeObjectTypeCount"));
    let arch = "arch_include/x86/sel4/arch/objecttype.h";
    names.extend(c_enumeration(arch, "seL4_X86_4K = seL4_ModeObjectTypeCount"));
    assert_eq!(names.pop().as_deref(), Some("seL4_ObjectTypeCount"));
    for (number, name) in names.iter().enumerate() {
        let ours = ObjectType::from_number(number as u64).map(ObjectType::name);
        assert_eq!(ours, Some(name["seL4_".len()..].replace('_', "").as_str()), "{number}");
    }
    for t in ObjectType::ALL {
        assert!(t.number() < names.len() as u64 || t.number() >= object::OWN_FIRST, "{t:?}");
    }
}

/// Fields of a bitfield block with their widths, from the high bits down.
fn block(file: &str, name: &str) -> Vec<(String, u32)> {
    let text = read(file);
    let start = text.find(&format!("block {name} {{")).unwrap();
    text[start..]
        .lines()
        .skip(1)
        .map(str::trim)
        .take_while(|l| *l != "}")
        .filter(|l| !l.is_empty() && !l.starts_with("--"))
        .map(|l| {
            let words: Vec<_> = l.split_whitespace().collect();
            match words[..] {
                ["padding", width] => (String::new(), width.parse().unwrap()),
                ["field", name, width] => (name.to_owned(), width.parse().unwrap()),
                _ => panic!("{l}"),
            }
        })
        .collect()
}

/// Where a field is: its lowest bit and its width.
fn field(fields: &[(String, u32)], name: &str) -> (u32, u32) {
    let at = fields.iter().position(|(n, _)| n == name).unwrap();
    (fields[at + 1..].iter().map(|(_, w)| w).sum(), fields[at].1)
}

#[test]
fn message_info() {
    let fields = block("include/sel4/shared_types_64.bf", "seL4_MessageInfo");
    assert_eq!(fields.iter().map(|(_, w)| w).sum::<u32>(), 64);
    let max = |width: u32| (1u64 << width) - 1;
    let (shift, width) = field(&fields, "length");
    assert_eq!(width, message::MSG_LENGTH_BITS);
    let info = MessageInfo::new(0, 0, 0, max(width) as usize);
    assert_eq!(info.word(), max(width) << shift);
    assert_eq!(info.length() as u64, max(width));
    let (shift, width) = field(&fields, "extraCaps");
    assert_eq!(width, message::MSG_EXTRA_CAP_BITS);
    let info = MessageInfo::new(0, 0, max(width) as usize, 0);
    assert_eq!(info.word(), max(width) << shift);
    assert_eq!(info.extra_caps() as u64, max(width));
    let (shift, width) = field(&fields, "capsUnwrapped");
    assert_eq!(width, message::MSG_CAPS_UNWRAPPED_BITS);
    let info = MessageInfo::new(0, max(width), 0, 0);
    assert_eq!(info.word(), max(width) << shift);
    assert_eq!(info.caps_unwrapped(), max(width));
    // The label: at seL4's place, and up to the word's end (20 bits in this version).
    let (shift, width) = field(&fields, "label");
    let info = MessageInfo::new(max(width), 0, 0, 0);
    assert_eq!(info.word(), max(width) << shift);
    assert_eq!(message::MSG_LABEL_BITS, 64 - shift);
    assert_eq!(MessageInfo::new(u64::MAX, 0, 0, 0).word(), u64::MAX << shift);
    for label in [
        Hosted::ALL.iter().map(|h| h.number()).max().unwrap(),
        Fault::ALL.iter().map(|f| f.number()).max().unwrap(),
        Error::ALL.iter().map(|e| e.number()).max().unwrap(),
    ] {
        assert!(label <= max(width), "fits even seL4 5's label: {label:#x}");
    }
    let constants = read("include/sel4/constants.h");
    for line in [
        format!("seL4_MsgLengthBits = {},", message::MSG_LENGTH_BITS),
        format!("seL4_MsgExtraCapBits = {}\n", message::MSG_EXTRA_CAP_BITS),
        format!("seL4_MsgMaxLength = {},", message::MSG_MAX_LENGTH),
    ] {
        assert!(constants.contains(&line), "{line}");
    }
}

#[test]
fn rights() {
    let fields = block("include/sel4/shared_types_64.bf", "seL4_CapRights");
    for (name, right) in [
        ("capAllowGrant", Rights::GRANT),
        ("capAllowRead", Rights::READ),
        ("capAllowWrite", Rights::WRITE),
    ] {
        let (shift, width) = field(&fields, name);
        assert_eq!((1 << shift, width), (right.bits(), 1), "{name}");
    }
    // seL4 10 put grantReply above the three.
    assert_eq!(Rights::GRANT_REPLY.bits(), 8);
    assert_eq!(Rights::from_word(u64::MAX), Rights::ALL);
}

#[test]
fn faults() {
    let text = read("arch_include/x86/sel4/arch/shared_types.bf");
    let tags: Vec<(String, u64)> = text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("tag "))
        .map(|l| {
            let (name, number) = l.split_once(' ').unwrap();
            (name.to_owned(), number.trim().parse().unwrap())
        })
        .collect();
    assert_eq!(tags.len(), 6);
    for (name, number) in &tags {
        assert_eq!(Fault::from_number(*number).map(Fault::name), Some(name.as_str()));
    }
    for f in Fault::ALL {
        let shared = tags.iter().any(|(name, _)| name == f.name());
        assert_eq!(!shared, f.number() >= 0x1000, "{f:?}");
    }
    let constants = "sel4_arch_include/x86_64/sel4/sel4_arch/constants.h";
    for (name, words) in [
        ("VMFault", &fault::VM_FAULT_WORDS[..]),
        ("UserException", &fault::USER_EXCEPTION_WORDS[..]),
        ("UnknownSyscall", &fault::UNKNOWN_SYSCALL_WORDS[..]),
    ] {
        let first = format!("seL4_{name}_{},", words[0]);
        let mut theirs = c_enumeration(constants, &first);
        assert_eq!(theirs.pop(), Some(format!("seL4_{name}_Length")));
        let ours: Vec<_> = words.iter().map(|w| format!("seL4_{name}_{w}")).collect();
        assert_eq!(theirs, ours);
    }
}

/// Clustix's own labels and seL4's can never be taken for each other, nor among themselves.
#[test]
fn own_labels_are_apart() {
    let last = Invocation::ALL.iter().map(|i| i.number()).max().unwrap();
    assert!(hosted::FIRST > 16 * last);
    let mut numbers: Vec<_> = Hosted::ALL.iter().map(|h| h.number()).collect();
    assert!(numbers.iter().all(|n| *n >= hosted::FIRST));
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), Hosted::ALL.len());
}

#[test]
fn guards() {
    use clustix_abi::GuardData;
    let guard = GuardData { bits: 0b101, size: 3 };
    assert_eq!(GuardData::from_word(guard.word()), Ok(guard));
    assert_eq!(GuardData::from_word(0b101 << 6 | 2), Err(Error::RangeError));
    assert_eq!(GuardData::from_word(1 << 6), Err(Error::RangeError));
    let widest = GuardData { bits: (1 << cap_data::GUARD_BITS_MAX) - 1, size: 58 };
    assert_eq!(GuardData::from_word(widest.word()), Ok(widest));
}
