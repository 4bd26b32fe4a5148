/* Stress for ring.h, to be run under sanitizers (run.sh does).
 *
 *   ring_stress threads MESSAGES   a producer and a consumer thread over one mapping: random
 *                                  lengths, batches, fragments and pauses; sleep, and doorbells
 *   ring_stress wakes ROUNDS       two threads that send one record to and fro, and go to sleep at
 *                                  the moment at which the other publishes: each must wake; one
 *                                  also fills the table of running items, which the other reads
 *   ring_stress steps KILLS        a writer process that fills the ring and dies at a step between
 *                                  two of its stores: at the first step, then the second, and so on
 *                                  until it finishes; then the same from another position, until
 *                                  KILLS writers have died
 *   ring_stress kills ROUNDS       the same while the ring is read, so that it wraps; in the second
 *                                  half of the rounds, writers die at random moments
 *
 * After a kill the reader must see whole records only, and all records of which the writer had
 * reported the publication. The length, flags and bytes of record n follow from n, so the reader
 * knows what must come. No wait for a doorbell has a timeout: a lost wake-up is a hang, and SIGALRM
 * ends a program that makes no progress for STUCK_AFTER.
 */
#define _GNU_SOURCE
static void step(void);
#define AMP_STEP() step()
#include "../mapping.h"
#include "../ring.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#define CAPACITY 4096u /* small, so that it is often full, empty and wrapped */
#define ENTRIES 3u /* of the table of running items */
#define STUCK_AFTER 120u /* seconds */

static void fail(const char *what, uint64_t n)
{
    fprintf(stderr, "ring_stress: %s (record %llu)\n", what, (unsigned long long)n);
    exit(1);
}

static void progress(uint64_t n)
{
    if (n % 4096 == 0)
        alarm(STUCK_AFTER);
}

/* ---- the n-th record ----------------------------------------------------------------------- */

