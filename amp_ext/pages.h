/* Memory that is large is better had in large pages.
 *
 * A page that is touched first costs a fault, some twenty times what it takes to fill it: large
 * objects that are filled once spend nearly all of their time there. In pages of 2 MiB that is one
 * fault for 512. A hint: where the kernel does not know it, has it switched off or finds no such
 * page, nothing is different. (NumPy gives the same hint for its arrays.) */

#ifndef AMP_PAGES_H
#define AMP_PAGES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Below it there may be no whole large page inside, and the call costs more than it saves. */
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
