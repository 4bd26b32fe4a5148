/* Asks the kernel for huge pages for large objects.
 *
 * The first access to a page causes a fault, which takes some twenty times as long as filling the
 * page: filling a large object once is nearly all faults. A page of 2 MiB has one fault instead of
 * 512. This is a hint: it changes nothing where the kernel does not know it, has huge pages
 * switched off, or finds none. (NumPy gives the same hint for its arrays.) */

#ifndef AMP_PAGES_H
#define AMP_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* A smaller object may contain no whole huge page, and the call costs more than it saves. */
#define AMP_HUGE_MIN ((size_t)4 << 20)

static inline void amp_prefer_huge_pages(const void *data, size_t size)
{
#ifdef MADV_HUGEPAGE
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)data & ~(page - 1);
    uintptr_t end = ((uintptr_t)data + size + page - 1) & ~(page - 1);
    if (size >= AMP_HUGE_MIN)
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)size;
#endif
}

#endif /* AMP_PAGES_H */
