/* Model of the loans of one segment (segment.h), which Spin checks as run.sh says, with mutants.
 *
 * The owner fills the segment and names it in a frame, loan after loan. The borrower has an object
 * in it until it stores the answer. Another thread of the borrower forks at any time, also by C
 * code, which holds no lock of Python; each child has copies of what lies there. Memory is that of
 * C11, see memory.pml. The ring that carries the frames is one word here, since ring.pml has all of
 * it. What one process has for itself alone, the count of forks, is sequentially consistent.
 *
 * Spin checks in every interleaving, for every stale value:
 *
 *   SEGMENT-C1: owner and borrower touch the data one after the other, by assertions as those on
 *   the bytes of a ring.
 *   SEGMENT-C2: what a child has a copy of never changes.
 *   SEGMENT-C3 needs no check: no child makes a step here but to read its copy.
 *
 * Options (-D): LOANS=n, FORKS=n, and the mutants of run.sh.
 */
#ifndef LOANS
#define LOANS 4
#endif
#ifndef FORKS
#define FORKS 2
#endif
#define STORES (LOANS + 1)

#define RELAXED 0
#define ACQUIRE 1
#define RELEASE 2
#define ACQ_REL 3
#ifndef STORE_ANSWER
#define STORE_ANSWER RELEASE
#endif
#ifndef LOAD_ANSWER
#define LOAD_ANSWER ACQUIRE
#endif

#include "memory.pml"

#define HALF_FILLED 255

/* ---- what is shared ------------------------------------------------------------------------- */

Word frames; /* the number of the last loan that a frame names */
Word answer; /* twice the number of the last loan that ended, and whether it is kept */
byte data;   /* the number of the loan that filled it */

/* ---- what the borrower's process has for itself --------------------------------------------- */

byte fork_count; /* before and after each fork */
byte forking;    /* forks under way */
byte held;       /* the loan whose object is alive, or 0 */
byte copied[FORKS]; /* by child: the loan of which it has a copy, or 0 */
bit born[FORKS];

proctype owner()
{
    Deeds did, knows;
    byte loan = 1, found;

    do
    :: loan > LOANS -> break
    :: else ->
        do
        :: loan == 1 -> break
        :: loan > 1 ->
            atomic { load(answer, found, LOAD_ANSWER, knows) }
            if
            :: found / 2 == loan - 1 -> break
            :: else /* another segment is filled meanwhile */
            fi
        od;
        if
        :: loan > 1 && found % 2 -> break /* never filled again */
        :: else
        fi;
        assert(knows.bytes == loan - 1); /* else the borrower may still be at it */
        data = HALF_FILLED;
        data = loan;
        did.bytes = loan;
        atomic { store(frames, loan, loan, RELEASE, did) }
        loan++
    od
}

proctype borrower()
{
    Deeds did, knows;
    byte loan = 1, found, since;
    bit kept;

    do
    :: loan > LOANS -> break
    :: else ->
        atomic { load(frames, found, ACQUIRE, knows) }
        if
        :: found < loan
        :: found == loan ->
            since = fork_count;
            held = loan;
            assert(knows.bytes >= loan);
            assert(data == loan);
            held = 0;
#ifdef COUNTED_FIRST
            kept = (fork_count != since);
            kept = kept || forking;
#else
            kept = (forking != 0);
            kept = kept || fork_count != since;
#endif
#ifdef NEVER_KEPT
            kept = 0;
#endif
            did.bytes = loan;
            atomic { store(answer, loan, 2 * loan + kept, STORE_ANSWER, did) }
            loan++
        fi
    od
}

proctype forker()
{
    byte child = 0;

    do
    :: child == FORKS -> break
    :: child < FORKS ->
#ifndef FORKING_NOT_NOTED
        forking++;
#endif
        fork_count++;
        atomic { copied[child] = held; born[child] = 1 }
#ifndef COUNTED_ONCE
        fork_count++;
#endif
#ifndef FORKING_NOT_NOTED
        forking--;
#endif
        child++
    od
}

proctype child(byte me)
{
    born[me];
    do
    :: copied[me] -> assert(data == copied[me])
    :: break
    od
}

init
{
    byte number = 0;

    atomic {
        frames.stores[0].made = true;
        answer.stores[0].made = true;
        run owner();
        run borrower();
        run forker();
        do
        :: number < FORKS -> run child(number); number++
        :: else -> break
        od
    }
}
