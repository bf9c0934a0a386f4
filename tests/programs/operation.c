/* One operation of a server, by a program: `operation CASE PREFIX`. Whatever would show that it was done twice, or not at
   all, is looked at, and "ok" is said at the end. Names begin with PREFIX. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define must(c)                                                                                       \
	do {                                                                                          \
		if (!(c)) {                                                                           \
			fprintf(stderr, "operation: line %d: %s: %s\n", __LINE__, #c, strerror(errno)); \
			exit(1);                                                                      \
		}                                                                                     \
	} while (0)

static const char *prefix;
static volatile int caught;

static void count(int signal)
{
	(void)signal;
	caught++;
}

static void catch(int signal)
{
	struct sigaction action = { .sa_handler = count };
	must(!sigaction(signal, &action, 0));
}

/* A path below the prefix; three may be used at a time. */
static const char *path(const char *name)
{
	static char paths[3][256];
	static int next;
	char *p = paths[next++ % 3];
	snprintf(p, sizeof paths[0], "%s.%s", prefix, name);
	return p;
}

static int file(const char *name)
{
	int fd = open(path(name), O_CREAT | O_EXCL | O_RDWR, 0644);
	must(fd >= 0);
	must(write(fd, "abc", 3) == 3);
	return fd;
}

static struct stat state(const char *name)
{
	struct stat s;
	must(!lstat(path(name), &s));
	return s;
}

static void create(void)
{
	file("a");
	struct stat s = state("a");
	must(s.st_nlink == 1 && s.st_size == 3);
}

static void make_dir(void)
{
	must(!mkdir(path("d"), 0755));
	must(S_ISDIR(state("d").st_mode) && state("d").st_nlink == 2);
}

static void make_fifo(void)
{
	must(!mkfifo(path("p"), 0600));
	must(S_ISFIFO(state("p").st_mode));
}

static void make_symlink(void)
{
	char to[8];
	must(!symlink("to", path("s")));
	must(readlink(path("s"), to, sizeof to) == 2 && !memcmp(to, "to", 2));
}

static void make_link(void)
{
	file("a");
	must(!link(path("a"), path("b")));
	must(state("a").st_nlink == 2 && state("a").st_ino == state("b").st_ino);
}

static void remove_name(void)
{
	int fd = file("a");
	struct stat s;
	must(!unlink(path("a")));
	must(access(path("a"), F_OK) && errno == ENOENT);
	must(!fstat(fd, &s) && s.st_nlink == 0);
	must(!close(fd));
}

static void rename_name(void)
{
	file("a");
	file("b");
	ino_t ino = state("a").st_ino;
	must(!rename(path("a"), path("b")));
	must(access(path("a"), F_OK) && errno == ENOENT);
	must(state("b").st_ino == ino && state("b").st_nlink == 1);
}

static void set_attributes(void)
{
	file("a");
	must(!chmod(path("a"), 0601));
	must((state("a").st_mode & 07777) == 0601);
}

