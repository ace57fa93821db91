/* Make chosen reads and writes of a process fail, by LD_PRELOAD; tests/kit/inject/__init__.py
 * builds it and says what a rule means. Every rule has counters of its own. */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 8

struct rule {
    char call[16], path[64], action[8];
    long long argument, first, last, skip, count;
    atomic_llong seen;
};

static struct rule rules[MOST];
static int used;

__attribute__((constructor)) static void read_rules(void)
{
    const char *text = getenv("MAPSAVE_TEST_INJECT");
    while (text && *text && used < MOST) {
        struct rule *rule = &rules[used];
        if (sscanf(text, "%15[^,],%63[^,],%7[^,],%lld,%lld,%lld,%lld,%lld", rule->call, rule->path,
                   rule->action, &rule->argument, &rule->first, &rule->last, &rule->skip,
                   &rule->count) != 8) {
            fprintf(stderr, "inject: bad rule: %s\n", text);
            abort();
        }
        used++;
        text = strchr(text, ';');
        text = text ? text + 1 : NULL;
    }
}

static int is_at(int fd, const char *part)
{
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0)
        return 0;
    target[length] = 0;
    return strstr(target, part) != NULL;
}

static struct rule *hit(const char *call, int fd, long long offset)
{
    int saved = errno;
    struct rule *found = NULL;
    for (int i = 0; i < used && !found; i++) {
        struct rule *rule = &rules[i];
        if (strcmp(rule->call, call) || offset < rule->first || offset > rule->last ||
            !is_at(fd, rule->path))
            continue;
        long long seen = atomic_fetch_add(&rule->seen, 1);
        if (seen >= rule->skip && (rule->count < 0 || seen < rule->skip + rule->count))
            found = rule;
    }
    errno = saved;
    return found;
}

/* Do what a rule says; return 1 where the call must not be made at all, -1 being its result. */
static int act(struct rule *rule)
{
    if (!strcmp(rule->action, "errno")) {
        errno = (int)rule->argument;
        return 1;
    }
    if (!strcmp(rule->action, "delay"))
        usleep((useconds_t)rule->argument);
    else if (!strcmp(rule->action, "hang"))
        for (;;)
            pause();
    else if (!strcmp(rule->action, "kill"))
        kill(getpid(), (int)rule->argument);
    return 0;
}

/* Cut a vector to at most `most` bytes, into `out`. */
static int cut(const struct iovec *in, int count, size_t most, struct iovec *out)
{
    int used_parts = 0;
    for (int i = 0; i < count && most > 0; i++) {
        out[used_parts] = in[i];
        if (out[used_parts].iov_len > most)
            out[used_parts].iov_len = most;
        most -= out[used_parts++].iov_len;
    }
    return used_parts;
}

#define VECTOR(name, call)                                                                        \
    ssize_t name(int fd, const struct iovec *iov, int count, off64_t offset)                      \
    {                                                                                             \
        static ssize_t (*real)(int, const struct iovec *, int, off64_t);                          \
        struct iovec part[1024];                                                                  \
        struct rule *rule = hit(call, fd, offset);                                                \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        if (rule && act(rule))                                                                    \
            return -1;                                                                            \
        if (rule && !strcmp(rule->action, "short") && count <= 1024) {                            \
            int parts = cut(iov, count, (size_t)rule->argument, part);                            \
            return parts ? real(fd, part, parts, offset) : 0;                                     \
        }                                                                                         \
        return real(fd, iov, count, offset);                                                      \
    }

#define PLAIN(name, call, pointer)                                                                \
    ssize_t name(int fd, pointer buffer, size_t length, off64_t offset)                           \
    {                                                                                             \
        static ssize_t (*real)(int, pointer, size_t, off64_t);                                    \
        struct rule *rule = hit(call, fd, offset);                                                \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        if (rule && act(rule))                                                                    \
            return -1;                                                                            \
        if (rule && !strcmp(rule->action, "short") && length > (size_t)rule->argument)            \
            length = (size_t)rule->argument;                                                      \
        return real(fd, buffer, length, offset);                                                  \
    }

#define STREAM(name, call, pointer)                                                               \
    ssize_t name(int fd, pointer buffer, size_t length)                                           \
    {                                                                                             \
        static ssize_t (*real)(int, pointer, size_t);                                             \
        struct rule *rule = used ? hit(call, fd, lseek(fd, 0, SEEK_CUR)) : NULL;                  \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        if (rule && act(rule))                                                                    \
            return -1;                                                                            \
        if (rule && !strcmp(rule->action, "short") && length > (size_t)rule->argument)            \
            length = (size_t)rule->argument;                                                      \
        return real(fd, buffer, length);                                                          \
    }

#define STREAMV(name, call)                                                                       \
    ssize_t name(int fd, const struct iovec *iov, int count)                                      \
    {                                                                                             \
        static ssize_t (*real)(int, const struct iovec *, int);                                   \
        struct iovec part[1024];                                                                  \
        struct rule *rule = used ? hit(call, fd, lseek(fd, 0, SEEK_CUR)) : NULL;                  \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        if (rule && act(rule))                                                                    \
            return -1;                                                                            \
        if (rule && !strcmp(rule->action, "short") && count <= 1024) {                            \
            int parts = cut(iov, count, (size_t)rule->argument, part);                            \
            return parts ? real(fd, part, parts) : 0;                                             \
        }                                                                                         \
        return real(fd, iov, count);                                                              \
    }

VECTOR(pwritev, "pwritev")
VECTOR(pwritev64, "pwritev")
VECTOR(preadv, "preadv")
VECTOR(preadv64, "preadv")
PLAIN(pwrite, "pwrite", const void *)
PLAIN(pwrite64, "pwrite", const void *)
PLAIN(pread, "pread", void *)
PLAIN(pread64, "pread", void *)
STREAM(write, "write", const void *)
STREAM(read, "read", void *)
STREAMV(writev, "writev")
STREAMV(readv, "readv")

int fsync(int fd)
{
    static int (*real)(int);
    struct rule *rule = hit("fsync", fd, 0);
    if (!real)
        real = (void *)dlsym(RTLD_NEXT, "fsync");
    return rule && act(rule) ? -1 : real(fd);
}
