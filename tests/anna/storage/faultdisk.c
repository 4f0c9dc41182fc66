/* fsync and its relatives fail with EIO while the file named by FAULT_FAIL exists, and do nothing (but say that
   they did) while the one named by FAULT_LIE does. Preloaded into a process under test. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int is_there(const char *variable)
{
    const char *path = getenv(variable);
    return path && access(path, F_OK) == 0;
}

static int through(const char *name, int fd)
{
    if (is_there("FAULT_FAIL")) {
        errno = EIO;
        return -1;
    }
    if (is_there("FAULT_LIE"))
        return 0;
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}

int fsync(int fd) { return through("fsync", fd); }
int fdatasync(int fd) { return through("fdatasync", fd); }