static void map(void)
{
	char *p = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(p != MAP_FAILED);
	memset(p, 5, 3 * 4096);
	must(!mprotect(p, 4096, PROT_READ));
	must(p[0] == 5);
	must(!munmap(p + 4096, 4096));
	must(p[0] == 5 && p[2 * 4096] == 5);
	/* Where the hole is, nothing is mapped. */
	must(mmap(p + 4096, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
	     p + 4096);
	must(p[4096] == 0);
	char *q = mremap(p + 2 * 4096, 4096, 64 * 4096, MREMAP_MAYMOVE);
	must(q != MAP_FAILED && q[0] == 5 && q[4095] == 5 && q[4096] == 0);
	char *old = sbrk(0);
	must(sbrk(65536) == old && sbrk(0) == old + 65536);
	memset(old, 1, 65536);
}

/* Fork, exec, exit, wait; each child is waited for once. */
static void child(void)
{
	int status;
	for (int n = 0; n < 2; n++) {
		pid_t pid = fork();
		must(pid >= 0);
		if (pid == 0) {
			if (n == 0)
				_exit(7);
			execl("/proc/self/exe", "operation", "status", "7", (char *)0);
			_exit(1);
		}
		must(waitpid(pid, &status, 0) == pid);
		must(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		must(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
	}
}

static void stop(void)
{
	int status;
	pid_t pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		raise(SIGSTOP);
		_exit(3);
	}
	must(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
	must(!kill(pid, SIGCONT));
	must(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

static void send_signal(void)
{
	catch(SIGUSR1);
	must(!kill(getpid(), SIGUSR1));
	must(caught == 1);
}

static void broken_pipe(void)
{
	int ends[2];
	catch(SIGPIPE);
	must(!pipe(ends) && !close(ends[0]));
	must(write(ends[1], "x", 1) == -1 && errno == EPIPE);
	must(caught == 1);
}

static void no_zombies(void)
{
	int status;
	must(signal(SIGCHLD, SIG_IGN) != SIG_ERR);
	pid_t pid = fork();
	must(pid >= 0);
	if (pid == 0)
		_exit(0);
	must(waitpid(pid, &status, 0) == -1 && errno == ECHILD);
}

/* What a process can do once only is done by children. */
static void once(void (*what)(void))
{
	int status;
	pid_t pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		what();
		_exit(0);
	}
	must(waitpid(pid, &status, 0) == pid);
	must(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void own_group(void)
{
	must(!setpgid(0, 0));
	must(getpgrp() == getpid());
}

static void own_session(void)
{
	must(setsid() == getpid());
	must(getsid(0) == getpid() && getpgrp() == getpid());
}

static void other_user(void)
{
	must(!setresuid(1, 1, 1));
	must(getuid() == 1 && geteuid() == 1);
}

static void set_group(void)
{
	once(own_group);
}

static void set_session(void)
{
	once(own_session);
}

static void set_ids(void)
{
	once(other_user);
}

/* On a terminal, as its session's leader. */
static void settings(void)
{
	struct termios t, after;
	must(!tcgetattr(0, &t));
	t.c_lflag &= ~(tcflag_t)ECHO;
	must(!tcsetattr(0, TCSANOW, &t));
	must(!tcgetattr(0, &after) && after.c_lflag == t.c_lflag);
	must(write(1, "ready\n", 6) == 6);
	struct pollfd input = { .fd = 0, .events = POLLIN };
	must(poll(&input, 1, 30000) == 1);
	must(!tcflush(0, TCIFLUSH));
	must(poll(&input, 1, 0) == 0);
	must(!tcflow(1, TCOOFF) && !tcflow(1, TCOON));
	struct winsize size = { .ws_row = 33, .ws_col = 77 }, got;
	catch(SIGWINCH);
	must(!ioctl(0, TIOCSWINSZ, &size));
	must(!ioctl(0, TIOCGWINSZ, &got) && got.ws_row == 33 && got.ws_col == 77);
	/* Whoever dies after it has sent a terminal's signals, and before it has noted that, sends them again. */
	must(caught >= 1);
}

static void foreground(void)
{
	int status, ends[2];
	must(signal(SIGTTOU, SIG_IGN) != SIG_ERR);
	must(!pipe(ends));
	pid_t pid = fork();
	must(pid >= 0);
	if (pid == 0) {
		char c;
		must(!close(ends[1]));
		must(read(ends[0], &c, 1) == 0);
		_exit(0);
	}
	must(!setpgid(pid, pid));
	must(!tcsetpgrp(0, pid) && tcgetpgrp(0) == pid);
	must(!tcsetpgrp(0, getpid()) && tcgetpgrp(0) == getpid());
	must(!close(ends[1]));
	must(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void let_go(void)
{
	must(signal(SIGHUP, SIG_IGN) != SIG_ERR);
	must(!ioctl(0, TIOCNOTTY));
	must(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
	must(!ioctl(0, TIOCSCTTY, 0));
	must(tcgetpgrp(0) == getpid());
}

static void typed(void)
{
	char line[64];
	must(write(1, "ready\n", 6) == 6);
	must(read(0, line, sizeof line) == 6 && !memcmp(line, "typed\n", 6));
	for (int n = 0; n < 10; n++) {
		int len = snprintf(line, sizeof line, "line %d\n", n);
		must(write(1, line, (size_t)len) == len);
	}
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
	{ "create", create },	      { "mkdir", make_dir },	   { "mkfifo", make_fifo },
	{ "symlink", make_symlink },  { "link", make_link },	   { "unlink", remove_name },
	{ "rename", rename_name },    { "chmod", set_attributes }, { "map", map },
	{ "child", child },	      { "stop", stop },		   { "kill", send_signal },
	{ "pipe", broken_pipe },      { "policy", no_zombies },	   { "setpgid", set_group },
	{ "setsid", set_session },    { "setuid", set_ids },	   { "settings", settings },
	{ "foreground", foreground }, { "notty", let_go },	   { "typed", typed },
};

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "status"))
		return atoi(argv[2]);
	prefix = argv[2];
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		if (!strcmp(argv[1], cases[i].name)) {
			cases[i].run();
			must(puts("ok") >= 0);
			return 0;
		}
	}
	return 2;
}
