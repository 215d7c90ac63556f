/* Says READY=1 after so many milliseconds, as often as asked, and stays. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **argument)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    if (!path || strlen(path) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, path);
    if (*path == '@')
        address.sun_path[0] = 0;
    if (count > 1)
        usleep(1000 * atoi(argument[1]));
    if (sendto(fd, "READY=1", 7, 0, (struct sockaddr *)&address,
               offsetof(struct sockaddr_un, sun_path) + strlen(path)) != 7)
        return 3;
    for (;;)
        pause();
}
