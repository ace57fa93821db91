/* Make chosen system calls of a process fail, by LD_PRELOAD; tests/kit/inject/__init__.py builds it
 * and says what a rule means. Every rule has counters of its own. */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
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

/* Tell whether a unix socket is connected to a path that contains `part`. */
static int leads_to(int fd, const char *part)
{
    struct sockaddr_un peer = {0};
    socklen_t length = sizeof peer - 1;
    return !getpeername(fd, (struct sockaddr *)&peer, &length) && peer.sun_family == AF_UNIX &&
           strstr(peer.sun_path, part) != NULL;
}

static int is_at(int fd, const char *part)
{
    char link[64], target[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, target, sizeof target - 1);
    if (length < 0)
        return 0;
    target[length] = 0;
    return strstr(target, part) != NULL || leads_to(fd, part);
}

/* Say in the file that MAPSAVE_TEST_MET names, if it does, that a rule has hit a call. */
static void report(const struct rule *rule)
{
    const char *path = getenv("MAPSAVE_TEST_MET");
    char line[128];
    if (!path)
        return;
    int length = snprintf(line, sizeof line, "%s %s\n", rule->call, rule->action);
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, (size_t)length);
        syscall(SYS_close, fd);
    }
}

/* Wait until the file that MAPSAVE_TEST_GO names is there. */
static void hold(void)
{
    const char *path = getenv("MAPSAVE_TEST_GO");
    while (path && access(path, F_OK))
        usleep(5000);
}

/* Count a call that a rule is about; return whether it is one of those that are hit. One that is
 * only delayed or held is so here, and a further rule may be for it as well. */
static int counts(struct rule *rule)
{
    long long seen = atomic_fetch_add(&rule->seen, 1);
    if (seen < rule->skip || (rule->count >= 0 && seen >= rule->skip + rule->count))
        return 0;
    report(rule);
    if (!strcmp(rule->action, "delay"))
        usleep((useconds_t)rule->argument);
    else if (!strcmp(rule->action, "hold"))
        hold();
    else
        return 1;
    return 0;
}

static struct rule *hit(const char *call, int fd, long long offset)
{
    int saved = errno;
    struct rule *found = NULL;
    for (int i = 0; i < used && !found; i++) {
        struct rule *rule = &rules[i];
        if (!strcmp(rule->call, call) && offset >= rule->first && offset <= rule->last &&
            is_at(fd, rule->path) && counts(rule))
            found = rule;
    }
    errno = saved;
    return found;
}

/* The same for a call that names one path or two; the second may be NULL. */
static struct rule *named(const char *call, const char *path, const char *second)
{
    struct rule *found = NULL;
    for (int i = 0; i < used && !found; i++) {
        struct rule *rule = &rules[i];
        if (!strcmp(rule->call, call) &&
            (strstr(path, rule->path) || (second && strstr(second, rule->path))) && counts(rule))
            found = rule;
    }
    return found;
}