static uint64_t mix(uint64_t n) /* splitmix64's finalizer */
{
    n = (n + 1) * UINT64_C(0x9e3779b97f4a7c15);
    n = (n ^ (n >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    n = (n ^ (n >> 27)) * UINT64_C(0x94d049bb133111eb);
    return n ^ (n >> 31);
}

static uint32_t length_of(uint64_t n)
{
    uint64_t most = (n & 31) == 0 ? amp_max_payload(CAPACITY) : 96;
    return (uint32_t)(mix(n) % (most + 1));
}

static bool ends_frame(uint64_t n)
{
    return (mix(n) >> 40) % 4 != 0;
}

static uint32_t flags_of(uint64_t n)
{
    return (n == 0 || ends_frame(n - 1) ? AMP_BEGIN : 0) | (ends_frame(n) ? AMP_END : 0);
}

static void fill(uint8_t *to, uint64_t n, uint32_t from, uint32_t length)
{
    for (uint32_t i = from; i < length; i++)
        to[i] = (uint8_t)(n * 31 + i);
}

static void check(const struct amp_record *record, uint64_t n)
{
    if (record->length != length_of(n))
        fail("wrong length", n);
    if (record->flags != flags_of(n))
        fail("wrong flags", n);
    for (uint32_t i = 0; i < record->length; i++)
        if (record->payload[i] != (uint8_t)(n * 31 + i))
            fail("wrong bytes", n);
}

/* ---- both programs ------------------------------------------------------------------------- */

static _Thread_local uint64_t steps_left = UINT64_MAX; /* until this process kills itself */

static void step(void)
{
    if (steps_left != UINT64_MAX && steps_left-- == 0)
        kill(getpid(), SIGKILL);
}

static void make_map(struct amp_map *map)
{
    uint64_t size;
    const char *call;
    int fd = amp_memory_create(amp_map_size(CAPACITY, ENTRIES), &call);
    void *base = fd < 0 ? NULL : amp_memory_map(fd, &size, &call);
    if (base == NULL)
        fail("no memory", 0);
    close(fd);
    amp_map_format(base, CAPACITY, ENTRIES, 1);
    if (amp_map_open(map, base, size) != AMP_SOUND)
        fail("a new mapping is refused", 0);
}

static void open_producer(struct amp_producer *p, struct amp_map *map)
{
    if (amp_producer_open(p, &map->control->down, amp_down_data(map), map->capacity))
        fail("a new producer is refused", 0);
}

static void open_consumer(struct amp_consumer *c, struct amp_map *map)
{
    if (amp_consumer_open(c, &map->control->down, amp_down_data(map), map->capacity))
        fail("a new consumer is refused", 0);
}

static bool write_record(struct amp_producer *p, uint64_t n)
{
    uint32_t length = length_of(n);
    uint8_t *to = amp_reserve(p, length);
    if (to == NULL)
        return false;
    fill(to, n, 0, length / 2);
    AMP_STEP();
    fill(to, n, length / 2, length);
    amp_commit(p, length, flags_of(n));
    return true;
}

/* ---- threads ------------------------------------------------------------------------------- */

struct channel {
    struct amp_map map;
    struct amp_bell data, room;
    uint64_t messages;
    uint64_t data_bells, room_bells;
};

static void wait_for_bell(const struct amp_bell *bell)
{
    struct pollfd event = {.fd = bell->reader, .events = POLLIN};
    while (poll(&event, 1, -1) < 0)
        ;
    amp_bell_clear(bell);
}

/* Changes the timing of the two threads; at times for so long that one of them goes to sleep. */
static void pause_now_and_then(uint64_t dice)
{
    if (dice % 4096 == 0)
        nanosleep(&(struct timespec){.tv_nsec = (long)(dice >> 16) % 50000}, NULL);
    else if (dice % 64 == 0)
        sched_yield();
}

static void publish(struct channel *channel, struct amp_producer *p)
{
    if (amp_publish(p)) {
        channel->data_bells++;
        amp_bell_ring(&channel->data);
    }
}

static void *produce(void *argument)
{
    struct channel *channel = argument;
    struct amp_producer p;
    open_producer(&p, &channel->map);
    for (uint64_t n = 0; n < channel->messages && !p.fault; n++) {
        while (!write_record(&p, n) && !p.fault) {
            publish(channel, &p);
            if (amp_want_room(&p, length_of(n)))
                wait_for_bell(&channel->room);
        }
        uint64_t dice = mix(~n);
        if (dice % 8 == 0)
            publish(channel, &p);
        pause_now_and_then(dice);
    }
    publish(channel, &p);
    if (p.fault)
        fail(amp_fault_text(p.fault), p.records);
    return NULL;
}

static void release(struct channel *channel, struct amp_consumer *c)
{
    if (amp_release(c)) {
        channel->room_bells++;
        amp_bell_ring(&channel->room);
    }
}

static void *consume(void *argument)
{
    struct channel *channel = argument;
    struct amp_consumer c;
    struct amp_record record;
    uint64_t n = 0;
    open_consumer(&c, &channel->map);
    while (n < channel->messages && !c.fault) {
        while (amp_read(&c, &record)) {
            uint64_t dice = mix(n ^ UINT64_C(0x5555555555555555));
            check(&record, n++);
            progress(n);
            if (dice % 8 == 0)
                release(channel, &c);
            pause_now_and_then(dice);
        }
        release(channel, &c);
        if (n < channel->messages && amp_sleep(&c)) {
            wait_for_bell(&channel->data);
            amp_awake(&c);
        }
    }
    if (c.fault)
        fail(amp_fault_text(c.fault), n);
    return NULL;
}

static void run_threads(uint64_t messages)
{
    struct channel channel = {.messages = messages};
    pthread_t producer, consumer;
    make_map(&channel.map);
    if (amp_bell_create(&channel.data) < 0 || amp_bell_create(&channel.room) < 0)
        fail("no doorbell", 0);
    if (pthread_create(&producer, NULL, produce, &channel)
        || pthread_create(&consumer, NULL, consume, &channel))
        fail("no thread", 0);
    pthread_join(producer, NULL);
    pthread_join(consumer, NULL);
    munmap(channel.map.control, amp_map_size(CAPACITY, ENTRIES));
    amp_bell_close(&channel.data);
    amp_bell_close(&channel.room);
    printf("threads: %llu records, rung %llu times for data and %llu for room\n",
           (unsigned long long)messages, (unsigned long long)channel.data_bells,
           (unsigned long long)channel.room_bells);
}

/* ---- wakes --------------------------------------------------------------------------------- */

struct peer {
    struct amp_map *map;
    struct amp_bell mine, other;
    uint64_t rounds;
    uint64_t sleeps;
    bool serves; /* sends first, through the down ring */
};

/* Waits up to a microsecond: about the time that the other needs between its read and its sleep. */
static void linger(uint64_t dice)
{
    for (volatile uint64_t i = dice % 256; i > 0; i--)
        ;
}

static void send_token(const struct peer *peer, struct amp_producer *p, uint64_t n)
{
    linger(mix(n));
    if (!write_record(p, n))
        fail("no room in an empty ring", n);
    if (amp_publish(p))
        amp_bell_ring(&peer->other);
}

static void receive_token(struct peer *peer, struct amp_consumer *c, uint64_t n)
{
    struct amp_record record;
    while (!amp_read(c, &record)) {
        if (c->fault)
            fail(amp_fault_text(c->fault), n);
        linger(mix(~n));
        if (amp_sleep(c)) {
            peer->sleeps++;
            wait_for_bell(&peer->mine);
            amp_awake(c);
        }
    }
    check(&record, n);
    amp_release(c);
}

/* RING-11: item n was started at time n. Of items that share a time it is that of the first, and
 * mix() gives at most so many in a row the same one; so no entry shows an earlier time than that. */
#define MOST_AT_ONCE 64u

static void mark_or_check_running(const struct peer *peer, uint64_t n)
{
    uint64_t since, origin, busy;
    if (peer->serves) {
        amp_turn_begin(peer->map, 2 * n + n % 2);
        amp_turn_end(peer->map, 2 * n + n % 2);
        if (mix(n) % 2 == 0)
            amp_running_store(peer->map, 0, n + 1, n + 1);
        amp_mark_started(peer->map, n + 1);
        if (mix(n) % 8 == 0)
            amp_running_keep(peer->map, 1 + n % (ENTRIES - 1));
        return;
    }
    if (amp_first_running(peer->map, &since) > since + MOST_AT_ONCE)
        fail("a first step that looks older than it is", n);
    for (uint64_t at = 1; at < ENTRIES; at++)
        if (amp_running_load(peer->map, at, &since) > since + MOST_AT_ONCE)
            fail("an item that looks older than it is", n);
    if (amp_turn_load(peer->map, &origin, &busy) && origin / 2 - busy / 2 > 1)
        fail("words of two turns", n); /* RING-12 */
}

static void *pass_token(void *argument)
{
    struct peer *peer = argument;
    struct amp_map *map = peer->map;
    struct amp_cursors *down = &map->control->down, *up = &map->control->up;
    uint8_t *down_data = amp_down_data(map), *up_data = amp_up_data(map);
    struct amp_producer p;
    struct amp_consumer c;
    bool serves = peer->serves;
    amp_producer_open(&p, serves ? down : up, serves ? down_data : up_data, CAPACITY);
    amp_consumer_open(&c, serves ? up : down, serves ? up_data : down_data, CAPACITY);
    for (uint64_t n = 0; n < peer->rounds; n++) {
        progress(n);
        mark_or_check_running(peer, n);
        if (serves)
            send_token(peer, &p, n);
        receive_token(peer, &c, n);
        if (!serves)
            send_token(peer, &p, n);
    }
    return NULL;
}

static void run_wakes(uint64_t rounds)
{
    struct amp_map map;
    struct amp_bell here, there;
    pthread_t thread;
    make_map(&map);
    if (amp_bell_create(&here) < 0 || amp_bell_create(&there) < 0)
        fail("no doorbell", 0);
    struct peer one = {&map, here, there, rounds, 0, true};
    struct peer two = {&map, there, here, rounds, 0, false};
    if (pthread_create(&thread, NULL, pass_token, &two))
        fail("no thread", 0);
    pass_token(&one);
    pthread_join(thread, NULL);
    munmap(map.control, amp_map_size(CAPACITY, ENTRIES));
    amp_bell_close(&here);
    amp_bell_close(&there);
    printf("wakes: %llu rounds, slept %llu times\n", (unsigned long long)rounds,
           (unsigned long long)(one.sleeps + two.sleeps));
}

/* ---- kills --------------------------------------------------------------------------------- */

/* The reader finds in `started` how many records were certainly published. */
static void publish_and_tell(struct amp_map *map, struct amp_producer *p)
{
    amp_publish(p);
    amp_mark_started(map, p->records);
}

static bool publishes_after(uint64_t n)
{
    return mix(n) % 4 == 0;
}

/* Writes until the ring is full, or until killed. No reader empties the ring meanwhile. */
static void write_until_full(struct amp_map *map, uint64_t steps)
{
    struct amp_producer p;
    uint64_t n = 0;
    open_producer(&p, map);
    steps_left = steps;
    for (; write_record(&p, n); n++)
        if (publishes_after(n))
            publish_and_tell(map, &p);
    publish_and_tell(map, &p);
    _exit(amp_want_room(&p, length_of(n)) ? 0 : 1);
}

/* Never returns. */
static void write_until_killed(struct amp_map *map, uint64_t steps)
{
    struct amp_producer p;
    open_producer(&p, map);
    steps_left = steps;
    for (uint64_t n = 0;; n++) {
        while (!write_record(&p, n)) {
            publish_and_tell(map, &p);
            sched_yield();
        }
        if (publishes_after(n))
            publish_and_tell(map, &p);
    }
}

static uint64_t read_all(struct amp_consumer *c, uint64_t n)
{
    struct amp_record record;
    uint64_t before = n;
    while (amp_read(c, &record))
        check(&record, n++);
    amp_release(c);
    if (n == before)
        sched_yield();
    if (c->fault)
        fail(amp_fault_text(c->fault), n);
    return n;
}

static bool was_killed(int status, uint64_t n)
{
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return true;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail("the writer did not die as planned", n);
    return false;
}

/* Runs a writer that begins at cursor `start` and dies after `steps` steps. Returns the number of
 * records that the reader saw; a writer that finishes writes `all`. */
static uint64_t run_step(uint64_t start, uint64_t steps, uint64_t all, bool *killed)
{
    struct amp_map map;
    struct amp_consumer c;
    int status = 0;
    make_map(&map);
    atomic_store(&map.control->down.tail, start);
    atomic_store(&map.control->down.head, start);
    open_consumer(&c, &map);
    pid_t writer = fork();
    if (writer == 0)
        write_until_full(&map, steps);
    waitpid(writer, &status, 0);
    uint64_t n = read_all(&c, 0);
    *killed = was_killed(status, n);
    if (n < amp_started(&map))
        fail("a published record is missing", n);
    if (*killed && n > 0 && n != all && !publishes_after(n - 1))
        fail("a part of a batch is seen", n);
    munmap(map.control, amp_map_size(CAPACITY, ENTRIES));
    return n;
}

static void run_steps(uint64_t kills)
{
    uint64_t killed = 0, starts = 0;
    for (; killed < kills; starts++) { /* the cursors of every other one pass 2^64 */
        uint64_t start = starts % 2 ? mix(starts) & ~UINT64_C(7) : -(starts * 8);
        bool dies;
        uint64_t all = run_step(start, UINT64_MAX, 0, &dies);
        for (uint64_t step = 0; run_step(start, step, all, &dies), dies; step++)
            killed++, alarm(STUCK_AFTER);
    }
    printf("steps: %llu writers killed, at each step from each of %llu positions\n",
           (unsigned long long)killed, (unsigned long long)starts);
}

/* Kills the writer after `steps` steps; with UINT64_MAX, once `records` records have arrived. */
static void run_kill(uint64_t steps, uint64_t records)
{
    struct amp_map map;
    struct amp_consumer c;
    uint64_t n = 0;
    int status = 0;
    make_map(&map);
    open_consumer(&c, &map);
    pid_t writer = fork();
    if (writer == 0)
        write_until_killed(&map, steps);
    if (steps == UINT64_MAX) {
        while (n < records)
            n = read_all(&c, n);
        kill(writer, SIGKILL);
    }
    while (waitpid(writer, &status, steps == UINT64_MAX ? 0 : WNOHANG) == 0)
        n = read_all(&c, n);
    n = read_all(&c, n);
    if (!was_killed(status, n))
        fail("the writer ended by itself", n);
    if (n < amp_started(&map))
        fail("a published record is missing", n);
    munmap(map.control, amp_map_size(CAPACITY, ENTRIES));
}

static void run_kills(uint64_t rounds)
{
    for (uint64_t round = 0; round < rounds; round++) {
        alarm(STUCK_AFTER);
        if (round < rounds / 2)
            run_kill(round, 0);
        else
            run_kill(UINT64_MAX, mix(round) % 512);
    }
    printf("kills: %llu writers killed\n", (unsigned long long)rounds);
}

int main(int argc, char **argv)
{
    uint64_t count = argc == 3 ? strtoull(argv[2], NULL, 10) : 0;
    alarm(STUCK_AFTER);
    if (count > 0 && strcmp(argv[1], "threads") == 0)
        run_threads(count);
    else if (count > 0 && strcmp(argv[1], "wakes") == 0)
        run_wakes(count);
    else if (count > 0 && strcmp(argv[1], "steps") == 0)
        run_steps(count);
    else if (count > 0 && strcmp(argv[1], "kills") == 0)
        run_kills(count);
    else
        return fputs("usage: ring_stress threads|wakes|steps|kills COUNT\n", stderr), 2;
    return 0;
}
