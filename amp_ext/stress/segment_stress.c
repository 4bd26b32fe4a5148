/* Stress for segment.h: an owner fills a segment and lends it, a borrower reads and writes it and
 * answers, again and again, in two threads. Under ThreadSanitizer a missing order between the
 * borrower's last access and the owner's next is a race; a wrong byte ends the program.
 *
 *   segment_stress [loans]
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "../segment.h"

#define SIZE 4096u

static uint8_t *base;
static uint64_t loans = 200000;
static _Atomic uint64_t lent; /* what a frame says: the number of the loan */

static void fail(const char *what)
{
    fprintf(stderr, "segment_stress: %s\n", what);
    exit(1);
}

static void *borrow(void *unused)
{
    uint8_t *data = base + AMP_SEGMENT_HEADER;
    for (uint64_t loan = 1; loan <= loans; loan++) {
        while (atomic_load_explicit(&lent, memory_order_acquire) != loan)
            ;
        for (size_t at = 0; at < SIZE; at += 64) {
            if (data[at] != (uint8_t)loan)
                fail("the borrower reads another loan");
            data[at] = 0xff;
        }
        amp_segment_answer(base, loan, loan % 2);
    }
    return unused;
}

static void own(void)
{
    uint8_t *data = base + AMP_SEGMENT_HEADER;
    for (uint64_t loan = 1; loan <= loans; loan++) {
        for (size_t at = 0; at < SIZE; at++) /* no memset, which the sanitizer would not see */
            data[at] = (uint8_t)loan;
        atomic_store_explicit(&lent, loan, memory_order_release);
        while (amp_segment_answered(base) >> 1 != loan)
            ;
        if ((amp_segment_answered(base) & AMP_SEGMENT_KEPT) != loan % 2)
            fail("the answer has lost a bit");
    }
}

/* SEGMENT-C2: a loan may begin and end here. pthread_atfork calls what was registered first last
 * before the fork, and first after it. */
static void look_while_it_forks(void)
{
    if (!amp_forked_since(amp_forks()))
        fail("a fork under way that was not seen");
}

static void create_and_fork(void)
{
    const char *call = "";
    uint8_t first[SIZE];
    uint64_t size = 0, before;
    memset(first, 7, sizeof first);
    if (pthread_atfork(look_while_it_forks, look_while_it_forks, look_while_it_forks) != 0
        || amp_watch_forks() != 0)
        fail("pthread_atfork");
    int fd = amp_segment_create(3 * SIZE, first, SIZE - 5, &call);
    if (fd < 0)
        fail(call);
    uint8_t *made = amp_memory_map(fd, &size, &call);
    if (made == NULL || size != AMP_SEGMENT_HEADER + 3 * SIZE)
        fail("a segment of another size");
    if (memcmp(made + AMP_SEGMENT_HEADER, first, SIZE - 5) != 0 || made[size - 1] != 0)
        fail("a segment with other data");
    if (ftruncate(fd, 0) == 0 || ftruncate(fd, 1 << 20) == 0)
        fail("a segment whose size can change");
    close(fd);
    if (amp_segment_keep_from_children(made, size) != 0)
        fail("madvise");
    amp_segment_map_pages(made, 0, size);
    before = amp_forks();
    pid_t child = fork();
    if (child == 0)
        _exit(amp_forked_since(before) && !amp_forked_since(amp_forks()) ? 0 : 1);
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0 || amp_forks() != before + 2 || amp_forked_since(before + 2))
        fail("a fork that was not counted");
    munmap(made, size);
}

int main(int argc, char **argv)
{
    pthread_t borrower;
    if (argc > 1)
        loans = strtoull(argv[1], NULL, 10);
    create_and_fork();
    base = aligned_alloc(4096, AMP_SEGMENT_HEADER + SIZE);
    if (base == NULL)
        fail("no memory");
    memset(base, 0, AMP_SEGMENT_HEADER + SIZE);
    pthread_create(&borrower, NULL, borrow, NULL);
    own();
    pthread_join(borrower, NULL);
    free(base);
    printf("%llu loans\n", (unsigned long long)loans);
    return 0;
}
