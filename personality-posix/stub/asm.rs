//! The stub's few lines of assembly: its one system-call instruction, its entry, the copies that
//! may fault, and the symbols that the compiler expects.

use core::arch::global_asm;

global_asm!(
    // The only syscall instruction of the image. The filter lets calls through from this one
    // instruction pointer alone (`stub_gate`), and looks at number and arguments there.
    ".section .text.gate,\"ax\",@progbits",
    ".globl stub_syscall, stub_gate, stub_restorer",
    "stub_syscall:", // (nr, a, b, c, d, e, f on the stack)
    "mov rax, rdi",
    "mov rdi, rsi",
    "mov rsi, rdx",
    "mov rdx, rcx",
    "mov r10, r8",
    "mov r8, r9",
    "mov r9, [rsp + 8]",
    "2: syscall",
    "stub_gate:",
    "ret",
    // Return from a signal handler; never comes back, so it can share the instruction.
    "stub_restorer:",
    "mov eax, 15",
    "jmp 2b",
    ".text",
    // Entry: the kernel's stack is still mapped; take our own first.
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "lea rsp, [rip + stub_boot_stack_end]",
    "and rsp, -16",
    "call stub_boot",
    "3: ud2",
    "jmp 3b",
    // The stub enters its signal handler by this, once the filter is in force.
    ".globl stub_enter",
    "stub_enter:",
    "ud2",
    "jmp stub_enter",
    // Copies between the window and the app's memory. A fault in copy_begin..copy_end continues at
    // copy_fault. (to, from, len) -> bytes not copied.
    ".globl stub_copy, stub_copy_begin, stub_copy_end, stub_copy_fault",
    "stub_copy:",
    "mov rcx, rdx",
    "stub_copy_begin:",
    "rep movsb",
    "stub_copy_end:",
    "stub_copy_fault:",
    "mov rax, rcx",
    "ret",
    // (to, len) -> bytes not zeroed.
    ".globl stub_zero, stub_zero_begin, stub_zero_end, stub_zero_fault",
    "stub_zero:",
    "mov rcx, rsi",
    "xor eax, eax",
    "stub_zero_begin:",
    "rep stosb",
    "stub_zero_end:",
    "stub_zero_fault:",
    "mov rax, rcx",
    "ret",
    // (to, from, max) -> bytes copied with the NUL, max + 1 if there was none, -1 on a fault.
    ".globl stub_string, stub_string_begin, stub_string_end, stub_string_fault",
    "stub_string:",
    "xor eax, eax",
    "4: cmp rax, rdx",
    "jae 5f",
    "stub_string_begin:",
    "mov cl, [rsi + rax]",
    "mov [rdi + rax], cl",
    "stub_string_end:",
    "inc rax",
    "test cl, cl",
    "jnz 4b",
    "ret",
    "5: lea rax, [rdx + 1]",
    "ret",
    "stub_string_fault:",
    "mov rax, -1",
    "ret",
    // (address) -> 0 if the byte there can be written, else something else. Changes nothing.
    ".globl stub_probe, stub_probe_begin, stub_probe_end, stub_probe_fault",
    "stub_probe:",
    "xor eax, eax",
    "stub_probe_begin:",
    "lock or byte ptr [rdi], 0",
    "stub_probe_end:",
    "ret",
    "stub_probe_fault:",
    "mov eax, 1",
    "ret",
    ".globl memcpy, memmove, memset, memcmp, bcmp, rust_eh_personality",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "cmp rdi, rsi",
    "jbe 6f",
    "lea rdi, [rdi + rcx - 1]",
    "lea rsi, [rsi + rcx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "6: rep movsb",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor ecx, ecx",
    "7: cmp rcx, rdx",
    "je 8f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 7b",
    "ret",
    "8: xor eax, eax",
    "rust_eh_personality:",
    "ret",
    ".bss",
    ".balign 16",
    "stub_boot_stack: .zero 32768",
    "stub_boot_stack_end:",
    ".text",
);

unsafe extern "C" {
    pub fn stub_syscall(nr: u64, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> i64;
    pub fn stub_enter() -> !;
    pub fn stub_restorer();
    pub fn stub_gate();
    pub fn stub_copy(to: u64, from: u64, len: u64) -> u64;
    pub fn stub_zero(to: u64, len: u64) -> u64;
    pub fn stub_string(to: u64, from: u64, max: u64) -> i64;
    pub fn stub_probe(at: u64) -> u64;
    static stub_probe_begin: u8;
    static stub_probe_end: u8;
    static stub_probe_fault: u8;
    static stub_copy_begin: u8;
    static stub_copy_end: u8;
    static stub_copy_fault: u8;
    static stub_zero_begin: u8;
    static stub_zero_end: u8;
    static stub_zero_fault: u8;
    static stub_string_begin: u8;
    static stub_string_end: u8;
    static stub_string_fault: u8;
    static stub_text_end: u8;
    static stub_image_end: u8;
}

/// Where execution goes on after a fault at `ip`, if `ip` is in one of the copies.
pub fn fixup(ip: u64) -> Option<u64> {
    let copies = [
        (&raw const stub_probe_begin, &raw const stub_probe_end, &raw const stub_probe_fault),
        (&raw const stub_copy_begin, &raw const stub_copy_end, &raw const stub_copy_fault),
        (&raw const stub_zero_begin, &raw const stub_zero_end, &raw const stub_zero_fault),
        (&raw const stub_string_begin, &raw const stub_string_end, &raw const stub_string_fault),
    ];
    copies
        .iter()
        .find(|(begin, end, _)| (*begin as u64..*end as u64).contains(&ip))
        .map(|c| c.2 as u64)
}

/// The address behind the one syscall instruction.
pub fn gate() -> u64 {
    stub_gate as *const () as u64
}

/// End of the image's text and constants.
pub fn text_end() -> u64 {
    &raw const stub_text_end as u64
}

/// End of the image.
pub fn image_end() -> u64 {
    &raw const stub_image_end as u64
}
