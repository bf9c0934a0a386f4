/* Signals in detail: frames, siginfo, masks, stacks, restarts. Says the same on every Linux. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int count, depth, deepest;
static sigjmp_buf back;
static char *alt;
static void *expected;

static void say(const char *what, long value) {
    printf("%s %ld\n", what, value);
    fflush(stdout);
}
static void set(int sig, void (*f)(int, siginfo_t *, void *), int flags, int mask) {
    struct sigaction a = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&a.sa_mask);
    if (mask) sigaddset(&a.sa_mask, mask);
    if (sigaction(sig, &a, 0)) say("sigaction", errno);
}
static void basic(int sig, siginfo_t *i, void *u) {
    ucontext_t *c = u;
    double d[4] = {9, 8, 7, 6};
    __asm__ volatile("movupd %0, %%xmm5\n pxor %%xmm6, %%xmm6" ::"m"(d) : "xmm5", "xmm6");
    count++;
    say("handler", sig);
    say("si_signo", i->si_signo);
    say("own pid", i->si_pid == getpid());
    say("context", c->uc_mcontext.gregs[REG_RSP] != 0);
}
static void nested(int sig, siginfo_t *i, void *u) {
    (void)i, (void)u;
    if (++depth > deepest) deepest = depth;
    if (count++ < 3) raise(sig);
    depth--;
}
static void where(int sig, siginfo_t *i, void *u) {
    (void)sig, (void)i, (void)u;
    char here;
    say("on alternate stack", &here >= alt && &here < alt + SIGSTKSZ * 4);
    stack_t s;
    sigaltstack(0, &s);
    say("SS_ONSTACK", s.ss_flags & SS_ONSTACK);
}
static void fault(int sig, siginfo_t *i, void *u) {
    (void)u;
    say("fault", sig);
    say("si_code", i->si_code);
    say("address", !expected || i->si_addr == expected);
    siglongjmp(back, 1);
}
static void fix(int sig, siginfo_t *i, void *u) {
    (void)sig, (void)i;
    ucontext_t *c = u;
    c->uc_mcontext.gregs[REG_RIP] += 2; /* over the ud2 */
    c->uc_mcontext.gregs[REG_RBX] = 77;
}
static void child(int sig, siginfo_t *i, void *u) {
    (void)u;
    count++;
    say("chld", sig);
    say("code", i->si_code);
    say("status", i->si_status);
}
static void nothing(int sig, siginfo_t *i, void *u) { (void)sig, (void)i, (void)u, count++; }

static int read_interrupted(int flags) {
    int p[2];
    char c;
    if (pipe(p)) exit(1);
    set(SIGALRM, nothing, flags, 0);
    pid_t kid = fork();
    if (!kid) {
        usleep(100000);
        kill(getppid(), SIGALRM);
        usleep(200000);
        write(p[1], "x", 1);
        _exit(0);
    }
    int n = read(p[0], &c, 1), e = errno;
    waitpid(kid, 0, 0);
    close(p[0]), close(p[1]);
    return n == 1 ? 1 : -e;
}