/* Do what a rule says; return 1 where the call must not be made at all, -1 being its result. */
static int act(struct rule *rule)
{
    if (!strcmp(rule->action, "errno")) {
        errno = (int)rule->argument;
        return 1;
    }
    if (!strcmp(rule->action, "hang"))
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
/* What os.pwritev and os.preadv of Python call. */
#define VECTOR2(name, plain)                                                                      \
    ssize_t name(int fd, const struct iovec *iov, int count, off64_t offset, int flags)           \
    {                                                                                             \
        (void)flags; /* none that a test needs */                                                 \
        return plain(fd, iov, count, offset);                                                     \
    }

VECTOR2(pwritev2, pwritev)
VECTOR2(pwritev64v2, pwritev64)
VECTOR(preadv, "preadv")
VECTOR(preadv64, "preadv")
VECTOR2(preadv2, preadv)
VECTOR2(preadv64v2, preadv64)
PLAIN(pwrite, "pwrite", const void *)
PLAIN(pwrite64, "pwrite", const void *)
PLAIN(pread, "pread", void *)
PLAIN(pread64, "pread", void *)
STREAM(write, "write", const void *)
STREAM(read, "read", void *)
STREAMV(writev, "writev")
STREAMV(readv, "readv")

/* A call on a descriptor, of which nothing can be cut short. */
#define ON_FD(name, call, parameters, arguments)                                                  \
    int name parameters                                                                           \
    {                                                                                             \
        static int(*real) parameters;                                                             \
        struct rule *rule = hit(call, fd, 0);                                                     \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        return rule && act(rule) ? -1 : real arguments;                                           \
    }

/* A call on one path or two. */
#define ON_PATH(name, call, first, second, parameters, arguments)                                 \
    int name parameters                                                                           \
    {                                                                                             \
        static int(*real) parameters;                                                             \
        struct rule *rule = named(call, first, second);                                           \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        return rule && act(rule) ? -1 : real arguments;                                           \
    }

/* A call on a socket, which is a file "socket:[…]"; "short" is left to read and write. */
#define ON_SOCKET(name, call, parameters, arguments)                                              \
    ssize_t name parameters                                                                       \
    {                                                                                             \
        static ssize_t(*real) parameters;                                                         \
        struct rule *rule = used ? hit(call, fd, 0) : NULL;                                       \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        return rule && act(rule) ? -1 : real arguments;                                           \
    }

#define OPENS(name, parameters, ...)                                                       \
    int name parameters                                                                           \
    {                                                                                             \
        static int(*real) parameters;                                                             \
        mode_t mode = 0;                                                                          \
        struct rule *rule = named("open", path, NULL);                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                      \
            va_list more;                                                                         \
            va_start(more, flags);                                                                \
            mode = va_arg(more, mode_t);                                                          \
            va_end(more);                                                                         \
        }                                                                                         \
        if (!real)                                                                                \
            real = (void *)dlsym(RTLD_NEXT, #name);                                               \
        return rule && act(rule) ? -1 : real(__VA_ARGS__, mode);                                  \
    }

ON_FD(fsync, "fsync", (int fd), (fd))
ON_FD(fdatasync, "fdatasync", (int fd), (fd))
ON_FD(ftruncate, "ftruncate", (int fd, off_t length), (fd, length))
ON_FD(ftruncate64, "ftruncate", (int fd, off64_t length), (fd, length))
ON_FD(fallocate, "fallocate", (int fd, int mode, off_t offset, off_t length),
      (fd, mode, offset, length))
ON_FD(fallocate64, "fallocate", (int fd, int mode, off64_t offset, off64_t length),
      (fd, mode, offset, length))
ON_PATH(rename, "rename", old, new, (const char *old, const char *new), (old, new))
ON_PATH(renameat, "rename", old, new, (int from, const char *old, int to, const char *new),
        (from, old, to, new))
ON_PATH(renameat2, "rename", old, new,
        (int from, const char *old, int to, const char *new, unsigned int flags),
        (from, old, to, new, flags))
ON_PATH(unlink, "unlink", path, NULL, (const char *path), (path))
ON_PATH(unlinkat, "unlink", path, NULL, (int directory, const char *path, int flags),
        (directory, path, flags))
OPENS(open, (const char *path, int flags, ...), path, flags)
OPENS(open64, (const char *path, int flags, ...), path, flags)
OPENS(openat, (int directory, const char *path, int flags, ...), directory, path, flags)
OPENS(openat64, (int directory, const char *path, int flags, ...), directory, path, flags)
ON_SOCKET(send, "send", (int fd, const void *buffer, size_t length, int flags),
          (fd, buffer, length, flags))
ON_SOCKET(sendmsg, "send", (int fd, const struct msghdr *message, int flags), (fd, message, flags))
ON_SOCKET(recv, "recv", (int fd, void *buffer, size_t length, int flags),
          (fd, buffer, length, flags))
ON_SOCKET(recvmsg, "recv", (int fd, struct msghdr *message, int flags), (fd, message, flags))

/* openat2(2) has no function of its own in the C library. */
long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(more, long);
    va_end(more);
    struct rule *rule = number == SYS_openat2 ? named("open", (const char *)a[1], NULL) : NULL;
    if (!real)
        real = (void *)dlsym(RTLD_NEXT, "syscall");
    return rule && act(rule) ? -1 : real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
