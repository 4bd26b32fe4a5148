/* A segment: memory without a name that one process fills and another keeps objects in.
 *
 * The owner made it, and lends it for one object at a time. A loan has a number that only grows.
 * When the borrower's object is gone, the borrower stores the number in `answer`, and the owner may
 * fill the memory again. aiomultiprocess/_transport/segments.py has the whole life of a segment.
 *
 *  * SEGMENT-C1  `answer` has one writer, the borrower. It stores with release order, after its last
 *    access to the data; the owner loads with acquire order, before it fills the data again. So no
 *    late store of the borrower's object reaches what the owner writes next.
 *  * SEGMENT-C2  a loan that was there when its process forked is answered as kept: a copy of the
 *    object may live in the child, and the owner must not fill the memory again. `amp_fork_count`
 *    counts a fork before and after it, so a loan that begins in between is counted too; one that
 *    also ends in between finds the fork under way. It looks for that first, as a fork that ends
 *    meanwhile is counted by then. The handlers are of pthread_atfork: they see a fork by C code as
 *    well, which may be in another thread. model/segment.pml checks this.
 *  * SEGMENT-C3  only the borrower itself answers, never a child that has a copy of its object.
 *  * SEGMENT-C4  a new segment gets its first data by `write`, and is mapped without any page: the
 *    kernel then neither clears the pages nor maps them one by one, which together take longer than
 *    all else. Many segments are filled only once, as results that the caller keeps. The pages
 *    behind the data are reserved, so that filling them later cannot end in a SIGBUS.
 *  * SEGMENT-C5  later data is copied through the mapping, which at first has none of the pages. A
 *    write to a page that is missing there is a fault that maps this page alone; a read maps those
 *    around it as well, 64 KiB in all (fault_around_bytes of Linux), and as the mapping is shared,
 *    for writing too. So one byte of each 64 KiB is read first. (Pages that are reserved and were
 *    never written are still mapped one by one.)
 */
#ifndef AMP_SEGMENT_H
#define AMP_SEGMENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>

#include "mapping.h"

#define AMP_SEGMENT_HEADER 4096u /* the data begins behind it, on a page of its own */
#define AMP_SEGMENT_KEPT UINT64_C(1)
#define AMP_MAX_LOAN (UINT64_MAX >> 1)
#define AMP_FAULT_AROUND (UINT64_C(64) << 10)

struct amp_segment {
    _Atomic uint64_t answer; /* 0, or the number of the last loan that ended, twice, | KEPT */
};

static _Atomic uint64_t amp_fork_count;
static _Atomic uint64_t amp_forking; /* forks of any thread that are under way */

static void amp_before_fork(void)
{
    atomic_fetch_add(&amp_forking, 1);
    atomic_fetch_add(&amp_fork_count, 1);
}

static void amp_after_fork(void)
{
    atomic_fetch_add(&amp_fork_count, 1);
    atomic_fetch_sub(&amp_forking, 1);
}

static void amp_after_fork_in_child(void)
{
    atomic_fetch_add(&amp_fork_count, 1);
    atomic_store(&amp_forking, 0); /* the other threads are not there */
}

/* Once for a process; its children inherit the handlers. Returns an error number. */
static inline int amp_watch_forks(void)
{
    return pthread_atfork(amp_before_fork, amp_after_fork, amp_after_fork_in_child);
}

static inline uint64_t amp_forks(void)
{
    return atomic_load(&amp_fork_count);
}

/* Whether a fork began or ended since `amp_forks` returned `count`, or is under way. */
static inline bool amp_forked_since(uint64_t count)
{
    return atomic_load(&amp_forking) != 0 || atomic_load(&amp_fork_count) != count;
}

static inline void amp_segment_answer(void *base, uint64_t loan, bool kept)
{
    struct amp_segment *segment = base;
    atomic_store_explicit(
        &segment->answer, loan << 1 | (kept ? AMP_SEGMENT_KEPT : 0), memory_order_release
    );
}

