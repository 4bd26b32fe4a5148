/* Model of ring.h, which Spin checks exhaustively. run.sh runs Spin on the model, and on mutants of
 * it, in each of which Spin must find an error.
 *
 * There are two sides, 0 and 1, each one thread with an event loop, as in shm.py: a ring each way,
 * and one doorbell for each side, which says both "there is data" and "there is room". Side s
 * writes ring s, reads ring 1 - s and waits for bell[s]. Memory is that of C11, see memory.pml.
 * Spin checks these, in every interleaving and for every choice of sizes, batches, releases, stale
 * values and spurious bells:
 *
 *   RING-2, RING-4 to RING-7, and that records arrive whole, each once, in order, without a race:
 *   by assertions.
 *   RING-9, RING-10: there is no state in which neither side can go on and a side has not sent or
 *   received all. A side waits for nothing but its bell, so a lost wake-up or lost room leads to
 *   such a state.
 *   With pan's -DNP: no execution is endless, so each one ends with all records delivered.
 *
 * A killed writer is a side that makes no more steps. The model asserts throughout every execution
 * that the other side reads whole records only, so Spin checks this case too.
 *
 * Names are those of ring.h, shm.py and link.pyx. An atomic block is one access to shared memory;
 * the steps between two blocks are private. The model leaves out a peer that breaks the rules (see
 * fuzz/), fragments (RING-8), which are records like others here, and cursors that wrap at 2^64.
 *
 * Bytes are counted in units of 8, the size of a header. Options (-D):
 *
 *   CAPACITY=n             of each ring; 8 is the least that ring.h allows, 4 has the same quarters
 *   RECORDS0=n RECORDS1=n  how many records side 0 and side 1 send
 *   SMALLEST=n LARGEST=n   their sizes, header included, are any from SMALLEST to LARGEST
 *   SPURIOUS=n             so many bells ring for another link, at any time, on either side
 *   FULL_BATCHES           sides send and read all they can before they publish and release: fewer
 *                          executions, so that Spin can check more records
 *   a mutant               see run.sh
 */
#ifndef RECORDS0
#define RECORDS0 3
#endif
#ifndef RECORDS1
#define RECORDS1 0
#endif
#ifndef SPURIOUS
#define SPURIOUS 1
#endif
#ifndef CAPACITY
#define CAPACITY 8
#endif
#ifndef SMALLEST
#define SMALLEST 1
#endif
#ifndef LARGEST
#define LARGEST HALF /* RING-7 */
#endif

#define HALF (CAPACITY / 2)
#define QUARTER (CAPACITY / 4)
#define PADDING 255 /* instead of a record's number */
#define RECORDS_OF(side) (side == 0 -> RECORDS0 : RECORDS1)
#if RECORDS0 > RECORDS1
#define STORES (RECORDS0 + 1)
#else
#define STORES (RECORDS1 + 1)
#endif

/* The memory order of each access; a mutant has a weaker one. */
#define RELAXED 0
#define ACQUIRE 1
#define RELEASE 2
#define ACQ_REL 3
#ifndef STORE_TAIL
#define STORE_TAIL RELEASE
#endif
#ifndef LOAD_TAIL
#define LOAD_TAIL ACQUIRE
#endif
#ifndef STORE_HEAD
#define STORE_HEAD RELEASE
#endif
#ifndef LOAD_HEAD
#define LOAD_HEAD ACQUIRE
#endif
#ifndef CHANGE_SLEEPING
#define CHANGE_SLEEPING ACQ_REL
#endif
#ifndef CHANGE_WAITING
#define CHANGE_WAITING ACQ_REL
#endif

#include "memory.pml"

/* ---- what is shared (struct amp_cursors, and the bytes) ------------------------------------- */

typedef Ring {
    Word tail;
    Word head;
    Flag sleeping;
    Flag waiting;
};

/* Headers: the number of the record that begins here, PADDING, or 0 for none; and its size. `local`
 * is for Spin: accesses to the headers commute with the other side's steps. They do, because put()
 * and take() assert that the other side is done with these bytes. */
typedef Bytes {
    byte number[CAPACITY];
    byte size[CAPACITY];
};

Ring ring[2];
local Bytes data[2];
bit bell[2];

