/* A single-producer, single-consumer ring of records in memory shared by two processes.
 *
 * It is C11 and nothing else: no Python, no system call, no allocation. The caller provides the
 * memory (mapping.h) and the doorbells. ring.pyx wraps it for Python, and stress/ring_stress.c
 * runs it under sanitizers.
 *
 * Theory of operation
 * -------------------
 *
 * One mapping serves one worker. It begins with a control page and continues with two rings of
 * equal capacity: `down` from the parent to the worker, `up` from the worker to the parent.
 *
 *     | control page: identity, `started`, cursors of down, cursors of up, turn | down | up
 *     | journal | table of running items |
 *
 * The journal has 5/64 of the size of a ring, and the worker alone writes it; the parent can read it
 * after the worker has died. No function in this file touches its content.
 *
 * The table says which items with a time limit run, and since when. So the parent can judge an item
 * whose worker does nothing any more. Entry 0 is of the item that runs its first step, the others
 * are of items that are suspended. Many items that run one after the other in a moment have the same
 * time. So entry 0 is stored once for all of them, with the number of the first, and `started` is
 * the number of the one that runs.
 *
 * The words of the turn of the loop say how long the worker's event loop has been busy, and since
 * when it is. It is *busy* in a turn, and idle while it waits for events. `origin` is the time minus
 * the busy time: constant in a turn, stored as the loop wakes. `busy` is the busy time, stored as a
 * turn ends. The lowest bits tell whether the loop is in a turn: they differ in one, and are equal
 * while it waits. So a turn costs two stores, and one that is followed by the next without a wait
 * costs one.
 *
 * A ring has two cursors, which count all bytes ever written (tail) and ever released (head). They
 * only grow, modulo 2^64. A position in the ring is a cursor modulo the capacity, and the bytes
 * between the cursors are in use. Only the producer stores tail, and only the consumer stores
 * head. Each side keeps its own cursor privately: it stores it to the mapping and never reads it
 * back. Each side also keeps a copy of the other side's cursor, and loads the real one only when
 * the copy says "full" or "empty". So the cache lines of the cursors do not move between the CPUs
 * for each record.
 *
 * A record is an 8-byte header (length, type), the payload, and slack up to a multiple of 8. A
 * record never crosses the end of the ring. If it does not fit before the end, a padding record
 * fills the rest and the record starts at position 0. So every payload is contiguous and can be
 * read in place.
 *
 * A write has three steps: reserve (find room, pad), copy, commit (header, private tail). None of
 * them makes anything visible. publish() makes all committed records visible by one store of the
 * tail. If the writer is killed before that store, it has written nothing; after it, everything.
 * There is no state in between.
 *
 * No function in this file waits. A consumer that finds no record sets `sleeping`, looks once
 * more, and returns to its event loop. A producer reads `sleeping` after it has published, and
 * rings the consumer's doorbell if the flag was set. Room works the same way in the other
 * direction, with `waiting`; and the producer is rung only when a quarter of the ring is free, so
 * that it does not wake for each record. A doorbell must be cleared *before* the ring is read:
 * cleared afterwards, it could swallow a signal for a record that came in between. That also holds
 * for amp_asleep.
 *
 * No function trusts the peer. Whatever the mapping holds, they read and write only inside
 * the ring, and return in bounded time. They load a peer's cursor once and check it against the
 * private cursors; they load a header once, into a local, and check it before use. A violation
 * sets `fault`; from then on nothing is read or written (the ring is poisoned). The next layer
 * checks the payload, which these functions do not trust either.
 *
 * Invariants, cited in the code and in the tests
 * ----------------------------------------------
 *
 * RING-1  capacity is a power of two, AMP_MIN_CAPACITY <= capacity <= AMP_MAX_CAPACITY.
 * RING-2  cursors are multiples of 8, and head <= tail <= head + capacity, as distances modulo
 *     2^64.
 * RING-3  every word has one writer: tail, the producer; head, the consumer; started, the turn and
 *     the table of running items, the worker. The two flags have two writers, and every change of a flag is a
 *     read-modify-write.
 * RING-4  the producer does not write the bytes between the private head and the published tail.
 * RING-5  a record is inside the ring: it crosses neither the end nor the published tail.
 * RING-6  padding ends exactly at the end of the ring, never starts at position 0, and is
 *     published together with the record that follows it. So there are never two in a row, reading
 *     is bounded, and unread bytes always include a record.
 * RING-7  a record takes at most half the capacity, so that an empty ring has room for it at any
 *     position of its cursors. (All free bytes are then to_end + position = capacity, and one of
 *     the two is >= half.)
 * RING-8  a frame is one record with BEGIN and END, or BEGIN, any number of neither, END.
 * RING-9  no wake-up is lost: if a published record is unread, the consumer is awake, or
 *     `sleeping` is clear and its bell was rung, or the producer is between its store of tail and
 *     its read of `sleeping`.
 * RING-10  no room is lost: the same holds for a producer that waits, once a quarter of the ring
 *     is free. Below a quarter, the consumer has unread records and so will release again.
 * RING-11  an entry of the table never shows an item as older than it is: the worker stores the
 *     time, then the number (and of entry 0 then `started`); the parent loads them the other way
 *     round.
 * RING-12  the two words of the turn of the loop are loaded as they were at one moment, or reported
 *     as unknown: `origin` is loaded before and after `busy`.
 */
