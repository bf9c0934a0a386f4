//! The table of system calls: number, name, and what the stub copies from the app's memory before
//! it hands the call over. Compiled into the stub and the personality.
//!
//! To add a call: fill in its argument kinds here; nothing else in the stub changes.

/// What one argument of a call is, as far as the stub must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A number, or memory that the call only writes.
    Value,
    /// A NUL-terminated string of at most 4096 bytes.
    Path,
    /// Bytes: the value of argument `.0` times `.1`. Only what fits in the data area is copied.
    In(u8, u8),
    /// A structure of so many bytes; NULL is allowed.
    Struct(u8),
    /// Memory that the call fills in with at most so many bytes as argument `.0` says: looked at ahead,
    /// so that nothing is taken for a caller that cannot have it (a pipe's bytes).
    Out(u8),
    /// An array of iovec, argument `.0` elements (at most 64), then what they refer to, as far as it fits.
    Gather(u8),
}
use Kind::*;

/// A system call.
#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// Name, as in the manual's section 2.
    pub name: &'static str,
    /// Kinds of its arguments.
    pub args: [Kind; 6],
}

/// One past the highest number in the table.
pub const NUMBERS: usize = 463;

const NONE: Signature = Signature { name: "", args: [Value; 6] };

const fn call(name: &'static str, given: &[Kind]) -> Signature {
    let mut args = [Value; 6];
    let mut i = 0;
    while i < given.len() {
        args[i] = given[i];
        i += 1;
    }
    Signature { name, args }
}

