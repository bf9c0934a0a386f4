//! ELF files (System V ABI, AMD64 supplement): what of one is mapped where. Every byte is hostile.

use clustix_proto::memory::PAGE;

/// How much of a file's beginning [`parse`] looks at: file header and program headers.
pub const HEAD: usize = 8192;
/// Most program headers.
const HEADERS: usize = 128;
/// Largest span of addresses of one file.
const SPAN: u64 = 1 << 40;
/// Longest interpreter path, with its NUL.
const INTERPRETER: u64 = 4096;

/// Why a file is not a program that can run here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ElfError {
    /// It does not start as an ELF file.
    #[error("not an ELF file")]
    NotElf,
    /// Another machine, word size, byte order or type than a Linux x86-64 program's.
    #[error("not an x86-64 executable")]
    Foreign,
    /// Its program headers are cut off, or too many.
    #[error("program headers are cut off")]
    Headers,
    /// A segment lies outside the file, overlaps another, or has addresses that cannot be.
    #[error("a segment is malformed")]
    Segment,
    /// There is nothing to load, or the entry point is in nothing that is loaded.
    #[error("nothing to run")]
    Empty,
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First address.
    pub start: u64,
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many.
    pub file_len: u64,
    /// Bytes in memory, the rest zeroes.
    pub mem_len: u64,
    /// PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    pub prot: u8,
}

/// A program, or its interpreter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elf {
    /// It may be loaded at any address (ET_DYN).
    pub relocatable: bool,
    /// Entry point.
    pub entry: u64,
    /// What is loaded, ascending, on pages of its own.
    pub segments: Vec<Segment>,
    /// Address of the program headers, 0 if they are not loaded.
    pub headers: u64,
    /// How many program headers.
    pub header_count: u16,
    /// Where the interpreter's path is in the file: offset and length with its NUL.
    pub interpreter: Option<(u64, usize)>,
    /// It wants an executable stack.
    pub executable_stack: bool,
}

impl Elf {
    /// First address, rounded down to a page.
    pub fn start(&self) -> u64 {
        self.segments.first().map_or(0, |s| s.start & !(PAGE - 1))
    }
    /// One past the last address, rounded up to a page.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, |s| (s.start + s.mem_len).next_multiple_of(PAGE))
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], ElfError> {
        let end = at.checked_add(N).ok_or(ElfError::Headers)?;
        self.0.get(at..end).and_then(|b| b.try_into().ok()).ok_or(ElfError::Headers)
    }
    fn u16(&self, at: usize) -> Result<u16, ElfError> {
        self.get(at).map(u16::from_le_bytes)
    }
    fn u32(&self, at: usize) -> Result<u32, ElfError> {
        self.get(at).map(u32::from_le_bytes)
    }
    fn u64(&self, at: usize) -> Result<u64, ElfError> {
        self.get(at).map(u64::from_le_bytes)
    }
}

/// Parses the first bytes (up to [`HEAD`]) of a file of `file_len` bytes.
pub fn parse(head: &[u8], file_len: u64) -> Result<Elf, ElfError> {
    const PT_LOAD: u32 = 1;
    const PT_INTERP: u32 = 3;
    const PT_PHDR: u32 = 6;
    const PT_GNU_STACK: u32 = 0x6474_e551;
    if head.get(..4) != Some(b"\x7fELF") {
        return Err(ElfError::NotElf);
    }
    let b = Bytes(head);
    let [class, order, version] = b.get(4)?;
    let (kind, machine) = (b.u16(16)?, b.u16(18)?);
    if (class, order, version, machine) != (2, 1, 1, 62) || !matches!(kind, 2 | 3) {
        return Err(ElfError::Foreign);
    }
    let (entry, at) = (b.u64(24)?, b.u64(32)?);
    let (size, count) = (b.u16(54)?, b.u16(56)?);
    let at = usize::try_from(at).map_err(|_| ElfError::Headers)?;
    if size != 56 || count == 0 || usize::from(count) > HEADERS {
        return Err(ElfError::Headers);
    }
    let mut elf = Elf {
        relocatable: kind == 3,
        entry,
        segments: Vec::new(),
        headers: 0,
        header_count: count,
        interpreter: None,
        executable_stack: false,
    };
    let mut named = None;
    for i in 0..usize::from(count) {
        let h = at.checked_add(i * 56).ok_or(ElfError::Headers)?;
        let (kind, flags) = (b.u32(h)?, b.u32(h + 4)?);
        let (offset, start) = (b.u64(h + 8)?, b.u64(h + 16)?);
        let (in_file, in_memory) = (b.u64(h + 32)?, b.u64(h + 40)?);
        let in_bounds = offset.checked_add(in_file).is_some_and(|end| end <= file_len);
        match kind {
            PT_LOAD if in_memory == 0 => {}
            PT_LOAD => {
                let prot = (flags >> 2 & 1 | flags & 2 | (flags & 1) << 2) as u8;
                let s = Segment { start, offset, file_len: in_file, mem_len: in_memory, prot };
                elf.push(s, in_bounds)?;
            }
            PT_INTERP => {
                if !in_bounds || !(2..=INTERPRETER).contains(&in_file) {
                    return Err(ElfError::Segment);
                }
                elf.interpreter = Some((offset, in_file as usize));
            }
            PT_PHDR => named = Some(start),
            PT_GNU_STACK => elf.executable_stack = flags & 1 != 0,
            _ => {}
        }
    }
    let holds = |s: &&Segment, a: u64| a >= s.start && a - s.start < s.mem_len;
    if !elf.segments.iter().any(|s| holds(&s, elf.entry)) {
        return Err(ElfError::Empty);
    }
    let at = at as u64;
    let loaded = |s: &&Segment| at >= s.offset && at - s.offset < s.file_len;
    let computed = elf.segments.iter().find(loaded).map(|s| at - s.offset + s.start);
    let named = named.filter(|a| elf.segments.iter().any(|s| holds(&s, *a)));
    elf.headers = named.or(computed).unwrap_or(0);
    Ok(elf)
}

