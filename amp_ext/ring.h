/* A single-producer, single-consumer ring of records in memory shared by two processes.
 *
 * C11 and nothing else: no Python, no system call, no allocation. The caller brings the memory
 * (mapping.h) and the doorbells; ring.pyx gives it to Python, stress/ring_stress.c to sanitizers.
 *
 * Theory of operation
 * -------------------
 * One mapping serves one worker. It opens with a control page and continues with two rings of equal
 * capacity: `down` from the parent to the worker, `up` from the worker to the parent.
 *
 *     | control page: who we are, `started`, cursors of down, cursors of up | down | up | journal |
 *
 * The journal is the worker's to fill as it likes, a sixteenth of a ring: what a dead worker leaves
 * there can be read. Nothing in this file touches it.
 *
 * A ring has two cursors, counts of bytes ever written (tail) and ever released (head). They only
 * grow, modulo 2^64; position = cursor mod capacity, and what lies between them is in use. Only the
 * producer stores tail, only the consumer stores head. Each side keeps its own cursor privately and
 * only stores it to the mapping; it never reads it back. Each side also keeps a copy of the other's
 * cursor and looks at the real one only when that copy says "full" or "empty": that is what keeps
 * the cache lines from travelling with every record.
 *
 * A record is an 8-byte header (length, type), the payload, and slack up to a multiple of 8. A
 * record never crosses the end of the ring: when it does not fit before the end, a padding record
 * fills the end and the record starts at position 0. So every payload is contiguous and can be read
 * in place.
 *
 * Writing is reserve (find room, pad), copy, commit (header, private tail): nothing of it is
 * visible. publish() makes all that was committed visible by one store of the tail. A writer that
 * is killed before that store has written nothing, after it everything: no state in between exists.
 *
 * Nobody waits inside this file. A consumer that finds nothing announces it in `sleeping`, looks
 * once more, and returns to its event loop. A producer looks at `sleeping` after it published, and
 * rings the consumer's doorbell if it was set. For room it is the same the other way about, with
 * `waiting`; and the producer is rung only once a quarter of the ring is free, so that it does not
 * wake for each record. The doorbell must be cleared *before* the ring is read: cleared after, it
 * could swallow the ring of a record that came in between. That holds for amp_asleep as well.
 *
 * The peer is not trusted with our life. Whatever the mapping holds, these functions read and write
 * inside the ring only and return in bounded time: a peer's cursor is loaded once and checked
 * against the private ones; a header is loaded once, into a local, and checked before it is used. A
 * violation sets `fault`, and from then on nothing is read or written (the ring is poisoned).
 * Payload bytes are the business of the next layer, which must not trust them either.
 *
 * Invariants, cited in the code and in the tests
 * ----------------------------------------------
 * RING-1  capacity is a power of two, AMP_MIN_CAPACITY <= capacity <= AMP_MAX_CAPACITY.
 * RING-2  cursors are multiples of 8 and head <= tail <= head + capacity, as distances modulo 2^64.
 * RING-3  every word has one writer: tail, producer; head, consumer; started, worker. The two flags
 *     have two writers, and every change to a flag is a read-modify-write.
 * RING-4  bytes between the private head and the published tail are not written by the producer.
 * RING-5  a record lies within the ring: it does not cross the end, nor the published tail.
 * RING-6  padding ends exactly at the end of the ring, never starts at position 0, and is published
 *     together with the record that it makes way for; so there are never two in a row, reading is
 *     bounded, and what is unread always holds a record.
 * RING-7  a record takes at most half the capacity: an empty ring has room for it at whatever position
 *     its cursors are. (All free bytes are then to_end + position = capacity, and one is >= half.)
 * RING-8  a frame is one record with BEGIN and END, or BEGIN, any number of neither, END.
 * RING-9  no lost wake-up: if a published record is unread, the consumer is awake, or `sleeping` is
 *     clear and its bell was rung, or the producer is between its store of tail and its look at
 *     `sleeping`.
 * RING-10 no lost room: the same for a producer that waits, once a quarter of the ring is free. Below a
 *     quarter the consumer has unread records and so will release again.
 */