static inline uint64_t amp_segment_answered(const void *base)
{
    const struct amp_segment *segment = base;
    return atomic_load_explicit(&segment->answer, memory_order_acquire);
}

/* Have the pages of a range that is not empty mapped, as far as they are not (SEGMENT-C5). */
static inline void amp_segment_map_pages(const void *base, uint64_t begin, uint64_t end)
{
    const volatile uint8_t *bytes = base;
    for (uint64_t at = begin; at < end; at += AMP_FAULT_AROUND)
        (void)bytes[at];
    (void)bytes[end - 1]; /* of the last 64 KiB, which may begin behind the last step */
}

#if defined(__linux__)

static inline int amp_write_all(int fd, const uint8_t *data, uint64_t size, uint64_t at)
{
    while (size > 0) {
        ssize_t done = pwrite(fd, data, size < (1u << 30) ? size : 1u << 30, (off_t)at);
        if (done < 0 && errno != EINTR)
            return -1;
        if (done > 0) {
            data += done;
            size -= (uint64_t)done;
            at += (uint64_t)done;
        }
    }
    return 0;
}

/* Reserve the pages of a range that is not empty and ends with the file. */
static inline int amp_reserve_range(int fd, uint64_t begin, uint64_t end)
{
    uint64_t step = (uint64_t)sysconf(_SC_PAGESIZE);
    int error;
    do
        error = posix_fallocate(fd, (off_t)begin, (off_t)(end - begin));
    while (error == EINTR);
    if (!amp_refused(error)) {
        errno = error;
        return error == 0 ? 0 : -1;
    }
    for (uint64_t at = begin; at < end; at = (at / step + 1) * step)
        if (amp_write_all(fd, (const uint8_t *)"", 1, at) < 0)
            return -1;
    return 0;
}

static inline int amp_segment_fill_new(
    int fd, uint64_t total, const void *data, uint64_t size, const char **call
)
{
    uint64_t end = AMP_SEGMENT_HEADER + size;
    *call = "write";
    if (ftruncate(fd, (off_t)total) < 0 || amp_write_all(fd, (const uint8_t *)"", 1, 0) < 0
        || amp_write_all(fd, data, size, AMP_SEGMENT_HEADER) < 0)
        return -1;
    *call = "fallocate";
    if (end < total && amp_reserve_range(fd, end, total) < 0)
        return -1;
    *call = "fcntl(F_ADD_SEALS)";
    return fcntl(fd, F_ADD_SEALS, AMP_SEALS);
}

/* A descriptor of memory for `capacity` bytes, which begins with `data` (SEGMENT-C4). */
static inline int amp_segment_create(
    uint64_t capacity, const void *data, uint64_t size, const char **call
)
{
    uint64_t total = capacity + AMP_SEGMENT_HEADER;
    *call = "getrlimit(RLIMIT_FSIZE)";
    if (amp_size_allowed(total) < 0)
        return -1;
    *call = "memfd_create";
    int fd = amp_memfd("aiomultiprocess-segment");
    if (fd >= 0 && amp_segment_fill_new(fd, total, data, size, call) < 0)
        return amp_close_failed(fd);
    return fd;
}

#else

static inline int amp_segment_create(
    uint64_t capacity, const void *data, uint64_t size, const char **call
)
{
    (void)capacity, (void)data, (void)size;
    *call = "memfd_create";
    errno = ENOSYS;
    return -1;
}

#endif

/* A child of the owner gets no mapping of it, so it does not keep the memory. 0 if that holds. */
static inline int amp_segment_keep_from_children(void *base, size_t size)
{
#ifdef MADV_DONTFORK
    return madvise(base, size, MADV_DONTFORK);
#else
    (void)base, (void)size;
    return -1;
#endif
}

#endif /* AMP_SEGMENT_H */