#ifndef AMP_RING_H
#define AMP_RING_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Called between any two stores of the producer: the stress program dies here; elsewhere it is
 * empty. */
#ifndef AMP_STEP
#define AMP_STEP() ((void)0)
#endif

#define AMP_MAGIC UINT64_C(0x31474e4952504d41) /* "AMPRING1" */
#define AMP_VERSION UINT64_C(4)
#define AMP_CONTROL_SIZE 4096u
#define AMP_LINE 128u /* two lines of 64: x86 fetches them in pairs, and Apple's lines are 128 */
#define AMP_HEADER_SIZE 8u
#define AMP_MIN_CAPACITY (UINT64_C(1) << 6)
#define AMP_MAX_CAPACITY (UINT64_C(1) << 30) /* a length is 32 bits: far from overflow */
#define AMP_MAX_ENTRIES (UINT64_C(1) << 16)  /* of the table of running items: 1 MiB */

/* Flags of a record, as the caller passes and receives them. */
#define AMP_BEGIN 1u
#define AMP_END 2u
#define AMP_FLAGS (AMP_BEGIN | AMP_END)

/* Types of a record, in its header. 0, which fresh memory holds, is none of them. */
#define AMP_PADDING 0x50u
#define AMP_DATA 0x40u /* | flags */

enum amp_fault {
    AMP_SOUND = 0,
    AMP_NOT_A_RING,
    AMP_BAD_CAPACITY,
    AMP_BAD_HEAD,
    AMP_BAD_TAIL,
    AMP_BAD_LENGTH,
    AMP_BAD_TYPE,
    AMP_BAD_PADDING,
    AMP_BAD_SEQUENCE
};

static inline const char *amp_fault_text(enum amp_fault fault)
{
    switch (fault) {
    case AMP_SOUND: return "sound";
    case AMP_NOT_A_RING: return "not a ring of this version";
    case AMP_BAD_CAPACITY: return "the capacity does not match the mapping";
    case AMP_BAD_HEAD: return "the consumer's head is out of order";
    case AMP_BAD_TAIL: return "the producer's tail is out of order";
    case AMP_BAD_LENGTH: return "a record is longer than what was published";
    case AMP_BAD_TYPE: return "a record is of no known type";
    case AMP_BAD_PADDING: return "a padding record is not between a record and the end";
    case AMP_BAD_SEQUENCE: return "the fragments of a frame are out of order";
    }
    return "unknown fault";
}

/* ---- what is shared ------------------------------------------------------------------------ */

/* The words of one ring, each in a cache line that its writer keeps (RING-3). */
struct amp_cursors {
    _Alignas(AMP_LINE) _Atomic uint64_t tail;
    _Alignas(AMP_LINE) _Atomic uint64_t head;
    _Alignas(AMP_LINE) _Atomic uint32_t sleeping; /* the consumer wants a signal for data */
    _Alignas(AMP_LINE) _Atomic uint32_t waiting;  /* the producer wants a signal for room */
};

