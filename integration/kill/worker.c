/* What the kill test supervises. It counts what is done to it with one O_APPEND write each, so that the count needs
 * nobody's memory but the kernel's, and it writes numbered lines of which none may be missing from its log.
 *
 *   worker steady NAME FOLDER       lives until it is told to end, counts signals
 *   worker relay NAME FOLDER        as steady, says on descriptor 3 when it is ready, and may have one other beside it
 *   worker mortal NAME FOLDER       ends by itself after a moment, with a code of its own
 *   worker act ID FOLDER            counts one execution of an action
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define COUNTED_SIGNAL 40
#define TICK_MS 50

static int tally = -1;

static void note(const char *text) {
    if (write(tally, text, strlen(text)) != (ssize_t)strlen(text)) abort();
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    char text[256];
    if (argc != 4) return 64;
    const char *mode = argv[1], *name = argv[2], *folder = argv[3];
    /* Which run this is: numbers of processes come round again. */
    const char *mark = getenv("SMGR_RUN"), *dot = mark ? strrchr(mark, '.') : NULL;
    if (!dot) return 67;
    long run = atol(dot + 1);

    snprintf(text, sizeof text, "%s/tally", folder);
    tally = open(text, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (tally < 0) return 65;
    if (strcmp(mode, "act") == 0) {
        snprintf(text, sizeof text, "act %s\n", name);
        note(text);
        return 0;
    }

    sigset_t taken;
    sigemptyset(&taken);
    sigaddset(&taken, SIGTERM);
    sigaddset(&taken, COUNTED_SIGNAL);
    sigprocmask(SIG_BLOCK, &taken, NULL);
    int signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);

    /* The kernel lets go of the lock when the process before is gone, so a second one at a time cannot have it. */
    int is_relay = strcmp(mode, "relay") == 0, has_place = 0;
    for (int place = 0; place <= is_relay && !has_place; place++) {
        snprintf(text, sizeof text, "%s/%s.%d.lock", folder, name, place);
        int lock = open(text, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        has_place = lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0;
    }
    if (!has_place) {
        snprintf(text, sizeof text, "double %s %ld\n", name, run);
        note(text);
    }
    snprintf(text, sizeof text, "start %s %ld\n", name, run);
    note(text);

    if (is_relay && (write(3, "\n", 1) != 1 || close(3) != 0)) return 68;

    srandom((unsigned)getpid() ^ (unsigned)now_ms());
    int is_mortal = strcmp(mode, "mortal") == 0;
    long ends_at = is_mortal ? now_ms() + 200 + random() % 800 : 0;
    int code = is_mortal ? 1 + (int)(run % 100) : 0;
    int lines = 0, told = 0;
    while (!told && !(is_mortal && now_ms() >= ends_at)) {
        struct pollfd wait = {.fd = signals, .events = POLLIN};
        poll(&wait, 1, TICK_MS);
        struct signalfd_siginfo got;
        while (read(signals, &got, sizeof got) == (ssize_t)sizeof got) {
            if (got.ssi_signo == SIGTERM) {
                told = 1;
            } else {
                snprintf(text, sizeof text, "sig %s %ld\n", name, run);
                note(text);
            }
        }
        snprintf(text, sizeof text, "line %s %ld %d\n", name, run, ++lines);
        if (write(lines % 2 ? 1 : 2, text, strlen(text)) < 0) return 66;
    }
    if (told) code = 0;
    /* The end is counted before it happens: whoever sees the exit can find it here. */
    snprintf(text, sizeof text, "exit %s %ld %d %d\n", name, run, code, lines);
    note(text);
    return code;
}