#ifndef AMP_RING_H
#define AMP_RING_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Between any two stores of the producer: the stress program dies here, others compile it away. */
#ifndef AMP_STEP
#define AMP_STEP() ((void)0)
#endif

#define AMP_MAGIC UINT64_C(0x31474e4952504d41) /* "AMPRING1" */
#define AMP_VERSION UINT64_C(1)
#define AMP_CONTROL_SIZE 4096u
#define AMP_LINE 128u /* two lines of 64: x86 fetches them in pairs, and Apple's lines are 128 */
#define AMP_HEADER_SIZE 8u
#define AMP_MIN_CAPACITY (UINT64_C(1) << 6)
#define AMP_MAX_CAPACITY (UINT64_C(1) << 30) /* a length is 32 bits: far from overflow */

/* Flags of a record, as the caller gives and gets them. */
#define AMP_BEGIN 1u
#define AMP_END 2u
#define AMP_FLAGS (AMP_BEGIN | AMP_END)

/* Types of a record, as they stand in its header; 0, what fresh memory holds, is none of them. */
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

/* One ring's words, a line each: a side that polls one word takes no line from the other (RING-3). */
struct amp_cursors {
    _Alignas(AMP_LINE) _Atomic uint64_t tail;
    _Alignas(AMP_LINE) _Atomic uint64_t head;
    _Alignas(AMP_LINE) _Atomic uint32_t sleeping; /* the consumer asks to be rung for data */
    _Alignas(AMP_LINE) _Atomic uint32_t waiting;  /* the producer asks to be rung for room */
};

struct amp_control {
    _Atomic uint64_t magic;
    _Atomic uint64_t version;
    _Atomic uint64_t capacity; /* of each of the two rings, in bytes */
    _Atomic uint64_t generation;
    _Alignas(AMP_LINE) _Atomic uint64_t started; /* items that the worker has begun, in all */
    struct amp_cursors down, up;
};

static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
              "a lock would live in one process only, or die with its holder");
static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4, "plain words");
static_assert(offsetof(struct amp_cursors, head) == 128, "head has a line of its own");
static_assert(offsetof(struct amp_cursors, sleeping) == 256, "sleeping has a line of its own");
static_assert(offsetof(struct amp_cursors, waiting) == 384, "waiting has a line of its own");
static_assert(sizeof(struct amp_cursors) == 512, "no line is shared by two rings");
static_assert(offsetof(struct amp_control, capacity) == 16, "layout is part of the version");
static_assert(offsetof(struct amp_control, started) == 128, "layout is part of the version");
static_assert(offsetof(struct amp_control, down) == 256, "layout is part of the version");
static_assert(offsetof(struct amp_control, up) == 768, "layout is part of the version");
static_assert(sizeof(struct amp_control) <= AMP_CONTROL_SIZE, "the control page is one page");
static_assert(AMP_CONTROL_SIZE % AMP_LINE == 0, "rings begin on a line");

/* ---- what is private to each side ---------------------------------------------------------- */

struct amp_map {
    struct amp_control *control;
    uint64_t capacity; /* checked; the shared one is not looked at again */
};

struct amp_producer {
    struct amp_cursors *shared;
    uint8_t *data;
    uint64_t capacity;
    uint64_t tail;      /* end of what is committed */
    uint64_t published; /* end of what the consumer may see */
    uint64_t head;      /* the consumer's, as last looked at: never ahead of the real one */
    uint64_t records;   /* committed in all, padding not counted */
    bool within;        /* the last record left its frame open (RING-8) */
    enum amp_fault fault;
};

struct amp_consumer {
    struct amp_cursors *shared;
    const uint8_t *data;
    uint64_t capacity;
    uint64_t head;     /* end of what is read */
    uint64_t released; /* end of what the producer may overwrite */
    uint64_t tail;     /* the producer's, as last looked at: never ahead of the real one */
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
    return capacity / 16 > AMP_LINE ? capacity / 16 : AMP_LINE;
}

