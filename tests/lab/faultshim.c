/* Faults of a disk, put between a program and libc (LD_PRELOAD).
 *
 * The one rule: only regular files below FAULTSHIM_BELOW are concerned; sockets, pipes, logs and libraries are as ever. What
 * happens is read from a page of memory that the test shares with every such process (FAULTSHIM_CONTROL, a file), so that a
 * fault begins and ends at run time, in all of them at once. Its counters show that a program's calls do pass here: one that
 * writes through memory maps without msync, or makes system calls of its own, is not seen. A file that is opened with O_SYNC
 * or O_DSYNC is opened without, and each write to it is followed by a sync that can fail and lie like any other.
 * The fields' order is that of FIELDS in disks.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    int64_t fsync_errno, fsync_lie, write_errno, torn, after_bytes;
    int64_t writes, syncs, lied, bytes;
};

static struct control quiet;
static struct control *control = &quiet;
static char below[PATH_MAX];
static size_t below_bytes;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTSHIM_CONTROL");
    const char *prefix = getenv("FAULTSHIM_BELOW");
    int fd;
    void *page;
    if (!path || !prefix || strlen(prefix) + 2 > sizeof below || (fd = open(path, O_RDWR | O_CLOEXEC)) < 0)
        return;
    page = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED)
        return;
    below_bytes = (size_t)snprintf(below, sizeof below, "%s/", prefix);
    control = page;
}

/* Whether this is one of the files, or directories, that are concerned; errno is kept. */
static int concerned(int fd)
{
    char link[40], path[PATH_MAX];
    struct stat found;
    int before = errno;
    ssize_t size;
    if (!below_bytes || fstat(fd, &found) != 0 || !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode))) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, path, sizeof path - 1);
    errno = before;
    if (size < 0)
        return 0;
    path[size] = S_ISDIR(found.st_mode) ? '/' : 0; /* `below` ends with a slash, so that it is below itself */
    return size + 1 >= (ssize_t)below_bytes && memcmp(path, below, below_bytes) == 0;
}

/* Which files were opened to be synced at each write. */
#define FILES_MAX 65536
static unsigned char synced[FILES_MAX];

static void add(int64_t *counter, int64_t count)
{
    __atomic_fetch_add(counter, count, __ATOMIC_RELAXED);
}

/* How many of a write's bytes may be written; -1 when it is to fail, with errno set. `tear`: the process is then to end. */
static ssize_t allowed(size_t size, int *tear)
{
    int64_t left = control->after_bytes - control->bytes;
    *tear = 0;
    add(&control->writes, 1);
    if ((!control->write_errno && !control->torn) || left >= (int64_t)size)
        return (ssize_t)size;
    if (left < 0)
        left = 0;
    *tear = control->torn != 0;
    if (left == 0 && !*tear) {
        errno = (int)control->write_errno;
        return -1;
    }
    return (ssize_t)left;
}

static ssize_t written(int fd, ssize_t size, int tear)
{
    if (tear)
        _exit(137);
    if (size > 0)
        add(&control->bytes, size);
    if (size > 0 && fd < FILES_MAX && synced[fd] && fdatasync(fd) != 0)
        return -1;
    return size;
}

#define WRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) \
    { \
        REAL(name); \
        int tear; \
        ssize_t most; \
        if (!concerned(fd)) \
            return real(fd, data, size, offset); \
        if ((most = allowed(size, &tear)) < 0) \
            return -1; \
        return written(fd, real(fd, data, (size_t)most, offset), tear); \
    }

WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    int tear;
    ssize_t most;
    if (!concerned(fd))
        return real(fd, data, size);
    if ((most = allowed(size, &tear)) < 0)
        return -1;
    return written(fd, real(fd, data, (size_t)most), tear);
}

static size_t total(const struct iovec *parts, int count)
{
    size_t size = 0;
    for (int n = 0; n < count; n++)
        size += parts[n].iov_len;
    return size;
}

