/* Calls one server again and again: "vfs", "process" or "memory". For each line of its input it answers with the
   longest call since the last line, ns, and how many calls there were. The first is answered once one has been served. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int called(const char *whom, const char *file, unsigned n)
{
	if (!strcmp(whom, "vfs"))
		return chmod(file, n % 2 ? 0600 : 0644);
	if (!strcmp(whom, "process"))
		return kill(getpid(), 0);
	void *p = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? -1 : munmap(p, 4096);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	int fd = open(argv[2], O_CREAT | O_WRONLY, 0644);
	if (fd < 0 || close(fd))
		return 1;
	uint64_t longest = 0;
	unsigned n = 0;
	for (;;) {
		uint64_t begin = now();
		if (called(argv[1], argv[2], n++)) {
			fprintf(stderr, "gap: %s: %s\n", argv[1], strerror(errno));
			return 1;
		}
		uint64_t took = now() - begin;
		longest = took > longest ? took : longest;
		/* Not without a pause: others have work too. */
		struct pollfd input = { .fd = 0, .events = POLLIN };
		if (poll(&input, 1, 1) <= 0)
			continue;
		char c;
		if (read(0, &c, 1) != 1)
			return 0;
		printf("%llu %u\n", (unsigned long long)longest, n);
		if (fflush(stdout))
			return 1;
		longest = n = 0;
	}
}