/* ---- what is private to each side ----------------------------------------------------------- */

typedef Producer {
    byte tail;
    byte published;
    byte head;
    byte records;
    byte wanted; /* size of the record that did not fit: the outbox */
    Deeds did;
    Deeds knows; /* of the consumer */
};

typedef Consumer {
    byte head;
    byte released;
    byte tail;
    byte records;
    Deeds did;
    Deeds knows; /* of the producer */
};

#define OUT ring[me]
#define IN ring[1 - me]
#define OUT_DATA data[me]
#define IN_DATA data[1 - me]

/* ---- flags and bells ------------------------------------------------------------------------ */

#define PRODUCER 0
#define CONSUMER 1

inline change_sleeping(a_ring, to, role, who)
{
    atomic {
        exchange(a_ring.sleeping, to, was_set, CHANGE_SLEEPING, role, who.did, who.knows)
    }
}

inline change_waiting(a_ring, to, role, who)
{
    atomic {
        exchange(a_ring.waiting, to, was_set, CHANGE_WAITING, role, who.did, who.knows)
    }
}

inline ring_if_it_was_set()
{
    if
    :: atomic { was_set -> bell[1 - me] = 1; tell(OUT.sleeping); was_set = 0 }
    :: else
    fi
}

/* ---- the producer: p ------------------------------------------------------------------------ */

#define TO_END (CAPACITY - p.tail % CAPACITY)
#define FREE (CAPACITY - (p.tail - p.head))
#define FITS(size) (FREE >= (size <= TO_END -> size : TO_END + size))

inline look_at_head()
{
    load(OUT.head, p.head, LOAD_HEAD, p.knows);
    assert(p.head <= p.published) /* RING-2 */
}

/* amp_reserve, the copy, amp_commit: they touch only bytes that no other thread touches now. */
inline put(what, length)
{
    assert(p.knows.bytes + CAPACITY >= p.tail + length); /* RING-4: read, and we know it */
    assert(p.tail % CAPACITY + length <= CAPACITY);     /* RING-5 */
    OUT_DATA.number[p.tail % CAPACITY] = what;
    OUT_DATA.size[p.tail % CAPACITY] = length;
    p.tail = p.tail + length;
    p.did.bytes = p.tail
}

inline write(length)
{
    if
    :: FITS(length)
    :: else -> atomic { look_at_head() }
    fi;
    d_step {
        written = FITS(length);
        if
        :: written ->
            if
            :: length > TO_END -> put(PADDING, TO_END) /* RING-6 */
            :: else
            fi;
            p.records++;
            put(p.records, length)
        :: else
        fi
    }
}

/* amp_publish, and the ring that it asks for. RING-9. */
inline publish()
{
    if
    :: p.tail != p.published ->
        atomic {
            store(OUT.tail, p.records, p.tail, STORE_TAIL, p.did);
            p.published = p.tail
        };
#ifdef LOOK_AT_SLEEPING_FIRST
        atomic { look(OUT.sleeping, was_set, PRODUCER) };
        if
        :: was_set -> change_sleeping(OUT, 0, PRODUCER, p)
        :: else
        fi;
#elif defined(RUNG_BEFORE_SLEEPING_IS_CLEARED)
        change_sleeping(OUT, OUT.sleeping.value, PRODUCER, p);
        ring_if_it_was_set();
        change_sleeping(OUT, 0, PRODUCER, p);
        was_set = 0;
#else
        change_sleeping(OUT, 0, PRODUCER, p);
#endif
        ring_if_it_was_set()
    :: else
    fi
}

/* amp_want_room. RING-10. */
inline want_room(length)
{
    change_waiting(OUT, 1, PRODUCER, p);
    was_set = 0;
#ifdef NO_RECHECK_IN_WANT_ROOM
    no_room = true;
#else
    atomic { look_at_head(); no_room = !FITS(length) };
#endif
    if
    :: no_room
    :: else -> change_waiting(OUT, 0, PRODUCER, p); was_set = 0
    fi
}

/* ---- the consumer: c ------------------------------------------------------------------------ */

inline look_at_tail()
{
    load(IN.tail, c.tail, LOAD_TAIL, c.knows);
    assert(c.head <= c.tail && c.tail <= c.released + CAPACITY) /* RING-2 */
}

