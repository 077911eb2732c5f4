/* The message-queue pairs in C, for `make bench`: the same work, by the same rules.

       peer posix|sysv server NAME|KEY COUNT    a timestamped line, written out, for each message
       peer posix|sysv client NAME|KEY COUNT    the JSON text {"count": 1}, {"count": 2}, ...

   The server prints the text of a message and does not decode it; C has no JSON to decode it with.
*/
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct message {
    long type;
    char text[8192];
};

static void fail(const char *what)
{
    perror(what);
    exit(EXIT_FAILURE);
}

static void show(const char *text, int length)
{
    struct timeval now;
    struct tm *tm;

    gettimeofday(&now, NULL);
    tm = localtime(&now.tv_sec);
    printf("%02d:%02d:%02d.%06ld %.*s\n", tm->tm_hour, tm->tm_min, tm->tm_sec, (long)now.tv_usec,
           length, text);
    fflush(stdout);
}

static void posix_ipc(int server, const char *name, long count)
{
    static char text[8192];
    struct mq_attr attr = { .mq_maxmsg = 10, .mq_msgsize = sizeof text };
    mqd_t mqd = mq_open(name, O_CREAT | (server ? O_RDONLY : O_WRONLY), 0600, &attr);

    if (mqd == (mqd_t)-1)
        fail("mq_open");
    for (long n = 1; server && n <= count; n++) {
        ssize_t length = mq_receive(mqd, text, sizeof text, NULL);
        if (length == -1)
            fail("mq_receive");
        show(text, length);
    }
    for (long n = 1; !server && n <= count; n++)
        if (mq_send(mqd, text, snprintf(text, sizeof text, "{\"count\": %ld}", n), 0) == -1)
            fail("mq_send");
}

static void system_v(int server, key_t key, long count)
{
    static struct message message;
    int id = msgget(key, IPC_CREAT | 0600);

    if (id == -1)
        fail("msgget");
    for (long n = 1; server && n <= count; n++) {
        ssize_t length = msgrcv(id, &message, sizeof message.text, 0, 0);
        if (length == -1)
            fail("msgrcv");
        show(message.text, length);
    }
    message.type = 1;
    for (long n = 1; !server && n <= count; n++) {
        int length = snprintf(message.text, sizeof message.text, "{\"count\": %ld}", n);
        if (msgsnd(id, &message, length, 0) == -1)
            fail("msgsnd");
    }
}

int main(int argc, char *argv[])
{
    if (argc < 5)
        return 2;
    int server = strcmp(argv[2], "server") == 0;
    long count = atol(argv[4]);

    if (server) {
        printf("start\n");
        fflush(stdout);
    }
    if (strcmp(argv[1], "posix") == 0)
        posix_ipc(server, argv[3], count);
    else
        system_v(server, atoi(argv[3]), count);
    return 0;
}
