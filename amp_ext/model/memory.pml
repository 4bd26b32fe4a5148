/* The memory of C11, as far as ring.h uses it: what ring.pml's steps read and write.
 *
 * A word is not one value but all its stores, in the order in which they were made (modification
 * order). A load may return any store, except one older than a store that its thread knows of:
 * stale values are possible until an ordering forbids them. A release store carries what its thread
 * has done before, and an acquire load that reads it knows of that from then on ("synchronizes
 * with"). A read-modify-write reads the last store, and its own store carries also what that one
 * carried (the release sequence). A ring has two threads, and what one of them learnt from the
 * other it need not tell it again, so stores carry deeds of their own thread only.
 *
 * This is weaker than a machine with store buffers (x86's TSO): a store that no other side knows of is one
 * that is still in the buffer, and a buffer that is emptied in order is a row of release stores;
 * but here stores to different words may also pass each other, as on ARM and POWER. It is weaker
 * than C11 too, so what holds here holds there:
 *
 *   - a read-modify-write with seq_cst counts as acq_rel only (ring.h's argument asks no more);
 *   - what a thread learns by the words of one ring it does not know for the other ring;
 *   - a doorbell orders one thing only, which amp_asleep needs: who has cleared it knows what the
 *     ringer had stored to `sleeping` before. (A system call orders all, but nothing else of ring.h
 *     shall depend on it.)
 *
 * Headers and payloads are not stored that way but checked for races, as ThreadSanitizer does: who
 * touches bytes must know that the other side is done with them, else it is an error at once. So
 * nothing is lost by their having one value only; and an error it is also where a machine would
 * delay a load past a store, which the order of execution here would not show.
 */

/* What a thread has done that the other must know of before it may rely on it. */
typedef Deeds {
    byte stores;   /* the number of its newest store to its cursor's word */
    byte bytes;    /* a cursor: the bytes before it are written, or read, for good */
};

/* One store of a word that has one writer. Its place in the array is its number: not a plain count,
 * but the records written or read by then, so that states are alike which behave alike. */
typedef Store {
    bit made;
    byte value;
    byte bytes;    /* carried */
};

typedef Word {
    Store stores[STORES];
    byte newest;
};

/* A word that both change, by read-modify-writes. These see the last store only; a plain load may
 * see what the flag was since the own last change of who loads, and that is 0 or 1: `stale` says
 * that it may see the other than `value`. UNTOLD: and the side that changed the flag since has rung no
 * bell since; TOLD: it has, and once that bell is cleared the newest store is known. */
typedef Flag {
    bit value;
    Deeds from[2];   /* carried, of producer and consumer */
    byte stale[2];   /* for producer and consumer */
    bit looked_at[2]; /* whether they have plain loads at all, else the above is left out */
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

/* word = new by its only writer, who did `mine`; `number` is larger than any before. */
inline store(word, number, new, order, mine)
{
    mine.stores = number;
    word.newest = number;
    word.stores[number].made = true;
    word.stores[number].value = new;
    word.stores[number].bytes = (order == RELEASE -> mine.bytes : 0)
}

/* result = word, by its only reader, who knows `other` of its writer: that store or a newer one.
 * Older ones than this are gone for good, and forgotten. */
inline load(word, result, order, other)
{
    do /* every way through this loop is explored */
    :: other.stores < word.newest -> forget(word.stores[other.stores]); other.stores++
    :: word.stores[other.stores].made -> break
    od;
    result = word.stores[other.stores].value;
    if
    :: order == ACQUIRE -> raise(other.bytes, word.stores[other.stores].bytes)
    :: else
    fi
}

inline forget(gone)
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

/* old = flag, flag = new in one step, by a thread that did `mine` and knows `other` of the other.
 * Relaxed: hands on what it read, takes nothing and adds nothing. */
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

/* flag = 0 by a plain store of the consumer: what the flag carried ends here. (In C11 it may stand
 * before the last store in modification order, too; only a mutant does this, and is caught
 * without.) */
inline store_zero(flag)
{
    flag.value = 0;
    flag.stale[1] = 0;
    flag.from[0].stores = 0; flag.from[0].bytes = 0;
    flag.from[1].stores = 0; flag.from[1].bytes = 0
}
