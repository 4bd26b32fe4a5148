/* Ends this process after its parent died, even while other code holds the GIL for ever.
 *
 * One detached thread, which never calls Python, blocks in poll on a descriptor that becomes
 * readable when the parent dies: a pidfd, or a pipe whose other end only the parent has. It then
 * sends this process SIGTERM, so that running items can finish, and ends it after a grace period.
 * It wakes at no other time. PR_SET_PDEATHSIG cannot replace it: that signal comes when the thread
 * ends that started this process, while the parent process may live on.
 */
#ifndef AMP_WATCHDOG_H
#define AMP_WATCHDOG_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define AMP_WATCHDOG_STACK (256 * 1024) /* it needs one page; libraries' static TLS comes on top */

struct amp_watch {
    int fd;
    pid_t parent;
    struct timespec grace;
};

/* Block until the parent is dead; 0 if that cannot be known. */
static inline int amp_watch_wait(const struct amp_watch *watch)
{
    struct pollfd event = {.fd = watch->fd, .events = POLLIN};
    int done;
    do
        done = poll(&event, 1, -1);
    while (done < 0 && errno == EINTR);
    if (done < 0)
        return 0;
    /* Other code closed our descriptor: then only a new parent of this process proves the death. */
    return (event.revents & POLLNVAL) == 0 || getppid() != watch->parent;
}

static void *amp_watch_run(void *argument)
{
    struct amp_watch watch = *(struct amp_watch *)argument;
    free(argument);
    if (amp_watch_wait(&watch)) {
        kill(getpid(), SIGTERM);
        while (nanosleep(&watch.grace, &watch.grace) < 0 && errno == EINTR)
            ;
        _exit(1);
    }
    return NULL;
}

static inline int amp_watch_thread(struct amp_watch *watch)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int error = pthread_attr_init(&attributes);
    if (error != 0)
        return error;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, AMP_WATCHDOG_STACK);
    error = pthread_create(&thread, &attributes, amp_watch_run, watch);
    pthread_attr_destroy(&attributes);
    return error;
}

/* Start the thread; 0 or an errno. `fd` must stay open. */
static inline int amp_watch_start(int fd, pid_t parent, double grace)
{
    sigset_t all, before;
    struct amp_watch *watch = malloc(sizeof *watch);
    if (watch == NULL)
        return ENOMEM;
    watch->fd = fd;
    watch->parent = parent;
    watch->grace.tv_sec = (time_t)grace;
    watch->grace.tv_nsec = (long)((grace - (double)watch->grace.tv_sec) * 1e9);
    /* The thread inherits a mask of all signals. A signal that the kernel delivers to this thread
     * would not interrupt a call in which Python waits. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = amp_watch_thread(watch);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        free(watch);
    return error;
}

#endif /* AMP_WATCHDOG_H */