#define AT (c.head % CAPACITY)

/* Reads a record, and clears its bytes, so that states that behave alike are equal. */
inline take(what)
{
    assert(c.knows.bytes > c.head);  /* the header is written, and we know it */
    assert(IN_DATA.number[AT] == what);   /* whole, each once, in order */
    length = IN_DATA.size[AT];
    assert(c.knows.bytes >= c.head + length);
    assert(AT + length <= CAPACITY && c.head + length <= c.tail); /* RING-5 */
    IN_DATA.number[AT] = 0;
    IN_DATA.size[AT] = 0;
    c.head = c.head + length;
    length = 0
}

inline read()
{
    if
    :: c.head == c.tail -> atomic { look_at_tail() }
    :: else
    fi;
    d_step {
        got = c.head != c.tail;
        if
        :: got ->
            if
            :: c.knows.bytes > c.head && IN_DATA.number[AT] == PADDING ->
                assert(AT != 0 && AT + IN_DATA.size[AT] == CAPACITY); /* RING-6 */
                take(PADDING);
                assert(c.head != c.tail) /* RING-6: published with the record after it */
            :: else
            fi;
            c.records++;
            take(c.records)
        :: else
        fi
    }
}

/* amp_release, and the ring that it asks for. RING-10. */
inline release()
{
    if
    :: c.head != c.released ->
        atomic {
            c.did.bytes = c.head; /* the views of the records are released by now */
            store(IN.head, c.records, c.head, STORE_HEAD, c.did);
            c.released = c.head
        };
        if
        :: CAPACITY - (c.tail - c.head) >= QUARTER ->
#ifdef LOOK_AT_WAITING_FIRST
            atomic { look(IN.waiting, was_set, CONSUMER) };
            if
            :: was_set -> change_waiting(IN, 0, CONSUMER, c)
            :: else
            fi;
#else
            change_waiting(IN, 0, CONSUMER, c);
#endif
            ring_if_it_was_set()
        :: else
        fi
    :: else
    fi
}

/* amp_sleep. RING-9. */
inline sleep()
{
    change_sleeping(IN, 1, CONSUMER, c);
    was_set = 0;
#ifdef NO_RECHECK_IN_SLEEP
    may_sleep = true;
#else
    atomic { look_at_tail(); may_sleep = c.head == c.tail };
#endif
    if
    :: may_sleep
    :: else -> change_sleeping(IN, 0, CONSUMER, c); was_set = 0
    fi
}

inline awake()
{
#ifdef AWAKE_BY_A_STORE
    atomic { store_zero(IN.sleeping) }
#else
    change_sleeping(IN, 0, CONSUMER, c);
    was_set = 0
#endif
}

/* amp_asleep: the flag, and if it is set the tail. */
inline look_whether_asleep()
{
    atomic { look(IN.sleeping, asleep, CONSUMER) };
    if
    :: asleep -> atomic {
        load(IN.tail, length, RELAXED, c.knows);
        asleep = length == c.tail;
        length = 0 }
    :: else
    fi
}

/* ---- a side: shm.py's ShmLink in its event loop --------------------------------------------- */

/* After a record did not fit: SHM-5. */
inline stall()
{
    publish();
    want_room(p.wanted);
    again = again || !no_room;
    no_room = false
}

/* A batch of records of any sizes, and a flush, while nothing is in the outbox. */
inline send()
{
    do
    :: p.wanted == 0 && p.records < RECORDS_OF(me) ->
        select(size : SMALLEST .. LARGEST);
        write(size);
        if
        :: written -> size = 0
        :: else -> p.wanted = size; size = 0; stall()
        fi;
        written = false
#ifdef FULL_BATCHES
    :: p.records == RECORDS_OF(me) || p.wanted != 0 -> break
#else
    :: p.tail != p.published || p.wanted != 0 -> break
#endif
    od;
    publish()
}

/* ShmLink._pump */
inline pump()
{
    if
    :: p.wanted != 0 ->
        write(p.wanted);
        if
        :: written -> p.wanted = 0; written = false; publish()
        :: else -> stall()
        fi
    :: else
    fi
}