struct amp_control {
    _Atomic uint64_t magic;
    _Atomic uint64_t version;
    _Atomic uint64_t capacity; /* of each of the two rings, in bytes */
    _Atomic uint64_t generation;
    _Atomic uint64_t entries; /* of the table of running items */
    _Alignas(AMP_LINE) _Atomic uint64_t started; /* items that the worker has started */
    struct amp_cursors down, up;
    /* The turn has a line of its own: the parent loads `started` after each batch of results, and
     * two stores of each turn into that line would each fetch it back. */
    _Alignas(AMP_LINE) _Atomic uint64_t origin; /* ns; lowest bit: the phase, flipped as each wait
                                                 * ends */
    _Atomic uint64_t busy;                      /* ns; lowest bit: unlike that of `origin` while a
                                                 * turn runs */
};

/* An entry of the table of running items: 16 bytes, aligned to 16. */
struct amp_running {
    _Alignas(16) _Atomic uint64_t number; /* of an item, counted from 1; 0: a free entry. Of entry
                                           * 0: of the first item with that time */
    _Atomic uint64_t since;               /* when it was started, in ns of the monotonic clock */
};

static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
              "a lock would live in one process only, or die with its holder");
static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4, "plain words");
static_assert(offsetof(struct amp_cursors, head) == 128, "head has a line of its own");
static_assert(offsetof(struct amp_cursors, sleeping) == 256, "sleeping has a line of its own");
static_assert(offsetof(struct amp_cursors, waiting) == 384, "waiting has a line of its own");
static_assert(sizeof(struct amp_cursors) == 512, "no line is shared by two rings");
static_assert(sizeof(struct amp_running) == 16, "no entry crosses a cache line");
static_assert(offsetof(struct amp_running, since) == 8, "layout is part of the version");
static_assert(offsetof(struct amp_control, capacity) == 16, "layout is part of the version");
static_assert(offsetof(struct amp_control, entries) == 32, "layout is part of the version");
static_assert(offsetof(struct amp_control, started) == 128, "layout is part of the version");
static_assert(offsetof(struct amp_control, down) == 256, "layout is part of the version");
static_assert(offsetof(struct amp_control, up) == 768, "layout is part of the version");
static_assert(offsetof(struct amp_control, origin) == 1280, "layout is part of the version");
static_assert(offsetof(struct amp_control, busy) == 1288, "layout is part of the version");
static_assert(sizeof(struct amp_control) <= AMP_CONTROL_SIZE, "the control page is one page");
static_assert(AMP_CONTROL_SIZE % AMP_LINE == 0, "rings begin on a line");

/* ---- what is private to each side ---------------------------------------------------------- */

struct amp_map {
    struct amp_control *control;
    uint64_t capacity; /* checked once; the shared one is not read again */
    uint64_t entries;  /* likewise */
};

struct amp_producer {
    struct amp_cursors *shared;
    uint8_t *data;
    uint64_t capacity;
    uint64_t tail;      /* end of what is committed */
    uint64_t published; /* end of what the consumer may see */
    uint64_t head;      /* the consumer's, as last loaded: never ahead of the real one */
    uint64_t records;   /* committed so far, without padding */
    bool within;        /* the last record left its frame open (RING-8) */
    enum amp_fault fault;
};

struct amp_consumer {
    struct amp_cursors *shared;
    const uint8_t *data;
    uint64_t capacity;
    uint64_t head;     /* end of what is read */
    uint64_t released; /* end of what the producer may overwrite */
    uint64_t tail;     /* the producer's, as last loaded: never ahead of the real one */
    bool within;
    enum amp_fault fault;
};

struct amp_record {
    const uint8_t *payload;
    uint32_t length;
    uint32_t flags;
};

/* ---- the mapping --------------------------------------------------------------------------- */

static inline bool amp_capacity_ok(uint64_t capacity) /* RING-1 */
{
    return capacity >= AMP_MIN_CAPACITY && capacity <= AMP_MAX_CAPACITY
        && (capacity & (capacity - 1)) == 0;
}