impl Elf {
    fn push(&mut self, s: Segment, in_bounds: bool) -> Result<(), ElfError> {
        let page = |a: u64| a & !(PAGE - 1);
        let end = s.start.checked_add(s.mem_len).ok_or(ElfError::Segment)?;
        let first = self.segments.first().map_or(s.start, |f| f.start);
        let ok = in_bounds
            && s.file_len <= s.mem_len
            && s.start % PAGE == s.offset % PAGE
            && s.start >= first
            && end <= u64::MAX - 2 * PAGE
            && end - first <= SPAN
            && page(s.start) >= self.end();
        if !ok {
            return Err(ElfError::Segment);
        }
        self.segments.push(s);
        Ok(())
    }
}

/// The interpreter line of a script: interpreter and optional argument, if the file starts with `#!`.
/// As Linux does, the line ends at a newline or at the end of `head` (256 bytes are looked at).
pub fn script(head: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let line = head.get(..256.min(head.len()))?.strip_prefix(b"#!")?;
    let line = line.split(|b| *b == b'\n').next()?;
    let blank = |b: &u8| matches!(b, b' ' | b'\t' | 0 | b'\r');
    let start = line.iter().position(|b| !blank(b))?;
    let line = &line[start..];
    let end = line.iter().position(blank).unwrap_or(line.len());
    let (interpreter, rest) = line.split_at(end);
    let argument = rest.iter().position(|b| !blank(b)).map(|a| {
        let last = rest.iter().rposition(|b| !blank(b)).unwrap_or(a);
        rest[a..=last].to_vec()
    });
    Some((interpreter.to_vec(), argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busybox() -> Vec<u8> {
        std::fs::read("/bin/busybox").unwrap()
    }

    #[test]
    fn a_real_program_parses() {
        let b = busybox();
        let elf = parse(&b[..HEAD], b.len() as u64).unwrap();
        assert!(elf.segments.len() >= 2 && elf.headers != 0 && elf.interpreter.is_none());
        let sh = std::fs::read("/bin/dash").unwrap();
        let elf = parse(&sh[..HEAD], sh.len() as u64).unwrap();
        assert!(elf.relocatable && elf.interpreter.is_some());
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_an_answer() {
        let b = busybox();
        let head = &b[..1024];
        for len in 0..head.len() {
            let _ = parse(&head[..len], b.len() as u64);
        }
        // Each header byte with each of a few values: whatever is accepted must be sane.
        for at in 0..64 + 56 * 12 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = head.to_vec();
                changed[at] = value;
                if let Ok(elf) = parse(&changed, b.len() as u64) {
                    assert!(elf.end() >= elf.start());
                    for w in elf.segments.windows(2) {
                        assert!(w[0].start + w[0].mem_len <= w[1].start);
                    }
                    for s in &elf.segments {
                        assert!(s.offset + s.file_len <= b.len() as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn corrupt_files_are_refused_by_name() {
        let b = busybox();
        let n = b.len() as u64;
        let with = |at: usize, v: &[u8]| {
            let mut c = b[..HEAD].to_vec();
            c[at..at + v.len()].copy_from_slice(v);
            parse(&c, n).unwrap_err()
        };
        assert_eq!(with(0, b"x"), ElfError::NotElf);
        assert_eq!(with(4, &[1]), ElfError::Foreign);
        assert_eq!(with(18, &[3, 0]), ElfError::Foreign);
        assert_eq!(with(16, &[1, 0]), ElfError::Foreign);
        assert_eq!(with(32, &u64::MAX.to_le_bytes()), ElfError::Headers);
        assert_eq!(with(56, &0u16.to_le_bytes()), ElfError::Headers);
        assert_eq!(with(56, &0xffffu16.to_le_bytes()), ElfError::Headers);
        assert_eq!(with(24, &0u64.to_le_bytes()), ElfError::Empty);
        assert_eq!(parse(&b[..HEAD], 4096), Err(ElfError::Segment));
        assert_eq!(parse(b"", 0), Err(ElfError::NotElf));
    }

    #[test]
    fn script_lines() {
        let s = |l: &[u8]| script(l);
        assert_eq!(s(b"#!/bin/sh\necho"), Some((b"/bin/sh".to_vec(), None)));
        assert_eq!(s(b"#! /bin/sh  -e x \n"), Some((b"/bin/sh".to_vec(), Some(b"-e x".to_vec()))));
        assert_eq!(s(b"#!\n"), None);
        assert_eq!(s(b"#!"), None);
        assert_eq!(s(b"echo"), None);
    }
}
