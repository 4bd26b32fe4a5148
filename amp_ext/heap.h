/* How much freed memory malloc keeps at the end of its heap (_processes/freed_memory.py). */

#ifndef AMP_HEAP_H
#define AMP_HEAP_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#if defined(__GLIBC__) && SIZE_MAX > UINT32_MAX

/* glibc raises its threshold of mappings to the size of a block of up to 32 MiB that is freed. This
 * one is not a whole number of pages, so that a mapping is larger by more than a header. */
#define AMP_PROBE (((size_t)31 << 20) - 2048)

/* Allocate and free the probe. Whether it was a mapping of its own; -1 if there is no memory. */
static int amp_probe_is_mapping(void)
{
    void *block = malloc(AMP_PROBE);
    if (block == NULL)
        return -1;
    int mapping = malloc_usable_size(block) >= AMP_PROBE + 512;
    free(block);
    return mapping;
}

/* 1 if malloc keeps that many freed bytes from now on; 0 if it is not glibc's, or if thresholds were
 * set by the environment or by the program: then it raises none for the first probe. */
static int amp_keep_freed(size_t most)
{
    if (most > INT_MAX || amp_probe_is_mapping() != 1 || amp_probe_is_mapping() != 0)
        return 0;
    return mallopt(M_TRIM_THRESHOLD, (int)most);
}

#else

static int amp_keep_freed(size_t most)
{
    (void)most;
    return 0;
}

#endif

#endif /* AMP_HEAP_H */
