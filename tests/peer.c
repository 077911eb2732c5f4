/* A POSIX peer that is none of ours, for the tests: it does what C programs do.

       peer msq send NAME TEXT         with the NUL that ends the string
       peer msq receive NAME
       peer shm write NAME TEXT        without a lock
       peer shm read NAME
       peer shm create NAME SIZE       ftruncate(2), and nothing written
       peer sem wait|post|value NAME
       peer sem create NAME VALUE
*/
#include <fcntl.h>
#include <mqueue.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(EXIT_FAILURE);
    }
}

static void message_queue(const char *verb, const char *name, const char *text)
{
    struct mq_attr attr;
    mqd_t mqd = mq_open(name, O_RDWR);

    check(mqd != (mqd_t)-1, "mq_open");
    if (strcmp(verb, "send") == 0) {
        check(mq_send(mqd, text, strlen(text) + 1, 3) == 0, "mq_send");
    } else {
        check(mq_getattr(mqd, &attr) == 0, "mq_getattr");
        char buffer[attr.mq_msgsize];
        ssize_t length = mq_receive(mqd, buffer, sizeof buffer, NULL);
        check(length >= 0, "mq_receive");
        printf("%.*s\n", (int)length, buffer);
    }
}

static void shared_memory(const char *verb, const char *name, const char *text)
{
    struct stat stat;
    int create = strcmp(verb, "create") == 0;
    int fd = shm_open(name, O_RDWR | (create ? O_CREAT | O_EXCL : 0), 0600);

    check(fd != -1, "shm_open");
    if (create) {
        check(ftruncate(fd, atol(text)) == 0, "ftruncate");
        return;
    }
    check(fstat(fd, &stat) == 0, "fstat");
    char *address = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    check(address != MAP_FAILED, "mmap");
    if (strcmp(verb, "write") == 0)
        strcpy(address, text);
    else
        printf("%.*s\n", (int)stat.st_size, address);
}

static void semaphore(const char *verb, const char *name, const char *text)
{
    int value;
    sem_t *sem = strcmp(verb, "create") == 0
        ? sem_open(name, O_CREAT | O_EXCL, 0600, atoi(text))
        : sem_open(name, 0);

    check(sem != SEM_FAILED, "sem_open");
    if (strcmp(verb, "wait") == 0)
        check(sem_wait(sem) == 0, "sem_wait");
    if (strcmp(verb, "post") == 0)
        check(sem_post(sem) == 0, "sem_post");
    check(sem_getvalue(sem, &value) == 0, "sem_getvalue");
    printf("%d\n", value);
}

int main(int argc, char *argv[])
{
    const char *text = argc > 4 ? argv[4] : "";

    if (argc < 4)
        return 2;
    if (strcmp(argv[1], "msq") == 0)
        message_queue(argv[2], argv[3], text);
    else if (strcmp(argv[1], "shm") == 0)
        shared_memory(argv[2], argv[3], text);
    else
        semaphore(argv[2], argv[3], text);
    return 0;
}
