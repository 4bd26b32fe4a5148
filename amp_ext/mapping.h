/* What ring.h asks of the operating system: shared memory without a name, and doorbells.
 *
 * Memory is reserved when it is made. If the system has no memory for a page of shared memory when
 * it is first touched, the process dies by SIGBUS; here that is an errno. A function that fails
 * returns -1 or NULL with errno set and leaves nothing open; those of the memory also set `*call`
 * to the name of the system call that was refused.
 *
 * Linux has memfd and eventfd. Other POSIX systems use shm_open, unlinked at once, and a pipe. A
 * sandbox may refuse calls that the kernel has: then a pipe replaces the eventfd, and writing to
 * the memory reserves it as fallocate would. Linux gets no unsealed memory, because a peer could
 * shrink it (ring.h); without memfd or seals there is no ring, and the pipe transport is used.
 */
#ifndef AMP_MAPPING_H
#define AMP_MAPPING_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create, F_ADD_SEALS */
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/eventfd.h>
#endif

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* Linux 6.3; what a kernel with vm.memfd_noexec=2 insists on */
#endif

/* Whether a sandbox or an old kernel refused a call, and not a lack of memory or descriptors. */
static inline int amp_refused(int error)
{
    return error == EPERM || error == EACCES || error == ENOSYS || error == EINVAL
        || error == EOPNOTSUPP;
}

static inline int amp_close_failed(int fd)
{
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* A file that grows past RLIMIT_FSIZE also raises SIGXFSZ, which a program may not ignore. */
static inline int amp_size_allowed(uint64_t size)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY
        && limit.rlim_cur < size) {
        errno = EFBIG;
        return -1;
    }
    return 0;
}

#if defined(__linux__)

#define AMP_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A zero in each page takes its memory, and the last one makes the file as long as it should be. */
static inline int amp_write_pages(int fd, uint64_t size)
{
    uint64_t step = (uint64_t)sysconf(_SC_PAGESIZE);
    for (uint64_t at = 0; at < size; at += step) {
        uint64_t last = (at + step < size ? at + step : size) - 1;
        ssize_t done;
        do
            done = pwrite(fd, "", 1, (off_t)last);
        while (done < 0 && errno == EINTR);
        if (done < 0)
            return -1;
    }
    return 0;
}

static inline int amp_reserve_pages(int fd, uint64_t size)
{
    int error;
    if (ftruncate(fd, (off_t)size) < 0) {
        error = errno;
    } else {
        do
            error = posix_fallocate(fd, 0, (off_t)size);
        while (error == EINTR);
    }
    if (amp_refused(error))
        return amp_write_pages(fd, size);
    errno = error;
    return error == 0 ? 0 : -1;
}

static inline int amp_memfd(const char *name)
{
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
    return fd < 0 && errno == EINVAL ? memfd_create(name, flags) : fd;
}

/* A descriptor of `size` zeroed, reserved bytes that no process can shrink under a reader. */
static inline int amp_memory_create(uint64_t size, const char **call)
{
    *call = "getrlimit(RLIMIT_FSIZE)";
    if (amp_size_allowed(size) < 0)
        return -1;
    *call = "memfd_create";
    int fd = amp_memfd("aiomultiprocess");
    if (fd < 0)
        return -1;
    *call = "fallocate";
    if (amp_reserve_pages(fd, size) < 0)
        return amp_close_failed(fd);
    *call = "fcntl(F_ADD_SEALS)";
    if (fcntl(fd, F_ADD_SEALS, AMP_SEALS) < 0)
        return amp_close_failed(fd);
    return fd;
}

static inline int amp_memory_sealed(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals >= 0)
        errno = EPERM;
    return seals >= 0 && (seals & AMP_SEALS) == AMP_SEALS;
}

#else

/* The name exists for two system calls. If it is taken, the next number is tried. */
static inline int amp_memory_create(uint64_t size, const char **call)
{
    char name[32];
    int fd = -1;
    *call = "shm_open";
    if (amp_size_allowed(size) < 0)
        return -1;
    for (unsigned number = 0; fd < 0; number++) {
        snprintf(name, sizeof name, "/amp-%ld-%u", (long)getpid(), number);
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd < 0 && (errno != EEXIST || number == 1000))
            return -1;
    }
    if (shm_unlink(name) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0
        || ftruncate(fd, (off_t)size) < 0)
        return amp_close_failed(fd);
    return fd;
}

/* No seals here: a side checks the size when it attaches; a peer that shrinks it is malicious. */
static inline int amp_memory_sealed(int fd)
{
    (void)fd;
    return 1;
}

#endif

/* Maps all of `fd` and stores its size; NULL on failure. Refuses unsealed memory (EPERM). */
static inline void *amp_memory_map(int fd, uint64_t *size, const char **call)
{
    struct stat status;
    *call = "fstat";
    if (fstat(fd, &status) < 0)
        return NULL;
    *call = "fcntl(F_GET_SEALS)";
    if (!amp_memory_sealed(fd))
        return NULL;
    *call = "mmap";
    if ((off_t)(size_t)status.st_size != status.st_size) { /* 4 GiB or more, on 32 bits */
        errno = EFBIG;
        return NULL;
    }
    *size = (uint64_t)status.st_size;
    void *base = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return base == MAP_FAILED ? NULL : base;
}

/* ---- doorbells ----------------------------------------------------------------------------- */

/* A doorbell is readable from a ring until it is cleared. Ringing never blocks: a saturated
 * doorbell is readable already, so adding nothing to it loses nothing. */
struct amp_bell {
    int reader, writer; /* one descriptor if it is an eventfd */
};

static inline int amp_bell_prepare(int fd)
{
    return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0 ? -1 : 0;
}

static inline int amp_bell_of_pipe(struct amp_bell *bell)
{
    int ends[2];
    if (pipe(ends) < 0)
        return -1;
    if (amp_bell_prepare(ends[0]) < 0 || amp_bell_prepare(ends[1]) < 0) {
        amp_close_failed(ends[0]);
        return amp_close_failed(ends[1]);
    }
    *bell = (struct amp_bell){ends[0], ends[1]};
    return 0;
}

static inline int amp_bell_create(struct amp_bell *bell)
{
#if defined(__linux__)
    bell->reader = bell->writer = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (bell->reader >= 0 || !amp_refused(errno))
        return bell->reader < 0 ? -1 : 0;
#endif
    return amp_bell_of_pipe(bell);
}

/* Eight bytes: an eventfd takes no less, and a pipe takes them at once or not at all. */
static inline int amp_bell_ring(const struct amp_bell *bell)
{
    uint64_t one = 1;
    ssize_t done;
    do
        done = write(bell->writer, &one, sizeof one);
    while (done < 0 && errno == EINTR);
    /* EPIPE: the pipe's reader is gone; the exit of its process is detected elsewhere. */
    return done >= 0 || errno == EAGAIN || errno == EPIPE ? 0 : -1;
}

static inline int amp_bell_clear(const struct amp_bell *bell)
{
    uint64_t rings[64];
    ssize_t done;
    do /* one read empties an eventfd; a pipe may hold more */
        done = read(bell->reader, rings, sizeof rings);
    while (done == (ssize_t)sizeof rings || (done < 0 && errno == EINTR));
    return done >= 0 || errno == EAGAIN ? 0 : -1;
}

static inline void amp_bell_close(struct amp_bell *bell)
{
    if (bell->reader >= 0)
        close(bell->reader);
    if (bell->writer >= 0 && bell->writer != bell->reader)
        close(bell->writer);
    *bell = (struct amp_bell){-1, -1};
}

#endif /* AMP_MAPPING_H */
