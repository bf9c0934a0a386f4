/* Bad addresses and bad numbers: each call must answer as Linux does, and the program live on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *what, long r) {
    printf("%s %ld %d\n", what, r < 0 ? r : 0, r < 0 ? errno : 0);
    fflush(stdout);
}
#define S(name, ...) say(#name, (errno = 0, syscall(SYS_##name, __VA_ARGS__)))

int main(void) {
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    char *edge = page + 4090;
    void *bad[] = {0, (void *)8, page + 4096, (void *)0x7e0000000000, (void *)-1, (void *)(1UL << 63), (void *)0x7ffffffff000};
    int fd = open("f", O_RDWR | O_CREAT | O_TRUNC, 0644);
    write(fd, "0123456789", 10);
    int p[2];
    pipe(p);
    write(p[1], "abcdefghij", 10);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        void *b = bad[i];
        printf("-- %u\n", i);
        S(open, b, O_RDONLY);
        S(stat, b, page);
        S(stat, "f", b);
        S(write, fd, b, 10);
        S(pread64, fd, b, 10, 0);
        S(read, p[0], b, 4);
        S(getcwd, b, 100);
        S(pipe, b);
        S(chdir, b);
        S(unlink, b);
        S(rename, b, "g");
        S(rename, "nosuch", b);
        S(readlink, b, page, 10);
        S(rt_sigaction, SIGUSR1, b ? b : (void *)8, 0, 8);
        S(rt_sigaction, SIGUSR1, 0, b ? b : (void *)8, 8);
        S(rt_sigprocmask, 0, b ? b : (void *)8, 0, 8);
        S(nanosleep, b, 0);
        S(clock_gettime, CLOCK_MONOTONIC, b);
        S(getrlimit, RLIMIT_NOFILE, b);
        S(uname, b);
        S(writev, fd, b, 2);
        S(readv, fd, b, 2);
        S(poll, b, 1, 0);
        S(execve, b, 0, 0);
        S(execve, "f", b ? b : (void *)8, 0);
        S(getdents64, fd, b, 100);
        S(getgroups, 0, b);
        S(getrandom, b, 8, 0);
        S(sysinfo, b);
        S(ioctl, 0, 0x5401, b);
    }
    puts("-- edge");
    S(write, fd, edge, 20);
    S(pread64, fd, edge, 6, 0);
    S(open, edge, O_RDONLY);
    struct iovec v[2] = {{page, 10}, {page + 4096, 10}};
    S(writev, fd, v, 0);
    S(writev, fd, v, -1);
    S(writev, fd, v, 1025);
    puts("-- numbers");
    S(close, -1);
    S(close, 1000000);
    S(read, 77, page, 1);
    S(lseek, fd, -1, 0);
    S(lseek, fd, 0, 9);
    S(lseek, p[0], 0, 0);
    S(dup2, 0, -1);
    S(dup2, 0, 100000);
    S(kill, -2147483647 - 1, 0);
    S(kill, 1 << 30, 0);
    S(kill, getpid(), 65);
    S(kill, getpid(), 0);
    S(rt_sigaction, 0, 0, page, 8);
    S(rt_sigaction, 65, 0, page, 8);
    S(rt_sigaction, 9, page, 0, 8);
    S(rt_sigaction, 10, 0, page, 4);
    S(mmap, 0, 0, 3, 0x22, -1, 0);
    S(mmap, 1, 4096, 3, 0x32, -1, 0);
    S(mmap, 0, 4096, 3, 0x20, -1, 0);
    S(mmap, 0, 4096, 3, 2, 99, 0);
    S(mmap, 0, 4096, 1, 2, fd, 1);
    S(mmap, 0, 1UL << 60, 3, 0x22, -1, 0);
    S(munmap, 1, 4096);
    S(munmap, page, 0);
    S(mprotect, page + 1, 4096, 3);
    S(mprotect, page + 4096, 4096, 3);
    S(setpgid, -1, 0);
    S(setpgid, 1 << 30, 0);
    S(getpgid, 1 << 30);
    S(wait4, -1, 0, 0, 0);
    S(wait4, -1, 0, 1 << 20, 0);
    S(waitid, 9, 0, 0, 4, 0);
    S(prlimit64, 0, 99, 0, page);
    S(setresuid, -1, -1, -1);
    struct timespec t = {-1, 0}, u = {0, 1000000000};
    S(nanosleep, &t, 0);
    S(nanosleep, &u, 0);
    S(mkdir, "", 0755);
    S(openat, -100, "f/x", O_RDONLY);
    S(openat, 77, "f", O_RDONLY);
    S(fcntl, fd, 9999, 0);
    S(execve, "f", 0, 0);
    S(execve, "nosuch", 0, 0);
    S(execve, ".", 0, 0);
    return 0;
}