int main(void) {
    /* Registers, vector ones too, survive a handler. */
    set(SIGUSR1, basic, 0, 0);
    double in[4] = {1.5, 2.5, 3.5, 4.5}, out[4] = {0};
    register long r13 __asm__("r13") = 0x1234567;
    __asm__ volatile("movupd %2, %%xmm5\n movupd %3, %%xmm6\n mov $39, %%eax\n syscall\n"
                     "mov %%rax, %%rdi\n mov $10, %%esi\n mov $62, %%eax\n syscall\n"
                     "movupd %%xmm5, %0\n movupd %%xmm6, %1"
                     : "=m"(out[0]), "=m"(out[2]) : "m"(in[0]), "m"(in[2])
                     : "rax", "rdi", "rsi", "rcx", "r11", "xmm5", "xmm6", "memory");
    __asm__ volatile("" : "+r"(r13));
    say("handled", count);
    say("xmm", out[0] == 1.5 && out[2] == 3.5);
    say("r13", r13);

    set(SIGUSR2, nested, SA_NODEFER, 0);
    count = 0;
    raise(SIGUSR2);
    say("nested", deepest);
    set(SIGUSR2, nested, 0, 0);
    depth = deepest = count = 0;
    raise(SIGUSR2);
    say("deferred", deepest);

    /* Masks. */
    sigset_t s, old, pending;
    sigemptyset(&s), sigaddset(&s, SIGUSR1);
    sigprocmask(SIG_BLOCK, &s, &old);
    count = 0;
    raise(SIGUSR1);
    sigpending(&pending);
    say("pending", sigismember(&pending, SIGUSR1));
    say("while blocked", count);
    sigprocmask(SIG_SETMASK, &old, 0);
    say("after", count);
    sigprocmask(SIG_BLOCK, &s, &old);
    raise(SIGUSR1);
    count = 0;
    say("sigsuspend", sigsuspend(&old) == -1 && errno == EINTR);
    say("count", count);
    raise(SIGUSR1);
    siginfo_t info;
    struct timespec second = {1, 0}, none = {0, 1000};
    say("sigtimedwait", sigtimedwait(&s, &info, &second));
    say("none left", sigtimedwait(&s, &info, &none) == -1 && errno == EAGAIN);
    sigprocmask(SIG_SETMASK, &old, 0);

    /* The alternate stack. */
    alt = malloc(SIGSTKSZ * 4);
    stack_t st = {.ss_sp = alt, .ss_size = SIGSTKSZ * 4};
    say("sigaltstack", sigaltstack(&st, 0));
    set(SIGUSR1, where, SA_ONSTACK, 0);
    raise(SIGUSR1);
    set(SIGUSR1, where, 0, 0);
    raise(SIGUSR1);
    stack_t small = {.ss_sp = alt, .ss_size = 100};
    say("too small", sigaltstack(&small, 0) == -1 && errno == ENOMEM);

    /* Exceptions. */
    set(SIGSEGV, fault, SA_ONSTACK, 0);
    set(SIGFPE, fault, 0, 0);
    expected = (void *)0x10;
    if (!sigsetjmp(back, 1)) *(volatile int *)0x10 = 1;
    char *ro = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expected = ro;
    if (!sigsetjmp(back, 1)) {
        *(volatile char *)ro = 1;
    }
    munmap(ro, 4096);
    expected = 0;
    volatile int zero = 0;
    if (!sigsetjmp(back, 1)) say("never", 10 / zero);
    set(SIGILL, fix, 0, 0);
    long rbx;
    __asm__ volatile("ud2" : "=b"(rbx)::"memory");
    say("fixed", rbx);

    /* One-shot, ignored, default. */
    set(SIGUSR1, nothing, SA_RESETHAND, 0);
    count = 0;
    raise(SIGUSR1);
    struct sigaction now;
    sigaction(SIGUSR1, 0, &now);
    say("reset", now.sa_handler == SIG_DFL && count == 1);
    signal(SIGUSR1, SIG_IGN);
    raise(SIGUSR1);
    say("SIGKILL refused", signal(SIGKILL, SIG_IGN) == SIG_ERR && errno == EINVAL);

    /* Interrupted calls. */
    say("read with SA_RESTART", read_interrupted(SA_RESTART));
    say("read without", read_interrupted(0) == -EINTR);
    set(SIGALRM, nothing, SA_RESTART, 0);
    alarm(1);
    struct timespec t = {5, 0}, rest;
    say("nanosleep", nanosleep(&t, &rest) == -1 && errno == EINTR && rest.tv_sec >= 3);
    alarm(10);
    say("alarm left", alarm(0));
    alarm(1);
    say("pause", pause() == -1 && errno == EINTR);
    struct itimerval every = {.it_value = {0, 10000}, .it_interval = {0, 10000}};
    count = 0;
    setitimer(ITIMER_REAL, &every, 0);
    while (count < 5)
        ;
    memset(&every, 0, sizeof every);
    setitimer(ITIMER_REAL, &every, 0);
    say("preempted", count >= 5);

    /* Children. */
    set(SIGCHLD, child, SA_RESTART, 0);
    count = 0;
    pid_t kid = fork();
    if (!kid) _exit(42);
    int status;
    say("waited", waitpid(kid, &status, 0) == kid);
    while (!count) usleep(1000);
    say("exited", WIFEXITED(status) && WEXITSTATUS(status) == 42);
    signal(SIGCHLD, SIG_DFL);
    kid = fork();
    if (!kid)
        for (;;) pause();
    kill(kid, SIGSTOP);
    say("stopped", waitpid(kid, &status, WUNTRACED) == kid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    kill(kid, SIGCONT);
    say("continued", waitpid(kid, &status, WCONTINUED) == kid && WIFCONTINUED(status));
    kill(kid, SIGTERM);
    siginfo_t w;
    memset(&w, 0, sizeof w);
    say("waitid", waitid(P_PID, kid, &w, WEXITED | WNOWAIT));
    say("code", w.si_code == CLD_KILLED || w.si_code == CLD_DUMPED);
    say("signal", w.si_status);
    say("again", waitpid(kid, &status, 0) == kid && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    say("no more", waitpid(-1, &status, 0) == -1 && errno == ECHILD);
    signal(SIGCHLD, SIG_IGN);
    kid = fork();
    if (!kid) _exit(0);
    say("reaped by itself", waitpid(kid, &status, 0) == -1 && errno == ECHILD);
    signal(SIGPIPE, SIG_DFL);
    int p[2];
    pipe(p);
    close(p[0]);
    signal(SIGCHLD, SIG_DFL);
    kid = fork();
    if (!kid) {
        write(p[1], "x", 1);
        _exit(9);
    }
    waitpid(kid, &status, 0);
    say("SIGPIPE", WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
    return 0;
}