static inline uint64_t amp_journal_size(uint64_t capacity) /* whole lines, by RING-1 */
{
    uint64_t results = capacity / 16 > AMP_LINE ? capacity / 16 : AMP_LINE;
    uint64_t values = capacity / 64 > AMP_LINE ? capacity / 64 : AMP_LINE;
    return results + values;
}

static inline uint64_t amp_table_size(uint64_t entries) /* whole lines */
{
    return (entries * sizeof(struct amp_running) + AMP_LINE - 1) / AMP_LINE * AMP_LINE;
}

static inline uint64_t amp_map_size(uint64_t capacity, uint64_t entries)
{
    return AMP_CONTROL_SIZE + 2 * capacity + amp_journal_size(capacity) + amp_table_size(entries);
}

/* Makes a mapping of amp_map_size(capacity, entries) zeroed bytes. No barrier: starting the worker,
 * or sending it the descriptor, orders these stores before its loads. */
static inline void amp_map_format(void *base, uint64_t capacity, uint64_t entries,
                                  uint64_t generation)
{
    struct amp_control *control = base;
    atomic_store_explicit(&control->version, AMP_VERSION, memory_order_relaxed);
    atomic_store_explicit(&control->capacity, capacity, memory_order_relaxed);
    atomic_store_explicit(&control->entries, entries, memory_order_relaxed);
    atomic_store_explicit(&control->generation, generation, memory_order_relaxed);
    atomic_store_explicit(&control->magic, AMP_MAGIC, memory_order_relaxed);
}

/* Opens memory, aligned to AMP_LINE, as a mapping if it is one. Its bytes may be anything. */
static inline enum amp_fault amp_map_open(struct amp_map *map, void *base, uint64_t size)
{
    struct amp_control *control = base;
    if (size < AMP_CONTROL_SIZE
        || atomic_load_explicit(&control->magic, memory_order_relaxed) != AMP_MAGIC
        || atomic_load_explicit(&control->version, memory_order_relaxed) != AMP_VERSION)
        return AMP_NOT_A_RING;
    uint64_t capacity = atomic_load_explicit(&control->capacity, memory_order_relaxed);
    uint64_t entries = atomic_load_explicit(&control->entries, memory_order_relaxed);
    if (!amp_capacity_ok(capacity) || entries > AMP_MAX_ENTRIES
        || amp_map_size(capacity, entries) > size) /* may be rounded up */
        return AMP_BAD_CAPACITY;
    map->control = control;
    map->capacity = capacity;
    map->entries = entries;
    return AMP_SOUND;
}

static inline uint8_t *amp_down_data(const struct amp_map *map)
{
    return (uint8_t *)map->control + AMP_CONTROL_SIZE;
}

static inline uint8_t *amp_up_data(const struct amp_map *map)
{
    return amp_down_data(map) + map->capacity;
}

static inline uint8_t *amp_journal(const struct amp_map *map)
{
    return amp_up_data(map) + map->capacity;
}

/* The worker calls this before the first instruction of item n: "n items are started". Release,
 * "everything before item n, before n is visible"; pairs with the acquire in amp_started. No
 * barrier after it is needed: a store that was executed reaches the shared page whatever kills the
 * process next, and no compiler moves it past the call of an item's code, which it cannot see. */
static inline void amp_mark_started(struct amp_map *map, uint64_t n)
{
    atomic_store_explicit(&map->control->started, n, memory_order_release);
}

/* For the parent. Acquire; pairs with amp_mark_started. Final once the worker is reaped. */
static inline uint64_t amp_started(const struct amp_map *map)
{
    return atomic_load_explicit(&map->control->started, memory_order_acquire);
}

/* ---- the turn of the worker's loop ---------------------------------------------------------- */

/* The worker's loop wakes: a turn begins. */
static inline void amp_turn_begin(struct amp_map *map, uint64_t origin)
{
    atomic_store_explicit(&map->control->origin, origin, memory_order_release);
}

