//! A stub image for these tests: position-independent machine code in a one-segment ELF file.
//!
//! It maps its window, says READY, and obeys what it is told: 1 exits with 7; 2 forks the way stubs
//! do and the child begins as its parent did; 3 receives a region and shows its first eight bytes.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata.test_stub, \"a\"",
    ".globl clustix_test_stub_start",
    "clustix_test_stub_start:",
    // rbx = mmap(0, 128 KiB, READ|WRITE, SHARED, 4, 0)
    "mov eax, 9",
    "xor edi, edi",
    "mov esi, 131072",
    "mov edx, 3",
    "mov r10d, 1",
    "mov r8d, 4",
    "xor r9d, r9d",
    "syscall",
    "mov rbx, rax",
    "20:",
    "mov dword ptr [rbx + 0x100], 0x51ab",
    "21:",
    "mov eax, 24", // sched_yield
    "syscall",
    "mov ecx, [rbx + 0x104]",
    "test ecx, ecx",
    "jz 21b",
    "mov dword ptr [rbx + 0x104], 0",
    "cmp ecx, 1",
    "je 22f",
    "cmp ecx, 2",
    "je 23f",
    "cmp ecx, 3",
    "je 24f",
    "jmp 21b",
    // exit(7)
    "22:",
    "mov eax, 60",
    "mov edi, 7",
    "syscall",
    // fork: r12d = window, r13d = socket
    "23:",
    "call 30f",
    "mov r12d, [rsp - 256]",
    "mov r13d, [rsp - 252]",
    "mov eax, 56", // clone(CLONE_PARENT | SIGCHLD)
    "mov edi, 0x8011",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "syscall",
    "test eax, eax",
    "jz 25f",
    "mov eax, 3", // close both
    "mov edi, r12d",
    "syscall",
    "mov eax, 3",
    "mov edi, r13d",
    "syscall",
    "mov dword ptr [rbx + 0x100], 2",
    "jmp 21b",
    // the child: the new window at the old address, the new socket as descriptor 3
    "25:",
    "mov eax, 9",
    "mov rdi, rbx",
    "mov esi, 131072",
    "mov edx, 3",
    "mov r10d, 0x11",
    "mov r8d, r12d",
    "xor r9d, r9d",
    "syscall",
    "mov eax, 33", // dup2
    "mov edi, r13d",
    "mov esi, 3",
    "syscall",
    "mov eax, 3",
    "mov edi, r12d",
    "syscall",
    "mov eax, 3",
    "mov edi, r13d",
    "syscall",
    "mov eax, 157", // prctl(PR_SET_PDEATHSIG, SIGKILL)
    "mov edi, 1",
    "mov esi, 9",
    "syscall",
    "mov eax, 1", // hello: write(3, window, 4)
    "mov edi, 3",
    "mov rsi, rbx",
    "mov edx, 4",
    "syscall",
    "jmp 20b",
    // a region
    "24:",
    "call 30f",
    "mov r8d, [rsp - 256]",
    "mov eax, 9",
    "xor edi, edi",
    "mov esi, 4096",
    "mov edx, 1",
    "mov r10d, 2",
    "xor r9d, r9d",
    "syscall",
    "mov rax, [rax]",
    "mov [rbx + 0x108], rax",
    "mov dword ptr [rbx + 0x100], 3",
    "jmp 21b",
    // recvmsg(3): descriptors at [caller's rsp - 256]. Below the return address (rsp + 0 here):
    // cmsg buffer at rsp - 264, msghdr at rsp - 400, iovec at rsp - 432, data at rsp - 440.
    "30:",
    "lea rax, [rsp - 440]",
    "mov [rsp - 432], rax",
    "mov qword ptr [rsp - 424], 8",
    "mov qword ptr [rsp - 400], 0",
    "mov qword ptr [rsp - 392], 0",
    "lea rax, [rsp - 432]",
    "mov [rsp - 384], rax",
    "mov qword ptr [rsp - 376], 1",
    "lea rax, [rsp - 264]",
    "mov [rsp - 368], rax",
    "mov qword ptr [rsp - 360], 64",
    "mov qword ptr [rsp - 352], 0",
    "mov eax, 47",
    "mov edi, 3",
    "lea rsi, [rsp - 400]",
    "xor edx, edx",
    "syscall",
    "ret",
    ".globl clustix_test_stub_end",
    "clustix_test_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static clustix_test_stub_start: u8;
    static clustix_test_stub_end: u8;
}

const BASE: u64 = 0x7e00_0000_0000;
const HEADERS: usize = 64 + 56;

/// The image as an ELF file.
pub(crate) fn elf() -> Vec<u8> {
    // SAFETY: the two labels bound one read-only object of the program.
    let code = unsafe {
        let start = &raw const clustix_test_stub_start;
        let end = &raw const clustix_test_stub_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize)
    };
    let mut f = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let len = (HEADERS + code.len()) as u64;
    f.extend(2u16.to_le_bytes()); // ET_EXEC
    f.extend(62u16.to_le_bytes()); // x86-64
    f.extend(1u32.to_le_bytes());
    f.extend((BASE + HEADERS as u64).to_le_bytes()); // entry
    f.extend(64u64.to_le_bytes()); // program headers
    f.extend(0u64.to_le_bytes());
    f.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        f.extend(half.to_le_bytes());
    }
    f.extend(1u32.to_le_bytes()); // PT_LOAD
    f.extend(5u32.to_le_bytes()); // R+X
    for word in [0, BASE, BASE, len, len, 4096] {
        f.extend(word.to_le_bytes());
    }
    f.extend(code);
    f
}
