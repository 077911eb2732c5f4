/* The message-queue pairs in C, for `make bench`: the same work, by the same rules.

       peer posix|sysv server NAME|KEY COUNT    a timestamped line, written out, for each message
       peer posix|sysv client NAME|KEY COUNT    the JSON text {"count": 1}, {"count": 2}, ...

   The server prints the text of a message and does not decode it; C has no JSON to decode it with.
   A line is one write(2), without stdio. The hours, minutes and seconds are worked out when the
   second changes. Built with `cc -O2`.
*/
#define _GNU_SOURCE /* for mempcpy(3) */
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <time.h>
#include <unistd.h>

static struct {
    long type;
    char text[8192];
} message;

static void must(int done, const char *what)
{
    if (!done) {
        perror(what);
        exit(EXIT_FAILURE);
    }
}

static void show(const char *text, size_t length)
{
    static char line[sizeof message.text + 32] = "HH:MM:SS.000000 ";
    static time_t second;
    struct timespec now;
    struct tm tm;

    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec != second) {
        second = now.tv_sec;
        strftime(line, sizeof line, "%H:%M:%S.000000 ", localtime_r(&second, &tm));
    }
    for (long digit = 14, rest = now.tv_nsec / 1000; digit > 8; digit--, rest /= 10)
        line[digit] = '0' + rest % 10;
    char *end = mempcpy(line + 16, text, strnlen(text, length));
    *end++ = '\n';
    must(write(STDOUT_FILENO, line, end - line) == end - line, "write");
}

static void serve_posix(mqd_t queue, long count)
{
    while (count--) {
        ssize_t length = mq_receive(queue, message.text, sizeof message.text, NULL);
        must(length >= 0, "mq_receive");
        show(message.text, length);
    }
}

static void send_posix(mqd_t queue, long count)
{
    for (long n = 1; n <= count; n++) {
        int length = sprintf(message.text, "{\"count\": %ld}", n);
        must(mq_send(queue, message.text, length, 0) == 0, "mq_send");
    }
}

static void serve_sysv(int queue, long count)
{
    while (count--) {
        ssize_t length = msgrcv(queue, &message, sizeof message.text, 0, 0);
        must(length >= 0, "msgrcv");
        show(message.text, length);
    }
}

static void send_sysv(int queue, long count)
{
    message.type = 1;
    for (long n = 1; n <= count; n++) {
        int length = sprintf(message.text, "{\"count\": %ld}", n);
        must(msgsnd(queue, &message, length, 0) == 0, "msgsnd");
    }
}

int main(int argc, char *argv[])
{
    if (argc != 5)
        return 2;
    int server = strcmp(argv[2], "server") == 0;
    long count = atol(argv[4]);

    tzset(); /* localtime_r(3) need not do it by itself */
    if (server)
        must(write(STDOUT_FILENO, "start\n", 6) == 6, "write");
    if (strcmp(argv[1], "posix") == 0) {
        struct mq_attr attr = { .mq_maxmsg = 10, .mq_msgsize = sizeof message.text };
        mqd_t queue = mq_open(argv[3], O_CREAT | (server ? O_RDONLY : O_WRONLY), 0600, &attr);
        must(queue != (mqd_t)-1, "mq_open");
        (server ? serve_posix : send_posix)(queue, count);
    } else {
        int queue = msgget(atoi(argv[3]), IPC_CREAT | 0600);
        must(queue != -1, "msgget");
        (server ? serve_sysv : send_sysv)(queue, count);
    }
    return 0;
}
