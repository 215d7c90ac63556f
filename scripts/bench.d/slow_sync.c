/* A disk that stalls: each fdatasync of the agent takes 300 ms longer. To be preloaded; the other parts, which get
 * the same environment, are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int stalls;

__attribute__((constructor)) static void look(void) {
    char line[4096];
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? 0 : read(file, line, sizeof line);
    close(file);
    static const char agent[] = "--part\0agent";
    stalls = length > 0 && memmem(line, (size_t)length, agent, sizeof agent) != NULL;
}

int fdatasync(int file) {
    static int (*next)(int);
    if (next == NULL) {
        next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    }
    if (stalls) {
        struct timespec rest = {0, 300000000};
        while (nanosleep(&rest, &rest) != 0) {
        }
    }
    return next(file);
}