static inline uint64_t amp_map_size(uint64_t capacity)
{
    return AMP_CONTROL_SIZE + 2 * capacity + amp_journal_size(capacity);
}

/* Makes zeroed memory of amp_map_size(capacity) bytes a mapping. No barrier: starting the worker,
 * or handing it the descriptor, orders these stores before its loads. */
static inline void amp_map_format(void *base, uint64_t capacity, uint64_t generation)
{
    struct amp_control *control = base;
    atomic_store_explicit(&control->version, AMP_VERSION, memory_order_relaxed);
    atomic_store_explicit(&control->capacity, capacity, memory_order_relaxed);
    atomic_store_explicit(&control->generation, generation, memory_order_relaxed);
    atomic_store_explicit(&control->magic, AMP_MAGIC, memory_order_relaxed);
}

/* Takes memory, aligned to AMP_LINE, for a mapping if it is one. The bytes may be anything. */
static inline enum amp_fault amp_map_open(struct amp_map *map, void *base, uint64_t size)
{
    struct amp_control *control = base;
    if (size < AMP_CONTROL_SIZE
        || atomic_load_explicit(&control->magic, memory_order_relaxed) != AMP_MAGIC
        || atomic_load_explicit(&control->version, memory_order_relaxed) != AMP_VERSION)
        return AMP_NOT_A_RING;
    uint64_t capacity = atomic_load_explicit(&control->capacity, memory_order_relaxed);
    if (!amp_capacity_ok(capacity) || amp_map_size(capacity) > size) /* may be rounded up */
        return AMP_BAD_CAPACITY;
    map->control = control;
    map->capacity = capacity;
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

/* The worker, before the item's first instruction: "n items are begun". Release, "everything before
 * item n, before n is seen"; pairs with amp_started. No barrier after it is needed: what follows in
 * this thread is lost only with the machine, not with the process, since a store that was executed
 * reaches the shared page whatever kills the process next; and no compiler moves it past the call
 * of an item, of which it knows nothing. */
static inline void amp_mark_started(struct amp_map *map, uint64_t n)
{
    atomic_store_explicit(&map->control->started, n, memory_order_release);
}

/* The parent. Acquire; pairs with amp_mark_started. Final once the worker is reaped. */
static inline uint64_t amp_started(const struct amp_map *map)
{
    return atomic_load_explicit(&map->control->started, memory_order_acquire);
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

/* Both halves of a header go through one atomic word, so that what was checked is what is used.
 * Relaxed: publishing and reading the tail orders headers exactly as it orders payloads. */
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

/* Cursors start where the mapping says, which is 0 for a fresh one. */
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

/* Looks at the consumer's head.
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

/* Whether a record of `size` bytes, and the padding before it if it needs one, fits. */
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

/* The largest payload that one record may carry now; 0 too if not even a header fits. */
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

/* Where the payload of a record may be written, or NULL: no room, or a fault. No barrier: these
 * bytes are behind the head that was acquired, so the consumer is done with them. */
static inline uint8_t *amp_reserve(struct amp_producer *p, uint32_t length)
{
    uint64_t size = amp_record_size(length);
    if (p->fault || size > p->capacity / 2 || !amp_fits_now(p, size)) /* RING-7 */
        return NULL;
    uint64_t to_end = amp_to_end(p);
    if (size > to_end) { /* RING-5, RING-6: to_end is a multiple of 8, so there is room for a header */
        amp_header_store(p->data + (p->capacity - to_end), (uint32_t)(to_end - AMP_HEADER_SIZE),
                         AMP_PADDING);
        p->tail += to_end;
        AMP_STEP();
    }
    return p->data + (p->tail & (p->capacity - 1)) + AMP_HEADER_SIZE;
}

/* Ends the record whose payload was written where amp_reserve said. No barrier: header and payload
 * may reach memory in any order, since nobody looks before publish. */
static inline void amp_commit(struct amp_producer *p, uint32_t length, uint32_t flags)
{
    amp_header_store(p->data + (p->tail & (p->capacity - 1)), length, AMP_DATA | flags);
    p->tail += amp_record_size(length);
    p->within = (flags & AMP_END) == 0;
    p->records++;
    AMP_STEP();
}

/* Makes all that was committed visible. True: the consumer sleeps, ring it.
 *
 * Release, "headers and payloads before tail"; pairs with the acquire in amp_look_at_tail.
 *
 * Then "tail before our look at sleeping"; pairs with "sleeping before the look at tail" in
 * amp_sleep. Two stores each followed by a load of the other's word: release and acquire do not
 * order that, not even on x86, where the store waits in a buffer. Both looks are therefore
 * read-modify-writes of one word, as are all its changes (RING-3), and those have one order. If ours
 * comes after the consumer's, we see its 1 and ring. If ours comes first, the consumer's reads from
 * ours (or from one that did): it synchronizes with us and so sees the tail that we stored before.
 * RING-9. */
static inline bool amp_publish(struct amp_producer *p)
{
    if (p->fault || p->tail == p->published)
        return false;
    atomic_store_explicit(&p->shared->tail, p->tail, memory_order_release);
    p->published = p->tail;
    AMP_STEP();
    return atomic_exchange_explicit(&p->shared->sleeping, 0, memory_order_seq_cst) != 0;
}

/* After a record of this length did not fit and all was published: asks to be rung, looks again.
 * True: no room, the bell will come. False: there is room now, or a fault.
 *
 * "waiting before our look at head"; pairs with "head before the look at waiting" in amp_release,
 * by the argument at amp_publish. RING-10. Unpublished records would break RING-10, as the consumer may
 * have nothing left to read and release. */
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

/* Looks at the producer's tail. True: something is unread.
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

/* What is wrong with a record of this header at the private head, if anything. */
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

/* Gives back all that was read. True: the producer waits and there is room, ring it.
 *
 * Release, "our reads before head"; pairs with the acquire in amp_look_at_head.
 * Then "head before our look at waiting"; pairs with amp_want_room, see amp_publish. RING-10.
 * Below a quarter we do not look, and need no barrier: more than three quarters are unread, so we
 * shall be here again. (The tail we know may be old: then there is less room than we think and the
 * producer, rung early, asks again.) */
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

/* After amp_read found nothing and all was released: asks to be rung, looks again. True: may sleep.
 * False: there is data, or a fault. "sleeping before our look at tail"; pairs with "tail before the
 * look at sleeping", see amp_publish. */
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

/* Woken by whatever: no bell is wanted while we read. An exchange and not a store, although nothing
 * here depends on what it returns: a plain store would cut the chain that R9's argument follows
 * (RING-3). */
static inline void amp_awake(struct amp_consumer *c)
{
    atomic_exchange_explicit(&c->shared->sleeping, 0, memory_order_seq_cst);
}

/* After the bell was cleared: whether the consumer's last amp_sleep still holds, no producer having
 * rung since. Then there is nothing to do, whoever else was rung by the same bell: a producer that
 * has not changed the flag yet will find the 1 and ring, and one that has, unseen, is about to. RING-9.
 *
 * Relaxed, and yet a producer that was heard is not missed: its exchange comes before its ring, the
 * ring before our clearing (both are system calls on one bell, under one lock of the kernel), and
 * the clearing before this load, which therefore cannot return the 1 that the exchange took away.
 * Only here does this file need a bell to order anything, and an acquire could not do it instead:
 * it orders what comes after the value that it finds, and here that value would be an old one. What
 * is found orders nothing: amp_read looks at the tail with an acquire of its own.
 *
 * The tail is looked at as well, for a peer that rings and is not sound: the flag alone would keep
 * us from ever seeing what it did. */
static inline bool amp_asleep(const struct amp_consumer *c)
{
    return !c->fault && atomic_load_explicit(&c->shared->sleeping, memory_order_relaxed) != 0
        && atomic_load_explicit(&c->shared->tail, memory_order_relaxed) == c->tail;
}

#endif /* AMP_RING_H */
