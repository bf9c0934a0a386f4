/* Times system calls from inside a program: the same static binary natively and in the cluster.
   posix MODE COUNT [FILE]: prints the median time of one call of seven batches, in ns. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/futex.h>

enum { BATCHES = 7 };
static char page[4096];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void one_getppid(int fd) { (void)fd; syscall(SYS_getppid); }
static void one_getpid(int fd) { (void)fd; syscall(SYS_getpid); }
static void one_read(int fd) { if (pread(fd, page, 4096, 0) != 4096) fail("pread"); }
static void one_write(int fd) { if (pwrite(fd, page, 4096, 0) != 4096) fail("pwrite"); }
static void one_stat(int fd)
{
    char b[256];
    (void)fd;
    if (syscall(SYS_stat, "/", b)) fail("stat");
}
static const char *path;
static void one_open(int fd)
{
    (void)fd;
    int f = open(path, O_RDONLY);
    if (f < 0) fail("open");
    close(f);
}
static void one_fork(int fd)
{
    (void)fd;
    pid_t p = fork();
    if (p < 0) fail("fork");
    if (!p) _exit(0);
    if (waitpid(p, 0, 0) != p) fail("waitpid");
}

static void pin(int cpu)
{
    cpu_set_t s;
    CPU_ZERO(&s);
    CPU_SET(cpu, &s);
    if (sched_setaffinity(0, sizeof s, &s)) fail("sched_setaffinity");
}

/* A round of a futex ping-pong between two processes on one core. */
static volatile int *turn;
static void turn_to(int to)
{
    *turn = to;
    syscall(SYS_futex, turn, FUTEX_WAKE, 1, 0, 0, 0);
}
static void wait_for(int mine)
{
    while (*turn != mine) syscall(SYS_futex, turn, FUTEX_WAIT, 1 - mine, 0, 0, 0);
}
static pid_t other;
static void start_pingpong(void)
{
    turn = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (turn == MAP_FAILED) fail("mmap");
    pin(0);
    other = fork();
    if (!other)
        for (;;) {
            wait_for(1);
            turn_to(0);
        }
}
static void one_pingpong(int fd) { (void)fd; turn_to(1); wait_for(0); }

/* A call of a traced process under PTRACE_SYSEMU: the tracer answers it. Timed by the tracer. */
static void start_sysemu(void)
{
    pin(0);
    other = fork();
    if (!other) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (;;) syscall(SYS_getppid);
    }
    waitpid(other, 0, 0);
}
static void one_sysemu(int fd)
{
    (void)fd;
    struct user_regs_struct r;
    if (ptrace(PTRACE_SYSEMU, other, 0, 0)) fail("PTRACE_SYSEMU");
    waitpid(other, 0, 0);
    if (ptrace(PTRACE_GETREGS, other, 0, &r)) fail("PTRACE_GETREGS");
    r.rax = 1;
    if (ptrace(PTRACE_SETREGS, other, 0, &r)) fail("PTRACE_SETREGS");
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: posix MODE COUNT [FILE]\n");
        return 2;
    }
    const char *mode = argv[1];
    long count = atol(argv[2]);
    int fd = -1;
    void (*one)(int) = 0;
    path = argc > 3 ? argv[3] : 0;
    if (path) {
        fd = open(path, O_RDWR | O_CREAT, 0600);
        if (fd < 0 || pwrite(fd, page, 4096, 0) != 4096) fail(path);
    }
    if (!strcmp(mode, "getppid")) one = one_getppid;
    if (!strcmp(mode, "getpid")) one = one_getpid;
    if (!strcmp(mode, "read")) one = one_read;
    if (!strcmp(mode, "write")) one = one_write;
    if (!strcmp(mode, "stat")) one = one_stat;
    if (!strcmp(mode, "open")) one = one_open;
    if (!strcmp(mode, "fork")) one = one_fork;
    if (!strcmp(mode, "pingpong")) one = one_pingpong, start_pingpong();
    if (!strcmp(mode, "sysemu")) one = one_sysemu, start_sysemu();
    if (!one || count <= 0) {
        fprintf(stderr, "posix: unknown mode %s\n", mode);
        return 2;
    }
    double batch[BATCHES];
    for (int b = 0; b < BATCHES; b++) {
        double start = now();
        for (long i = 0; i < count; i++) one(fd);
        batch[b] = (now() - start) / count;
    }
    qsort(batch, BATCHES, sizeof *batch, by_value);
    printf("%.0f\n", batch[BATCHES / 2]);
    if (other > 0) {
        kill(other, SIGKILL);
        waitpid(other, 0, 0);
    }
    return 0;
}
