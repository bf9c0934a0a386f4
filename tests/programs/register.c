/* A client of registers: files of eight bytes, /registers/0 and so on, read and written whole.

   register drive CLIENT FIRST COUNT SEED REGISTERS
     Does COUNT operations of its own choice; its n-th has the number FIRST + n, and a write's value is
     CLIENT << 40 | number. A line for each, some time later:
       BEGIN END r|w REGISTER VALUE ERRNO       times: CLOCK_MONOTONIC, ns
   register obey REGISTERS
     Does what its input says, "r REGISTER" or "w REGISTER VALUE" a line, and answers each, some time later, with
       VALUE ERRNO */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256 };
static int files[MOST];

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t state;
static uint64_t rnd(void)
{
	uint64_t z = (state += 0x9e3779b97f4a7c15u);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* The value read, or written; errno or 0. A register that is cut short counts as EIO. */
static int act(int write_it, int k, uint64_t *value)
{
	ssize_t n = write_it ? pwrite(files[k], value, 8, 0) : pread(files[k], value, 8, 0);
	return n == 8 ? 0 : n < 0 ? errno : EIO;
}

static int drive(uint64_t client, uint64_t number, uint64_t count, int registers)
{
	for (; count > 0; count--, number++) {
		int k = (int)(rnd() % (uint64_t)registers), w = rnd() % 3 == 0;
		uint64_t value = w ? client << 40 | number : 0, begin = now();
		int e = act(w, k, &value);
		printf("%llu %llu %c %d %llu %d\n", (unsigned long long)begin, (unsigned long long)now(),
		       w ? 'w' : 'r', k, (unsigned long long)value, e);
	}
	return fflush(stdout) != 0;
}

/* Answers go out four together, and whenever no more is asked: the pipe costs more than what is asked for. */
static int obey(int registers)
{
	static char lines[4096];
	size_t have = 0;
	for (unsigned answered = 0;;) {
		char *end = memchr(lines, '\n', have);
		if (!end) {
			if (fflush(stdout))
				return 1;
			ssize_t n = read(0, lines + have, sizeof lines - have);
			if (n <= 0)
				return n < 0;
			have += (size_t)n;
			continue;
		}
		*end = 0;
		char what;
		int k;
		unsigned long long v = 0;
		if (sscanf(lines, "%c %d %llu", &what, &k, &v) < 2 || k < 0 || k >= registers)
			return 3;
		have -= (size_t)(end + 1 - lines);
		memmove(lines, end + 1, have);
		uint64_t value = v;
		int e = act(what == 'w', k, &value);
		printf("%llu %d\n", (unsigned long long)value, e);
		if (++answered % 4 == 0 && fflush(stdout))
			return 1;
	}
}

int main(int argc, char **argv)
{
	int driving = argc == 7 && !strcmp(argv[1], "drive");
	if (!driving && !(argc == 3 && !strcmp(argv[1], "obey")))
		return 2;
	int registers = atoi(argv[argc - 1]);
	if (registers < 1 || registers > MOST)
		return 2;
	for (int k = 0; k < registers; k++) {
		char path[64];
		snprintf(path, sizeof path, "/registers/%d", k);
		files[k] = open(path, O_RDWR);
		if (files[k] < 0) {
			perror(path);
			return 1;
		}
	}
	if (!driving)
		return obey(registers);
	state = strtoull(argv[5], 0, 10);
	return drive(strtoull(argv[2], 0, 10), strtoull(argv[3], 0, 10), strtoull(argv[4], 0, 10), registers);
}
