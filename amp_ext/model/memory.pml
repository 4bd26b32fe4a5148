/* The memory of C11, as far as ring.h and segment.h use it: what ring.pml and segment.pml read and
 * write.
 *
 * A word is not one value but the list of all its stores, in the order in which they were made
 * (modification order). A load may return any store, except one older than a store that its thread
 * knows of: a stale value is possible until an ordering forbids it. A release store carries what
 * its thread has done before; an acquire load that reads that store makes it known to the loading
 * thread ("synchronizes with"). A read-modify-write reads the last store, and its own store carries
 * also what the last one carried (the release sequence). A ring has two threads, and a thread need
 * not pass on what it learnt from the other one, so a store carries only what its own thread did.
 *
 * This model is weaker than a machine with store buffers (x86's TSO). There, a store that the other
 * side does not know of is still in the buffer, and a buffer that is emptied in order is a row of
 * release stores. Here, stores to different words may also pass each other, as on ARM and POWER.
 * The model is weaker than C11 too, so what holds here holds there:
 *
 *   - A read-modify-write with seq_cst counts as acq_rel only (ring.h's argument needs no more).
 *   - What a thread learns from the words of one ring it does not know for the other ring.
 *   - A doorbell orders only one thing, which amp_asleep needs: a consumer that has cleared its
 *     bell knows the newest store to `sleeping` that the producer made before it rang. (A system
 *     call orders everything, but nothing else in ring.h shall depend on that.)
 *
 * Headers and payloads are not lists of stores. They are checked for races, as ThreadSanitizer does
 * it: a side that touches bytes must know that the other side is done with them, or else it is an
 * error at once. So it is enough that bytes have one value. It is an error, too, where a machine
 * would delay a load past a store, which the order of execution here would not show.
 */

/* What a thread has done, and the other must know of before it relies on it. */
typedef Deeds {
    byte stores;   /* the number of its newest store to its cursor's word */
    byte bytes;    /* a cursor: the bytes before it are written, or read, for good */
};

/* One store of a word that has one writer. Its index in the array is its number: the count of
 * records written or read by then, not the count of stores, so that states that behave alike are
 * equal. */
typedef Store {
    bit made;
    byte value;
    byte bytes;    /* carried */
};

typedef Word {
    Store stores[STORES];
    byte newest;
};

/* A word that both threads change, by read-modify-writes. A read-modify-write sees the last store
 * only. A plain load may see any value that the flag had since the last change by the loading
 * thread, which is 0 or 1. `stale` is not 0 if that may be another value than `value`. It is UNTOLD
 * if the thread that changed the flag has not rung the bell since, and TOLD if it has: once the
 * loading thread has cleared that bell, it knows the newest store. */
typedef Flag {
    bit value;
    Deeds from[2];   /* carried, of producer and consumer */
    byte stale[2];   /* for the loads of producer and consumer */
    bit looked_at[2]; /* whether they have plain loads at all; if not, `stale` stays 0 */
};

#define UNTOLD 1
#define TOLD 2

inline raise(mine, other)
{
    mine = (other > mine -> other : mine)
}

inline learn(mine, other)
{
    raise(mine.stores, other.stores);
    raise(mine.bytes, other.bytes)
}

/* word = new, by its only writer, a thread that did `mine`; `number` is larger than any before. */
inline store(word, number, new, order, mine)
{
    mine.stores = number;
    word.newest = number;
    word.stores[number].made = true;
    word.stores[number].value = new;
    word.stores[number].bytes = (order == RELEASE -> mine.bytes : 0)
}

/* result = word, by its only reader, a thread that knows `other` of the writer: the newest store it
 * knows, or a newer one. No later load can return a store older than this, so those are cleared. */
inline load(word, result, order, other)
{
    do /* Spin explores every way through this loop */
    :: other.stores < word.newest -> clear_store(word.stores[other.stores]); other.stores++
    :: word.stores[other.stores].made -> break
    od;
    result = word.stores[other.stores].value;
    if
    :: order == ACQUIRE -> raise(other.bytes, word.stores[other.stores].bytes)
    :: else
    fi
}

inline clear_store(gone)
{
    gone.made = false;
    gone.value = 0;
    gone.bytes = 0
}

/* result = flag by a plain, relaxed load of `role`. */
inline look(flag, result, role)
{
    if
    :: result = flag.value
    :: flag.stale[role] -> result = 1 - flag.value
    fi
}

/* The producer rings the consumer's bell; the consumer has cleared it. */
inline tell(flag)
{
    flag.stale[1] = (flag.stale[1] == UNTOLD -> TOLD : flag.stale[1])
}

inline hear(flag)
{
    flag.stale[1] = (flag.stale[1] == TOLD -> 0 : flag.stale[1])
}

/* old = flag, flag = new in one step, by a thread that did `mine` and knows `other` of the other
 * thread. If relaxed, the store carries on what the last one carried, and adds nothing; the thread
 * learns nothing. */
inline exchange(flag, new, old, order, role, mine, other)
{
    old = flag.value;
    flag.value = new;
    flag.stale[role] = 0;
    flag.stale[1 - role] =
        (flag.looked_at[1 - role] && old != new -> UNTOLD : flag.stale[1 - role]);
    if
    :: order == ACQ_REL -> learn(other, flag.from[1 - role]); learn(flag.from[role], mine)
    :: else
    fi
}

/* flag = 0 by a plain store of the consumer, which ends what the flag carried. (In C11 this store
 * may also precede the last one in modification order. Only a mutant uses it, and Spin catches the
 * mutant without that.) */
inline store_zero(flag)
{
    flag.value = 0;
    flag.stale[1] = 0;
    flag.from[0].stores = 0; flag.from[0].bytes = 0;
    flag.from[1].stores = 0; flag.from[1].bytes = 0
}