/// By number; an empty name where there is no such call.
pub static SIGNATURES: [Signature; NUMBERS] = {
    let mut t = [NONE; NUMBERS];
    t[0] = call("read", &[Value, Out(2)]);
    t[1] = call("write", &[Value, In(2, 1)]);
    t[2] = call("open", &[Path]);
    t[3] = call("close", &[]);
    t[4] = call("stat", &[Path]);
    t[5] = call("fstat", &[]);
    t[6] = call("lstat", &[Path]);
    t[7] = call("poll", &[In(1, 8)]);
    t[8] = call("lseek", &[]);
    t[9] = call("mmap", &[]);
    t[10] = call("mprotect", &[]);
    t[11] = call("munmap", &[]);
    t[12] = call("brk", &[]);
    t[13] = call("rt_sigaction", &[Value, Struct(32)]);
    t[14] = call("rt_sigprocmask", &[Value, Struct(8)]);
    t[15] = call("rt_sigreturn", &[]);
    t[16] = call("ioctl", &[]);
    t[17] = call("pread64", &[]);
    t[18] = call("pwrite64", &[Value, In(2, 1)]);
    t[19] = call("readv", &[Value, In(2, 16)]);
    t[20] = call("writev", &[Value, Gather(2)]);
    t[21] = call("access", &[Path]);
    t[22] = call("pipe", &[]);
    t[23] = call("select", &[]);
    t[24] = call("sched_yield", &[]);
    t[25] = call("mremap", &[]);
    t[26] = call("msync", &[]);
    t[27] = call("mincore", &[]);
    t[28] = call("madvise", &[]);
    t[29] = call("shmget", &[]);
    t[30] = call("shmat", &[]);
    t[31] = call("shmctl", &[]);
    t[32] = call("dup", &[]);
    t[33] = call("dup2", &[]);
    t[34] = call("pause", &[]);
    t[35] = call("nanosleep", &[Struct(16)]);
    t[36] = call("getitimer", &[]);
    t[37] = call("alarm", &[]);
    t[38] = call("setitimer", &[Value, Struct(32)]);
    t[39] = call("getpid", &[]);
    t[40] = call("sendfile", &[Value, Value, Struct(8)]);
    t[41] = call("socket", &[]);
    t[42] = call("connect", &[]);
    t[43] = call("accept", &[]);
    t[44] = call("sendto", &[]);
    t[45] = call("recvfrom", &[]);
    t[46] = call("sendmsg", &[]);
    t[47] = call("recvmsg", &[]);
    t[48] = call("shutdown", &[]);
    t[49] = call("bind", &[]);
    t[50] = call("listen", &[]);
    t[51] = call("getsockname", &[]);
    t[52] = call("getpeername", &[]);
    t[53] = call("socketpair", &[]);
    t[54] = call("setsockopt", &[]);
    t[55] = call("getsockopt", &[]);
    t[56] = call("clone", &[]);
    t[57] = call("fork", &[]);
    t[58] = call("vfork", &[]);
    t[59] = call("execve", &[Path]);
    t[60] = call("exit", &[]);
    t[61] = call("wait4", &[]);
    t[62] = call("kill", &[]);
    t[63] = call("uname", &[]);
    t[64] = call("semget", &[]);
    t[65] = call("semop", &[]);
    t[66] = call("semctl", &[]);
    t[67] = call("shmdt", &[]);
    t[68] = call("msgget", &[]);
    t[69] = call("msgsnd", &[]);
    t[70] = call("msgrcv", &[]);
    t[71] = call("msgctl", &[]);
    t[72] = call("fcntl", &[]);
    t[73] = call("flock", &[]);
    t[74] = call("fsync", &[]);
    t[75] = call("fdatasync", &[]);
    t[76] = call("truncate", &[Path]);
    t[77] = call("ftruncate", &[]);
    t[78] = call("getdents", &[]);
    t[79] = call("getcwd", &[]);
    t[80] = call("chdir", &[Path]);
    t[81] = call("fchdir", &[]);
    t[82] = call("rename", &[Path, Path]);
    t[83] = call("mkdir", &[Path]);
    t[84] = call("rmdir", &[Path]);
    t[85] = call("creat", &[Path]);
    t[86] = call("link", &[Path, Path]);
    t[87] = call("unlink", &[Path]);
    t[88] = call("symlink", &[Path, Path]);
    t[89] = call("readlink", &[Path]);
    t[90] = call("chmod", &[Path]);
    t[91] = call("fchmod", &[]);
    t[92] = call("chown", &[Path]);
    t[93] = call("fchown", &[]);
    t[94] = call("lchown", &[Path]);
    t[95] = call("umask", &[]);
    t[96] = call("gettimeofday", &[]);
    t[97] = call("getrlimit", &[]);
    t[98] = call("getrusage", &[]);
    t[99] = call("sysinfo", &[]);
    t[100] = call("times", &[]);
    t[101] = call("ptrace", &[]);
    t[102] = call("getuid", &[]);
    t[103] = call("syslog", &[]);
    t[104] = call("getgid", &[]);
    t[105] = call("setuid", &[]);
    t[106] = call("setgid", &[]);
    t[107] = call("geteuid", &[]);
    t[108] = call("getegid", &[]);
    t[109] = call("setpgid", &[]);
    t[110] = call("getppid", &[]);
    t[111] = call("getpgrp", &[]);
    t[112] = call("setsid", &[]);
    t[113] = call("setreuid", &[]);
    t[114] = call("setregid", &[]);
    t[115] = call("getgroups", &[]);
    t[116] = call("setgroups", &[Value, In(0, 4)]);
    t[117] = call("setresuid", &[]);
    t[118] = call("getresuid", &[]);
    t[119] = call("setresgid", &[]);
    t[120] = call("getresgid", &[]);
    t[121] = call("getpgid", &[]);
    t[122] = call("setfsuid", &[]);
    t[123] = call("setfsgid", &[]);
    t[124] = call("getsid", &[]);
    t[125] = call("capget", &[]);
    t[126] = call("capset", &[]);
    t[127] = call("rt_sigpending", &[]);
    t[128] = call("rt_sigtimedwait", &[Struct(8), Value, Struct(16)]);
    t[129] = call("rt_sigqueueinfo", &[]);
    t[130] = call("rt_sigsuspend", &[Struct(8)]);
    t[131] = call("sigaltstack", &[Struct(24)]);
    t[132] = call("utime", &[Path, Struct(16)]);
    t[133] = call("mknod", &[Path]);
    t[134] = call("uselib", &[]);
    t[135] = call("personality", &[]);
    t[136] = call("ustat", &[]);
    t[137] = call("statfs", &[Path]);
    t[138] = call("fstatfs", &[]);
    t[139] = call("sysfs", &[]);
    t[140] = call("getpriority", &[]);
    t[141] = call("setpriority", &[]);
    t[142] = call("sched_setparam", &[]);
    t[143] = call("sched_getparam", &[]);
    t[144] = call("sched_setscheduler", &[]);
    t[145] = call("sched_getscheduler", &[]);
    t[146] = call("sched_get_priority_max", &[]);
    t[147] = call("sched_get_priority_min", &[]);
    t[148] = call("sched_rr_get_interval", &[]);
    t[149] = call("mlock", &[]);
    t[150] = call("munlock", &[]);
    t[151] = call("mlockall", &[]);
    t[152] = call("munlockall", &[]);
    t[153] = call("vhangup", &[]);
    t[154] = call("modify_ldt", &[]);
    t[155] = call("pivot_root", &[]);
    t[156] = call("_sysctl", &[]);
    t[157] = call("prctl", &[]);
    t[158] = call("arch_prctl", &[]);
    t[159] = call("adjtimex", &[]);
    t[160] = call("setrlimit", &[Value, Struct(16)]);
    t[161] = call("chroot", &[Path]);
    t[162] = call("sync", &[]);
    t[163] = call("acct", &[]);
    t[164] = call("settimeofday", &[]);
    t[165] = call("mount", &[]);
    t[166] = call("umount2", &[]);
    t[167] = call("swapon", &[]);
    t[168] = call("swapoff", &[]);
    t[169] = call("reboot", &[]);
    t[170] = call("sethostname", &[In(1, 1)]);
    t[171] = call("setdomainname", &[]);
    t[172] = call("iopl", &[]);
    t[173] = call("ioperm", &[]);
    t[174] = call("create_module", &[]);
    t[175] = call("init_module", &[]);
    t[176] = call("delete_module", &[]);
    t[177] = call("get_kernel_syms", &[]);
    t[178] = call("query_module", &[]);
    t[179] = call("quotactl", &[]);
    t[180] = call("nfsservctl", &[]);
    t[181] = call("getpmsg", &[]);
    t[182] = call("putpmsg", &[]);
    t[183] = call("afs_syscall", &[]);
    t[184] = call("tuxcall", &[]);
    t[185] = call("security", &[]);
    t[186] = call("gettid", &[]);
    t[187] = call("readahead", &[]);
    t[188] = call("setxattr", &[Path, Path, In(3, 1)]);
    t[189] = call("lsetxattr", &[Path, Path, In(3, 1)]);
    t[190] = call("fsetxattr", &[]);
    t[191] = call("getxattr", &[Path, Path]);
    t[192] = call("lgetxattr", &[Path, Path]);
    t[193] = call("fgetxattr", &[Value, Path]);
    t[194] = call("listxattr", &[Path]);
    t[195] = call("llistxattr", &[Path]);
    t[196] = call("flistxattr", &[]);
    t[197] = call("removexattr", &[Path, Path]);
    t[198] = call("lremovexattr", &[]);
    t[199] = call("fremovexattr", &[]);
    t[200] = call("tkill", &[]);
    t[201] = call("time", &[]);
    t[202] = call("futex", &[Value, Value, Value, Struct(16)]);
    t[203] = call("sched_setaffinity", &[]);
    t[204] = call("sched_getaffinity", &[]);
    t[205] = call("set_thread_area", &[]);
    t[206] = call("io_setup", &[]);
    t[207] = call("io_destroy", &[]);
    t[208] = call("io_getevents", &[]);
    t[209] = call("io_submit", &[]);
    t[210] = call("io_cancel", &[]);
    t[211] = call("get_thread_area", &[]);
    t[212] = call("lookup_dcookie", &[]);
    t[213] = call("epoll_create", &[]);
    t[214] = call("epoll_ctl_old", &[]);
    t[215] = call("epoll_wait_old", &[]);
    t[216] = call("remap_file_pages", &[]);
    t[217] = call("getdents64", &[Value, Out(2)]);
    t[218] = call("set_tid_address", &[]);
    t[219] = call("restart_syscall", &[]);
    t[220] = call("semtimedop", &[]);
    t[221] = call("fadvise64", &[]);
    t[222] = call("timer_create", &[]);
    t[223] = call("timer_settime", &[]);
    t[224] = call("timer_gettime", &[]);
    t[225] = call("timer_getoverrun", &[]);
    t[226] = call("timer_delete", &[]);
    t[227] = call("clock_settime", &[]);
    t[228] = call("clock_gettime", &[]);
    t[229] = call("clock_getres", &[]);
    t[230] = call("clock_nanosleep", &[Value, Value, Struct(16)]);
    t[231] = call("exit_group", &[]);
    t[232] = call("epoll_wait", &[]);
    t[233] = call("epoll_ctl", &[]);
    t[234] = call("tgkill", &[]);
    t[235] = call("utimes", &[Path, Struct(32)]);
    t[236] = call("vserver", &[]);
    t[237] = call("mbind", &[]);
    t[238] = call("set_mempolicy", &[]);
    t[239] = call("get_mempolicy", &[]);
    t[240] = call("mq_open", &[]);
    t[241] = call("mq_unlink", &[]);
    t[242] = call("mq_timedsend", &[]);
    t[243] = call("mq_timedreceive", &[]);
    t[244] = call("mq_notify", &[]);
    t[245] = call("mq_getsetattr", &[]);
    t[246] = call("kexec_load", &[]);
    t[247] = call("waitid", &[]);
    t[248] = call("add_key", &[]);
    t[249] = call("request_key", &[]);
    t[250] = call("keyctl", &[]);
    t[251] = call("ioprio_set", &[]);
    t[252] = call("ioprio_get", &[]);
    t[253] = call("inotify_init", &[]);
    t[254] = call("inotify_add_watch", &[]);
    t[255] = call("inotify_rm_watch", &[]);
    t[256] = call("migrate_pages", &[]);
    t[257] = call("openat", &[Value, Path]);
    t[258] = call("mkdirat", &[Value, Path]);
    t[259] = call("mknodat", &[Value, Path]);
    t[260] = call("fchownat", &[Value, Path]);
    t[261] = call("futimesat", &[Value, Path, Struct(32)]);
    t[262] = call("newfstatat", &[Value, Path]);
    t[263] = call("unlinkat", &[Value, Path]);
    t[264] = call("renameat", &[Value, Path, Value, Path]);
    t[265] = call("linkat", &[Value, Path, Value, Path]);
    t[266] = call("symlinkat", &[Path, Value, Path]);
    t[267] = call("readlinkat", &[Value, Path]);
    t[268] = call("fchmodat", &[Value, Path]);
    t[269] = call("faccessat", &[Value, Path]);
    t[270] = call("pselect6", &[]);
    t[271] = call("ppoll", &[In(1, 8), Value, Struct(16), Struct(8)]);
    t[272] = call("unshare", &[]);
    t[273] = call("set_robust_list", &[]);
    t[274] = call("get_robust_list", &[]);
    t[275] = call("splice", &[]);
    t[276] = call("tee", &[]);
    t[277] = call("sync_file_range", &[]);
    t[278] = call("vmsplice", &[]);
    t[279] = call("move_pages", &[]);
    t[280] = call("utimensat", &[Value, Path, Struct(32)]);
    t[281] = call("epoll_pwait", &[]);
    t[282] = call("signalfd", &[]);
    t[283] = call("timerfd_create", &[]);
    t[284] = call("eventfd", &[]);
    t[285] = call("fallocate", &[]);
    t[286] = call("timerfd_settime", &[]);
    t[287] = call("timerfd_gettime", &[]);
    t[288] = call("accept4", &[]);
    t[289] = call("signalfd4", &[]);
    t[290] = call("eventfd2", &[]);
    t[291] = call("epoll_create1", &[]);
    t[292] = call("dup3", &[]);
    t[293] = call("pipe2", &[]);
    t[294] = call("inotify_init1", &[]);
    t[295] = call("preadv", &[Value, In(2, 16)]);
    t[296] = call("pwritev", &[Value, Gather(2)]);
    t[297] = call("rt_tgsigqueueinfo", &[]);
    t[298] = call("perf_event_open", &[]);
    t[299] = call("recvmmsg", &[]);
    t[300] = call("fanotify_init", &[]);
    t[301] = call("fanotify_mark", &[]);
    t[302] = call("prlimit64", &[Value, Value, Struct(16)]);
    t[303] = call("name_to_handle_at", &[]);
    t[304] = call("open_by_handle_at", &[]);
    t[305] = call("clock_adjtime", &[]);
    t[306] = call("syncfs", &[]);
    t[307] = call("sendmmsg", &[]);
    t[308] = call("setns", &[]);
    t[309] = call("getcpu", &[]);
    t[310] = call("process_vm_readv", &[]);
    t[311] = call("process_vm_writev", &[]);
    t[312] = call("kcmp", &[]);
    t[313] = call("finit_module", &[]);
    t[314] = call("sched_setattr", &[]);
    t[315] = call("sched_getattr", &[]);
    t[316] = call("renameat2", &[Value, Path, Value, Path]);
    t[317] = call("seccomp", &[]);
    t[318] = call("getrandom", &[]);
    t[319] = call("memfd_create", &[Path]);
    t[320] = call("kexec_file_load", &[]);
    t[321] = call("bpf", &[]);
    t[322] = call("execveat", &[Value, Path]);
    t[323] = call("userfaultfd", &[]);
    t[324] = call("membarrier", &[]);
    t[325] = call("mlock2", &[]);
    t[326] = call("copy_file_range", &[Value, Struct(8), Value, Struct(8)]);
    t[327] = call("preadv2", &[Value, In(2, 16)]);
    t[328] = call("pwritev2", &[Value, Gather(2)]);
    t[329] = call("pkey_mprotect", &[]);
    t[330] = call("pkey_alloc", &[]);
    t[331] = call("pkey_free", &[]);
    t[332] = call("statx", &[Value, Path]);
    t[333] = call("io_pgetevents", &[]);
    t[334] = call("rseq", &[]);
    t[424] = call("pidfd_send_signal", &[]);
    t[425] = call("io_uring_setup", &[]);
    t[426] = call("io_uring_enter", &[]);
    t[427] = call("io_uring_register", &[]);
    t[428] = call("open_tree", &[]);
    t[429] = call("move_mount", &[]);
    t[430] = call("fsopen", &[]);
    t[431] = call("fsconfig", &[]);
    t[432] = call("fsmount", &[]);
    t[433] = call("fspick", &[]);
    t[434] = call("pidfd_open", &[]);
    t[435] = call("clone3", &[]);
    t[436] = call("close_range", &[]);
    t[437] = call("openat2", &[Value, Path, Struct(24)]);
    t[438] = call("pidfd_getfd", &[]);
    t[439] = call("faccessat2", &[Value, Path]);
    t[440] = call("process_madvise", &[]);
    t[441] = call("epoll_pwait2", &[]);
    t[442] = call("mount_setattr", &[]);
    t[443] = call("quotactl_fd", &[]);
    t[444] = call("landlock_create_ruleset", &[]);
    t[445] = call("landlock_add_rule", &[]);
    t[446] = call("landlock_restrict_self", &[]);
    t[447] = call("memfd_secret", &[]);
    t[448] = call("process_mrelease", &[]);
    t[449] = call("futex_waitv", &[]);
    t[450] = call("set_mempolicy_home_node", &[]);
    t[451] = call("cachestat", &[]);
    t[452] = call("fchmodat2", &[Value, Path]);
    t[453] = call("map_shadow_stack", &[]);
    t[454] = call("futex_wake", &[]);
    t[455] = call("futex_wait", &[]);
    t[456] = call("futex_requeue", &[]);
    t[457] = call("statmount", &[]);
    t[458] = call("listmount", &[]);
    t[459] = call("lsm_get_self_attr", &[]);
    t[460] = call("lsm_set_self_attr", &[]);
    t[461] = call("lsm_list_modules", &[]);
    t[462] = call("mseal", &[]);
    t
};
