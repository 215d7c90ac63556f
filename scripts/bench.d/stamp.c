/* A service that does nothing but tell when it began: the first thing in main is the time, in nanoseconds of
 * CLOCK_MONOTONIC, which it appends with its pid to `starts` in the current folder. Every manager runs this file. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    signal(SIGUSR1, SIG_IGN); /* what `smgr signal` sends in the bench of commands */
    char line[64];
    int length = snprintf(line, sizeof line, "%lld %d\n", now.tv_sec * 1000000000LL + now.tv_nsec, (int)getpid());
    int file = open("starts", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0 || write(file, line, (size_t)length) != length) {
        return 1;
    }
    close(file);
    for (;;) {
        pause();
    }
}
