/* Work whose every acknowledged step is a line on standard output: "OP N". Whoever reads the lines
 * knows what must be there; of the step after the last line nobody knows.
 *
 *   load append FILE ID FROM    records of one file that several append to
 *   load churn DIR ID FROM      files made, renamed, linked and unlinked in one directory
 *   load journal DIR ID         a file of pages changed as sqlite does, under a rollback journal
 *   load open DIR ID            rolls such a file back if need be, and says what it holds
 *   load records FILE           reads the records again and again as they come
 *   load names DIR              lists the directory again and again
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RECORD = 64, PAGE = 4096, PAGES = 16, TOUCHED = 3 };

static void fail(const char *what, const char *on)
{
    fprintf(stderr, "load: %s %s: %s\n", what, on, strerror(errno));
    exit(1);
}

static void wrong(const char *what, const char *on, unsigned long long n)
{
    fprintf(stderr, "load: %s: %s (%llu)\n", on, what, n);
    exit(1);
}

/* What is fast leaves something of the machine to what forks: else a pipeline takes seconds. */
static void breathe(void)
{
    poll(NULL, 0, 1);
}

static void say(char op, unsigned long long n)
{
    char line[32];
    int len = snprintf(line, sizeof line, "%c %llu\n", op, n);
    if (write(1, line, len) != len)
        fail("write", "standard output");
}

/* What record n of a writer looks like: its text depends on all of both. */
static void record(char *to, const char *id, unsigned long long n)
{
    char head[40];
    int len = snprintf(head, sizeof head, "%s %llu ", id, n);
    uint32_t x = (uint32_t)n * 2654435761u + (uint32_t)id[0];
    memcpy(to, head, len);
    for (int i = len; i < RECORD - 1; i++) {
        x = x * 1664525u + 1013904223u;
        to[i] = 'a' + (x >> 24) % 26;
    }
    to[RECORD - 1] = '\n';
}

static void append(const char *file, const char *id, unsigned long long n)
{
    char r[RECORD];
    int fd = open(file, O_WRONLY | O_APPEND | O_CREAT, 0644);
    if (fd < 0)
        fail("open", file);
    for (;; n++) {
        record(r, id, n);
        ssize_t wrote = write(fd, r, RECORD);
        if (wrote < 0)
            fail("append", file);
        if (wrote != RECORD)
            wrong("a short append", file, wrote);
        say('a', n);
        breathe();
    }
}