/* Writes as much of the parts as is allowed: whole parts, then a piece of the next. `offset` -1: at the file's own place. */
static ssize_t write_parts(int fd, const struct iovec *parts, int count, off_t offset)
{
    int tear;
    ssize_t most = allowed(total(parts, count), &tear), done = 0;
    if (most < 0)
        return -1;
    for (int n = 0; n < count && done < most; n++) {
        size_t piece = parts[n].iov_len < (size_t)(most - done) ? parts[n].iov_len : (size_t)(most - done);
        ssize_t got;
        REAL(write);
        static __typeof__(pwrite) *real_at;
        if (!real_at)
            real_at = (__typeof__(pwrite) *)dlsym(RTLD_NEXT, "pwrite");
        got = offset < 0 ? real(fd, parts[n].iov_base, piece) : real_at(fd, parts[n].iov_base, piece, offset + done);
        if (got < 0)
            return written(fd, done ? done : -1, tear);
        done += got;
        if ((size_t)got < piece)
            break;
    }
    return written(fd, done, tear);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    return concerned(fd) ? write_parts(fd, parts, count, -1) : real(fd, parts, count);
}

#define WRITE_PARTS_AT(name, offset_type) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_type offset) \
    { \
        REAL(name); \
        return concerned(fd) ? write_parts(fd, parts, count, offset) : real(fd, parts, count, offset); \
    }

WRITE_PARTS_AT(pwritev, off_t)
WRITE_PARTS_AT(pwritev64, off64_t)

#define WRITE_PARTS_FLAGGED(name, offset_type) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_type offset, int flags) \
    { \
        REAL(name); \
        return concerned(fd) ? write_parts(fd, parts, count, offset) : real(fd, parts, count, offset, flags); \
    }

WRITE_PARTS_FLAGGED(pwritev2, off_t)
WRITE_PARTS_FLAGGED(pwritev64v2, off64_t)

/* Takes over the syncs of a file that was opened to be synced at each write. */
static int opened(int fd, const char *path, int flags)
{
    int again;
    if (fd < 0 || fd >= FILES_MAX || !concerned(fd))
        return fd;
    synced[fd] = (flags & O_DSYNC) != 0; /* which is a part of O_SYNC */
    if (!synced[fd])
        return fd;
    /* The flag cannot be taken away, so the file is opened again, under the same number. */
    again = open(path, flags & ~(O_SYNC | O_DSYNC | O_CREAT | O_EXCL | O_TRUNC));
    if (again < 0 || dup3(again, fd, flags & O_CLOEXEC) < 0)
        abort();
    close(again);
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        static int (*real)(const char *, int, ...); \
        va_list rest; \
        mode_t mode; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (!real) \
            real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return opened(real(path, flags, mode), path, flags); \
    }

OPEN(open)
OPEN(open64)

/* Whether a sync is to be made up: 1 with `result` and errno set, 0 when it is to be done. */
static int made_up(int *result)
{
    add(&control->syncs, 1);
    if (control->fsync_errno) {
        errno = (int)control->fsync_errno;
        *result = -1;
        return 1;
    }
    if (control->fsync_lie) {
        add(&control->lied, 1);
        *result = 0;
        return 1;
    }
    return 0;
}

int fsync(int fd)
{
    REAL(fsync);
    int result;
    return concerned(fd) && made_up(&result) ? result : real(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    int result;
    return concerned(fd) && made_up(&result) ? result : real(fd);
}

int sync_file_range(int fd, off64_t offset, off64_t size, unsigned int flags)
{
    REAL(sync_file_range);
    int result;
    return concerned(fd) && made_up(&result) ? result : real(fd, offset, size, flags);
}

/* Which file is mapped is not known here: every msync of the process is concerned. */
int msync(void *place, size_t size, int flags)
{
    REAL(msync);
    int result;
    return below_bytes && made_up(&result) ? result : real(place, size, flags);
}

static int full(int fd)
{
    return concerned(fd) && control->write_errno && control->bytes >= control->after_bytes;
}

#define ALLOCATE(name, offset_type) \
    int name(int fd, int mode, offset_type offset, offset_type size) \
    { \
        REAL(name); \
        if (full(fd)) { \
            errno = (int)control->write_errno; \
            return -1; \
        } \
        return real(fd, mode, offset, size); \
    }

ALLOCATE(fallocate, off_t)
ALLOCATE(fallocate64, off64_t)

#define ALLOCATE_POSIX(name, offset_type) \
    int name(int fd, offset_type offset, offset_type size) \
    { \
        REAL(name); \
        return full(fd) ? (int)control->write_errno : real(fd, offset, size); \
    }

ALLOCATE_POSIX(posix_fallocate, off_t)
ALLOCATE_POSIX(posix_fallocate64, off64_t)