/* The worker's loop has run a turn. */
static inline void amp_turn_end(struct amp_map *map, uint64_t busy)
{
    atomic_store_explicit(&map->control->busy, busy, memory_order_release);
}

/* The parent reads both words; false if the worker has just changed them (RING-12). */
static inline bool amp_turn_load(const struct amp_map *map, uint64_t *origin, uint64_t *busy)
{
    *origin = atomic_load_explicit(&map->control->origin, memory_order_acquire);
    *busy = atomic_load_explicit(&map->control->busy, memory_order_acquire);
    return atomic_load_explicit(&map->control->origin, memory_order_relaxed) == *origin;
}

/* ---- the table of running items ------------------------------------------------------------ */

static inline struct amp_running *amp_table(const struct amp_map *map)
{
    return (struct amp_running *)(void *)(amp_journal(map) + amp_journal_size(map->capacity));
}

/* The worker fills an entry. Release, "time before number"; pairs with the acquire in
 * amp_running_load (RING-11). A signal may kill the process between the two stores: then the time
 * is that of no item yet, and the item that had the entry before has ended. */
static inline void amp_running_store(const struct amp_map *map, uint64_t at, uint64_t number,
                                     uint64_t since)
{
    struct amp_running *entry = amp_table(map) + at;
    atomic_store_explicit(&entry->since, since, memory_order_relaxed);
    atomic_store_explicit(&entry->number, number, memory_order_release);
}

/* The worker frees an entry: the item has ended, and its result is in the journal. */
static inline void amp_running_clear(const struct amp_map *map, uint64_t at)
{
    atomic_store_explicit(&amp_table(map)[at].number, 0, memory_order_release);
}

/* The parent reads an entry but entry 0; returns the number, 0 if the entry is free. */
static inline uint64_t amp_running_load(const struct amp_map *map, uint64_t at, uint64_t *since)
{
    struct amp_running *entry = amp_table(map) + at;
    uint64_t number = atomic_load_explicit(&entry->number, memory_order_acquire);
    *since = atomic_load_explicit(&entry->since, memory_order_relaxed);
    return number;
}

/* The parent reads entry 0; returns the number of the item that runs its first step, 0 if none. An
 * item whose number is seen in `started` began no earlier than a time that was stored before that
 * mark; the time that is loaded afterwards is that one or a later one (RING-11). */
static inline uint64_t amp_first_running(const struct amp_map *map, uint64_t *since)
{
    struct amp_running *entry = amp_table(map);
    uint64_t first = atomic_load_explicit(&entry->number, memory_order_acquire);
    uint64_t number = amp_started(map);
    *since = atomic_load_explicit(&entry->since, memory_order_relaxed);
    return first != 0 && number >= first ? number : 0;
}

/* The worker moves entry 0 to another, as its item is suspended. */
static inline void amp_running_keep(const struct amp_map *map, uint64_t at)
{
    uint64_t since, number = amp_first_running(map, &since);
    amp_running_store(map, at, number, since);
    amp_running_clear(map, 0);
}

/* ---- records ------------------------------------------------------------------------------- */

static inline uint64_t amp_record_size(uint64_t length)
{
    return (AMP_HEADER_SIZE + length + 7) & ~UINT64_C(7);
}

static inline uint64_t amp_max_payload(uint64_t capacity) /* RING-7 */
{
    return capacity / 2 - AMP_HEADER_SIZE;
}

static inline bool amp_follows(bool within, uint32_t flags) /* RING-8 */
{
    return ((flags & AMP_BEGIN) == 0) == within;
}

/* Both halves of a header are one atomic word, so that the checked value is the one that is used.
 * Relaxed: the release and the acquire of the tail order headers as they order payloads. */
static inline void amp_header_store(uint8_t *at, uint32_t length, uint32_t type)
{
    atomic_store_explicit((_Atomic uint64_t *)(void *)at, ((uint64_t)type << 32) | length,
                          memory_order_relaxed);
}

static inline uint64_t amp_header_load(const uint8_t *at)
{
    return atomic_load_explicit((const _Atomic uint64_t *)(const void *)at, memory_order_relaxed);
}

/* ---- the producer -------------------------------------------------------------------------- */