/* Inlet.drain: the batch may end after any record, and a release may follow any. SHM-2, SHM-3. */
inline drain_a_batch()
{
    read();
    if
    :: got ->
        awake();
        do
        :: got -> read()
#ifndef FULL_BATCHES
        :: got -> release(); read()
        :: got -> break
#endif
        :: !got -> break
        od;
        release()
    :: else
    fi;
    if
    :: got -> again = true; got = false
    :: else -> sleep(); again = again || !may_sleep; may_sleep = false
    fi
}

inline drain()
{
    if
    :: RECORDS_OF(1 - me) == 0 -> skip /* one ring only: this side receives nothing */
    :: else -> drain_a_batch()
    fi
}

/* answer() of link.pyx clears the bell first. SHM-4. */
inline clear_bell()
{
#if !defined(BELL_CLEARED_LATE) && !defined(BELL_NOT_CLEARED) && !defined(ASLEEP_FIRST)
    bell[me] = 0;
#endif
#ifdef BELL_ORDERS_NOTHING
    skip
#else
    hear(IN.sleeping)
#endif
}

/* amp_asleep, as answer() calls it */
inline look_whether_link_sleeps()
{
    if
    :: RECORDS_OF(1 - me) == 0 -> asleep = true /* one ring only */
    :: else -> look_whether_asleep()
    fi
}

/* answer(): a link that has an empty outbox and is still asleep did not cause the ring, and gets no
 * turn (SHM-3). Endpoint._turn: nor does a link with a continuation scheduled, which gets a turn
 * anyway (SHM-5). */
inline rung()
{
    if
#ifndef OUTBOX_IGNORED
    :: p.wanted != 0
#endif
    :: else -> look_whether_link_sleeps()
    fi;
#ifdef ASLEEP_FIRST
    bell[me] = 0;
#endif
    turn = !asleep && !again;
#ifdef CONTINUATION_ONLY_RECEIVES
    only_receives = (turn -> p.wanted == 0 : only_receives);
#endif
    asleep = false
}

/* ShmLink._service */
inline service()
{
#ifdef CONTINUATION_ONLY_RECEIVES
    if
    :: only_receives
    :: else -> pump()
    fi;
    drain();
    only_receives = only_receives && again
#else
    pump();
    drain()
#endif
}

#define FINISHED (p.records == RECORDS_OF(me) && p.wanted == 0 && p.tail == p.published \
    && c.records == RECORDS_OF(1 - me) && c.head == c.released)

proctype Side(bit me)
{
    Producer p;
    Consumer c;
    byte length, size;
    bit written, no_room, got, may_sleep, was_set, asleep, turn;
#ifdef CONTINUATION_ONLY_RECEIVES
    bit only_receives;
#endif
    bit again = true; /* the first turn, at the end of which the side first sleeps: SHM-3 */

    do
    :: p.wanted == 0 && p.records < RECORDS_OF(me) -> send()
    :: atomic {
        if
        :: again -> again = false; turn = true
        :: bell[me] -> clear_bell()
        fi };
        if
        :: turn
        :: else -> rung()
        fi;
        if
        :: turn -> turn = false; service()
        :: else
        fi;
#ifdef BELL_CLEARED_LATE
        bell[me] = 0
#endif
    :: FINISHED -> break
    od
}

/* A bell may ring for another link, or for records that the side has read already. */
proctype Spurious()
{
    byte left = SPURIOUS;
end:
    do
    :: atomic { left > 0 -> left--; if :: bell[0] = 1 :: bell[1] = 1 fi }
    od
}

init {
    atomic {
        ring[0].sleeping.looked_at[CONSUMER] = true; /* amp_asleep */
        ring[1].sleeping.looked_at[CONSUMER] = true;
#ifdef LOOK_AT_SLEEPING_FIRST
        ring[0].sleeping.looked_at[PRODUCER] = true;
        ring[1].sleeping.looked_at[PRODUCER] = true;
#endif
#ifdef LOOK_AT_WAITING_FIRST
        ring[0].waiting.looked_at[CONSUMER] = true;
        ring[1].waiting.looked_at[CONSUMER] = true;
#endif
        ring[0].tail.stores[0].made = true; ring[0].head.stores[0].made = true;
        ring[1].tail.stores[0].made = true; ring[1].head.stores[0].made = true;
        run Side(0); run Side(1); run Spurious()
    }
}