static void churn(const char *dir, const char *id, unsigned long long n)
{
    char made[256], moved[256], linked[256], old[256], text[RECORD];
    for (unsigned long long from = n;; n++) {
        snprintf(made, sizeof made, "%s/%s.%llu", dir, id, n);
        snprintf(moved, sizeof moved, "%s/%s.%llu.r", dir, id, n);
        snprintf(linked, sizeof linked, "%s/%s.%llu.l", dir, id, n);
        int fd = open(made, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (fd < 0)
            fail("create", made);
        say('c', n);
        record(text, id, n);
        ssize_t wrote = write(fd, text, RECORD);
        if (wrote != RECORD || close(fd) != 0)
            fail("write", made);
        say('w', n);
        if (rename(made, moved) != 0)
            fail("rename", made);
        say('r', n);
        if (link(moved, linked) != 0)
            fail("link", moved);
        say('l', n);
        if (unlink(moved) != 0)
            fail("unlink", moved);
        say('u', n);
        breathe();
        if (n >= from + 3) {
            snprintf(old, sizeof old, "%s/%s.%llu.l", dir, id, n - 3);
            if (unlink(old) != 0)
                fail("unlink", old);
            say('d', n - 3);
        }
    }
}

static void full(int fd, const char *name, void *bytes, size_t len, off_t at, int out)
{
    ssize_t n = out ? pwrite(fd, bytes, len, at) : pread(fd, bytes, len, at);
    if (n < 0)
        fail(out ? "write" : "read", name);
    if ((size_t)n != len)
        wrong(out ? "a short write" : "a short read", name, n);
}

static void flush(int fd, const char *name)
{
    if (fsync(fd) != 0)
        fail("fsync", name);
}

/* Pages that commit n changes: the first, which bears its number, and two others. */
static void touched(unsigned long long n, int to[TOUCHED])
{
    to[0] = 0;
    to[1] = 1 + n * 7 % (PAGES - 1);
    to[2] = 1 + (n * 11 + 3) % (PAGES - 1);
}

static void page(char *to, int index, unsigned long long n)
{
    uint32_t x = (uint32_t)n * 2654435761u + index;
    memset(to, 0, PAGE);
    memcpy(to, &n, sizeof n);
    for (int i = sizeof n; i < PAGE; i++) {
        x = x * 1664525u + 1013904223u;
        to[i] = x >> 24;
    }
}

struct journal {
    unsigned long long magic, n;
    int pages[TOUCHED];
    char old[TOUCHED][PAGE];
    unsigned long long sum;
};

static unsigned long long sum(const struct journal *j)
{
    unsigned long long s = 14695981039346656037ull;
    const unsigned char *p = (const unsigned char *)j;
    for (size_t i = 0; i < offsetof(struct journal, sum); i++)
        s = (s ^ p[i]) * 1099511628211ull;
    return s;
}

/* Opens the file of pages as its last commit left it; that commit's number. */
static int recover(const char *file, const char *log, unsigned long long *n)
{
    static struct journal j;
    char bytes[PAGE], expected[PAGE];
    int fd = open(file, O_RDWR | O_CREAT, 0644);
    if (fd < 0)
        fail("open", file);
    struct stat st;
    if (fstat(fd, &st) != 0)
        fail("stat", file);
    /* Nothing was committed before all pages were there. */
    if (st.st_size < (off_t)PAGES * PAGE) {
        for (int i = 0; i < PAGES; i++) {
            page(bytes, i, 0);
            full(fd, file, bytes, PAGE, (off_t)i * PAGE, 1);
        }
        flush(fd, file);
    }
    int back = open(log, O_RDONLY);
    if (back >= 0) {
        memset(&j, 0, sizeof j);
        ssize_t have = read(back, &j, sizeof j);
        if (have < 0)
            fail("read", log);
        /* One that is not whole: no page was changed yet. */
        if (have == sizeof j && j.magic == 42 && j.sum == sum(&j)) {
            for (int i = 0; i < TOUCHED; i++)
                full(fd, file, j.old[i], PAGE, (off_t)j.pages[i] * PAGE, 1);
            flush(fd, file);
        }
        close(back);
        if (unlink(log) != 0)
            fail("unlink", log);
    } else if (errno != ENOENT) {
        fail("open", log);
    }
    full(fd, file, n, sizeof *n, 0, 0);
    for (int i = 0; i < PAGES; i++) {
        unsigned long long last = *n;
        for (; last > 0; last--) {
            int pages[TOUCHED];
            touched(last, pages);
            if (pages[0] == i || pages[1] == i || pages[2] == i)
                break;
        }
        page(expected, i, last);
        full(fd, file, bytes, PAGE, (off_t)i * PAGE, 0);
        if (memcmp(bytes, expected, PAGE) != 0)
            wrong("a page is not what the last commit left", file, i);
    }
    return fd;
}

static void journal(const char *dir, const char *id, int once)
{
    static struct journal j;
    char file[256], log[256], bytes[PAGE];
    unsigned long long n;
    snprintf(file, sizeof file, "%s/%s.db", dir, id);
    snprintf(log, sizeof log, "%s/%s.journal", dir, id);
    int fd = recover(file, log, &n);
    say('o', n);
    while (!once) {
        n++;
        memset(&j, 0, sizeof j);
        j.magic = 42;
        j.n = n;
        touched(n, j.pages);
        for (int i = 0; i < TOUCHED; i++)
            full(fd, file, j.old[i], PAGE, (off_t)j.pages[i] * PAGE, 0);
        j.sum = sum(&j);
        int out = open(log, O_WRONLY | O_CREAT | O_EXCL, 0644);
        if (out < 0)
            fail("create", log);
        full(out, log, &j, sizeof j, 0, 1);
        flush(out, log);
        close(out);
        for (int i = TOUCHED - 1; i >= 0; i--) {
            page(bytes, j.pages[i], n);
            full(fd, file, bytes, PAGE, (off_t)j.pages[i] * PAGE, 1);
        }
        flush(fd, file);
        if (unlink(log) != 0)
            fail("commit", log);
        say('j', n);
        breathe();
    }
}

static void records(const char *file)
{
    char r[RECORD], expected[RECORD];
    unsigned long long last[128] = {0}, all = 0;
    int fd = open(file, O_RDONLY | O_CREAT, 0644);
    if (fd < 0)
        fail("open", file);
    for (;; all++) {
        ssize_t n;
        while ((n = read(fd, r, RECORD)) == 0) {
            say('s', all);
            poll(NULL, 0, 2);
        }
        if (n < 0)
            fail("read", file);
        if (n != RECORD)
            wrong("part of a record", file, n);
        unsigned long long number = strtoull(r + 2, NULL, 10);
        char id[2] = {r[0] & 127, 0};
        record(expected, id, number);
        if (memcmp(r, expected, RECORD) != 0)
            wrong("not a record", file, all);
        if (number <= last[(int)id[0]])
            wrong("a record comes again, or late", file, number);
        last[(int)id[0]] = number;
        if (all % 256 == 0) {
            say('s', all);
            breathe();
        }
    }
}

static int order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names(const char *dir)
{
    static char *all[65536];
    for (unsigned long long turn = 0;; turn++) {
        int count = 0;
        DIR *d = opendir(dir);
        if (d == NULL)
            fail("open", dir);
        struct dirent *e;
        while (errno = 0, (e = readdir(d)) != NULL)
            if (count < 65536)
                all[count++] = strdup(e->d_name);
        if (errno != 0)
            fail("list", dir);
        closedir(d);
        qsort(all, count, sizeof *all, order);
        for (int i = 1; i < count; i++)
            if (strcmp(all[i - 1], all[i]) == 0)
                wrong("a name is listed twice", all[i], turn);
        while (count > 0)
            free(all[--count]);
        say('n', turn);
        poll(NULL, 0, 20);
    }
}

int main(int argc, char **argv)
{
    unsigned long long from = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    if (argc == 5 && strcmp(argv[1], "append") == 0)
        append(argv[2], argv[3], from);
    else if (argc == 5 && strcmp(argv[1], "churn") == 0)
        churn(argv[2], argv[3], from);
    else if (argc == 4 && strcmp(argv[1], "journal") == 0)
        journal(argv[2], argv[3], 0);
    else if (argc == 4 && strcmp(argv[1], "open") == 0)
        journal(argv[2], argv[3], 1);
    else if (argc == 3 && strcmp(argv[1], "records") == 0)
        records(argv[2]);
    else if (argc == 3 && strcmp(argv[1], "names") == 0)
        names(argv[2]);
    else
        return 2;
    return 0;
}