/* The cursors start where the mapping has them, at 0 in a fresh one. */
static inline enum amp_fault amp_producer_open(struct amp_producer *p, struct amp_cursors *shared,
                                               uint8_t *data, uint64_t capacity)
{
    uint64_t tail = atomic_load_explicit(&shared->tail, memory_order_relaxed);
    uint64_t head = atomic_load_explicit(&shared->head, memory_order_acquire);
    *p = (struct amp_producer){.shared = shared, .data = data, .capacity = capacity,
                               .tail = tail, .published = tail, .head = head};
    if ((tail & 7) != 0)
        p->fault = AMP_BAD_TAIL;
    else if ((head & 7) != 0 || tail - head > capacity) /* RING-2 */
        p->fault = AMP_BAD_HEAD;
    return p->fault;
}

/* Loads the consumer's head. False, and a fault, if it is out of order.
 * Acquire, "the consumer's reads before our overwriting"; pairs with the release in amp_release. */
static inline bool amp_look_at_head(struct amp_producer *p)
{
    uint64_t head = atomic_load_explicit(&p->shared->head, memory_order_acquire);
    if ((head & 7) != 0 || head - p->head > p->published - p->head) { /* RING-2; it only grows */
        p->fault = AMP_BAD_HEAD;
        return false;
    }
    p->head = head;
    return true;
}

static inline uint64_t amp_to_end(const struct amp_producer *p)
{
    return p->capacity - (p->tail & (p->capacity - 1));
}

/* Whether a record of `size` bytes fits, together with the padding that it may need. */
static inline bool amp_fits(const struct amp_producer *p, uint64_t size)
{
    uint64_t free = p->capacity - (p->tail - p->head);
    uint64_t to_end = amp_to_end(p);
    return free >= (size <= to_end ? size : to_end + size);
}

static inline bool amp_fits_now(struct amp_producer *p, uint64_t size)
{
    return amp_fits(p, size) || (amp_look_at_head(p) && amp_fits(p, size));
}

/* The largest payload that one record can carry now; also 0 if not even a header fits. */
static inline uint64_t amp_free(struct amp_producer *p)
{
    uint64_t most = p->capacity / 2; /* RING-7 */
    if (p->fault || (!amp_fits(p, most) && !amp_look_at_head(p)))
        return 0;
    uint64_t free = p->capacity - (p->tail - p->head);
    uint64_t to_end = amp_to_end(p);
    uint64_t ahead = free < to_end ? free : to_end;
    uint64_t behind = free - ahead;
    uint64_t size = ahead > behind ? ahead : behind;
    size = size < most ? size : most;
    return size > AMP_HEADER_SIZE ? size - AMP_HEADER_SIZE : 0;
}

/* The place for the payload of a record; NULL if there is no room, or a fault. No barrier: these
 * bytes are behind the head that was acquired, so the consumer has read them. */
static inline uint8_t *amp_reserve(struct amp_producer *p, uint32_t length)
{
    uint64_t size = amp_record_size(length);
    if (p->fault || size > p->capacity / 2 || !amp_fits_now(p, size)) /* RING-7 */
        return NULL;
    uint64_t to_end = amp_to_end(p);
    if (size > to_end) { /* RING-5, RING-6; to_end is a multiple of 8, so a header fits */
        amp_header_store(p->data + (p->capacity - to_end), (uint32_t)(to_end - AMP_HEADER_SIZE),
                         AMP_PADDING);
        p->tail += to_end;
        AMP_STEP();
    }
    return p->data + (p->tail & (p->capacity - 1)) + AMP_HEADER_SIZE;
}

/* Ends the record whose payload is at the place that amp_reserve returned. No barrier: header and
 * payload may reach memory in any order, since the consumer reads neither before amp_publish. */
static inline void amp_commit(struct amp_producer *p, uint32_t length, uint32_t flags)
{
    amp_header_store(p->data + (p->tail & (p->capacity - 1)), length, AMP_DATA | flags);
    p->tail += amp_record_size(length);
    p->within = (flags & AMP_END) == 0;
    p->records++;
    AMP_STEP();
}

/* Makes all committed records visible. True: the consumer sleeps, ring it.
 *
 * Release, "headers and payloads before tail"; pairs with the acquire in amp_look_at_tail.
 *
 * Then "tail before our read of sleeping"; pairs with "sleeping before the read of tail" in
 * amp_sleep. Each side does a store followed by a load of the other side's word. Release and
 * acquire do not order these two, not even on x86, where the store waits in a buffer. Both sides
 * therefore access `sleeping` here by a read-modify-write, as every change of it is (RING-3), and
 * these have one order. If ours comes after the consumer's, we see its 1 and ring. If ours comes
 * first, the consumer's reads from ours, or from one that did: it synchronizes with us, and so
 * sees the tail that we stored before (RING-9). */
static inline bool amp_publish(struct amp_producer *p)
{
    if (p->fault || p->tail == p->published)
        return false;
    atomic_store_explicit(&p->shared->tail, p->tail, memory_order_release);
    p->published = p->tail;
    AMP_STEP();
    return atomic_exchange_explicit(&p->shared->sleeping, 0, memory_order_seq_cst) != 0;
}

/* After a record of this length did not fit and all was published: sets `waiting`, and looks
 * again. True: there is no room, and the bell will ring. False: there is room now, or a fault.
 *
 * "waiting before our read of head"; pairs with "head before the read of waiting" in amp_release,
 * by the argument at amp_publish (RING-10). Unpublished records would break RING-10, because the
 * consumer may have nothing left to read and release. */
static inline bool amp_want_room(struct amp_producer *p, uint32_t length)
{
    if (p->fault)
        return false;
    atomic_exchange_explicit(&p->shared->waiting, 1, memory_order_seq_cst);
    AMP_STEP();
    if (amp_look_at_head(p) && !amp_fits(p, amp_record_size(length)))
        return true;
    atomic_exchange_explicit(&p->shared->waiting, 0, memory_order_seq_cst); /* RING-3 */
    return false;
}

/* ---- the consumer -------------------------------------------------------------------------- */

static inline enum amp_fault amp_consumer_open(struct amp_consumer *c, struct amp_cursors *shared,
                                               const uint8_t *data, uint64_t capacity)
{
    uint64_t head = atomic_load_explicit(&shared->head, memory_order_relaxed);
    *c = (struct amp_consumer){.shared = shared, .data = data, .capacity = capacity,
                               .head = head, .released = head, .tail = head};
    if ((head & 7) != 0)
        c->fault = AMP_BAD_HEAD;
    return c->fault;
}

/* Loads the producer's tail. True: a record is unread.
 * Acquire, "tail before headers and payloads"; pairs with the release in amp_publish. */
static inline bool amp_look_at_tail(struct amp_consumer *c)
{
    uint64_t tail = atomic_load_explicit(&c->shared->tail, memory_order_acquire);
    uint64_t known = c->tail - c->released;
    if ((tail & 7) != 0 || tail - c->tail > c->capacity - known) { /* RING-2; it only grows */
        c->fault = AMP_BAD_TAIL;
        return false;
    }
    c->tail = tail;
    return tail != c->head;
}

/* The fault of a record with this header at the private head, AMP_SOUND if it has none. */
static inline enum amp_fault amp_check(const struct amp_consumer *c, uint32_t length, uint32_t type)
{
    uint64_t position = c->head & (c->capacity - 1);
    uint64_t size = amp_record_size(length);
    if (size > c->tail - c->head || size > c->capacity - position) /* RING-5 */
        return AMP_BAD_LENGTH;
    if (type == AMP_PADDING) { /* RING-6 */
        bool sound = position != 0 && position + size == c->capacity && size < c->tail - c->head;
        return sound ? AMP_SOUND : AMP_BAD_PADDING;
    }
    if ((type & ~AMP_FLAGS) != AMP_DATA)
        return AMP_BAD_TYPE;
    if (size > c->capacity / 2) /* RING-7 */
        return AMP_BAD_LENGTH;
    return amp_follows(c->within, type & AMP_FLAGS) ? AMP_SOUND : AMP_BAD_SEQUENCE; /* RING-8 */
}

/* The next record, in place. False: none, or a fault. Its bytes stay until amp_release (RING-4).
 * Loops at most twice: after padding the position is 0, where padding is a fault (RING-6). */
static inline bool amp_read(struct amp_consumer *c, struct amp_record *record)
{
    while (!c->fault && (c->head != c->tail || amp_look_at_tail(c))) {
        const uint8_t *at = c->data + (c->head & (c->capacity - 1));
        uint64_t header = amp_header_load(at);
        uint32_t length = (uint32_t)header, type = (uint32_t)(header >> 32);
        c->fault = amp_check(c, length, type);
        if (c->fault)
            return false;
        c->head += amp_record_size(length);
        if (type == AMP_PADDING)
            continue;
        c->within = (type & AMP_END) == 0;
        *record = (struct amp_record){at + AMP_HEADER_SIZE, length, type & AMP_FLAGS};
        return true;
    }
    return false;
}

/* Releases all that was read. True: the producer waits and there is room, ring it.
 *
 * Release, "our reads before head"; pairs with the acquire in amp_look_at_head. Then "head before
 * our read of waiting"; pairs with amp_want_room, see amp_publish (RING-10). While less than a
 * quarter is free we do not read `waiting`, and need no barrier: more than three quarters are
 * unread, so we shall release again. (Our copy of the tail may be old: then there is less room
 * than we think, and the producer, rung early, tries again.) */
static inline bool amp_release(struct amp_consumer *c)
{
    if (c->fault || c->head == c->released)
        return false;
    atomic_store_explicit(&c->shared->head, c->head, memory_order_release);
    c->released = c->head;
    if (c->capacity - (c->tail - c->head) < c->capacity / 4)
        return false;
    return atomic_exchange_explicit(&c->shared->waiting, 0, memory_order_seq_cst) != 0;
}

/* After amp_read found nothing and all was released: sets `sleeping`, and looks again. True: the
 * consumer may sleep. False: there is data, or a fault. "sleeping before our read of tail"; pairs
 * with "tail before the read of sleeping" in amp_publish (RING-9). */
static inline bool amp_sleep(struct amp_consumer *c)
{
    if (c->fault)
        return false;
    atomic_exchange_explicit(&c->shared->sleeping, 1, memory_order_seq_cst);
    if (!amp_look_at_tail(c) && !c->fault)
        return true;
    atomic_exchange_explicit(&c->shared->sleeping, 0, memory_order_seq_cst); /* RING-3 */
    return false;
}

/* Clears `sleeping`: the consumer reads, and needs no bell. This is an exchange and not a store,
 * although nothing here depends on its result, because a plain store would break the order on
 * which the argument at amp_publish relies (RING-3). */
static inline void amp_awake(struct amp_consumer *c)
{
    atomic_exchange_explicit(&c->shared->sleeping, 0, memory_order_seq_cst);
}

/* After the bell was cleared: whether the consumer's last amp_sleep still holds, because no
 * producer has rung since. Then the consumer has nothing to do, and the bell was rung for another
 * one. A producer that has not yet changed the flag will find the 1 and ring; one that has changed
 * it, unseen by us, is about to ring (RING-9).
 *
 * Relaxed, and yet it misses no producer whose signal we got: its exchange comes before its signal,
 * that before our clearing (both are system calls on one bell, under one lock of the kernel),
 * and the clearing before this load, which therefore cannot return the 1 that the exchange
 * replaced. Only here does this file need a bell to order anything. An acquire could not replace
 * it: it orders what comes after the value that it reads, and here that value would be an old one.
 * What this load returns orders nothing either: amp_read loads the tail with an acquire of its
 * own.
 *
 * The tail is compared as well, for a peer that rings and is not sound: by the flag alone we would
 * never see what it did. */
static inline bool amp_asleep(const struct amp_consumer *c)
{
    return !c->fault && atomic_load_explicit(&c->shared->sleeping, memory_order_relaxed) != 0
        && atomic_load_explicit(&c->shared->tail, memory_order_relaxed) == c->tail;
}

#endif /* AMP_RING_H */
