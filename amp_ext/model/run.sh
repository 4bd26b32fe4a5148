#!/bin/sh
# Checks the models of the ring and of the loans of a segment with Spin. Spin must find no error in a
# model as written, and an error in every mutant; otherwise the exit code is not 0. Needs spin and a C compiler (CC).
#
#   amp_ext/model/run.sh [brief|short|full|deep]
#
# brief: some seconds, one check of each and four mutants, for the test suite; short: a minute,
# 0.5 GB; full, the default: two minutes, 0.7 GB; deep: five minutes, 2.7 GB.
set -eu

extent=${1:-full}
case $extent in brief | short | full | deep) ;; *) sed -n '2,8p' "$0" >&2; exit 2 ;; esac
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# explore OPTIMIZATION SEARCH MACRO...: builds and runs the verifier; its output is in pan.log.
explore() {
    optimization=$1 search=$2
    shift 2
    for macro; do
        shift
        set -- "$@" "-D$macro"
    done
    spin -a "$@" "$here/$model.pml" >spin.log 2>&1 || { cat spin.log; exit 1; }
    case $search in
    states) set -- -DSAFETY ;;
    cycles) set -- -DNP ;;
    esac
    "${CC:-cc}" "$optimization" -w -DCOLLAPSE "$@" -o pan pan.c
    if [ "$search" = cycles ]; then set -- -l; else set --; fi
    ./pan -m100000 -w24 "$@" >pan.log 2>&1 || true
    rm -f ./*.trail
}

number() { sed -n "s/$1/\1/p" pan.log | head -n 1; }

# sound NAME SEARCH MACRO...
sound() {
    name=$1
    shift
    explore -O2 "$@"
    if ! grep -q 'errors: 0$' pan.log \
        || grep -Eq 'not completed|max search depth|out of memory' pan.log; then
        cat pan.log
        echo "FAILED: $name ($*)"
        exit 1
    fi
    printf '%-72s %10s states, depth %s, %s s\n' "$name" \
        "$(number '^ *\([0-9]*\) states, stored.*')" \
        "$(number '.*depth reached \([0-9]*\).*')" \
        "$(number '.*elapsed time \([0-9.]*\).*')"
}

# caught NAME SEARCH MACRO...
caught() {
    name=$1
    shift
    explore -O0 "$@" # compiling takes longer than exploring
    how=$(number '^pan:1: \(assertion violated.*\|invalid end state\|non-progress cycle\) (at.*')
    if [ -z "$how" ]; then
        cat pan.log
        echo "FAILED: not caught: $name ($*)"
        exit 1
    fi
    mutants=$((mutants + 1))
    printf '  caught: %-48s %s\n' "$name" "$how"
}

echo "as written"
model=ring
small='states CAPACITY=4 RECORDS0'
mutants=0
mutant='states CAPACITY=4 RECORDS0=3'
sound "one ring, 2 records" $small=2 SPURIOUS=2
model=segment
sound "one segment, 4 loans, 2 forks" states LOANS=4 FORKS=2
model=ring
if [ "$extent" = brief ]; then
    caught "tail stored relaxed" $mutant STORE_TAIL=RELAXED
    caught "sleeping exchanged relaxed" $mutant CHANGE_SLEEPING=RELAXED
    caught "no second look in sleep" $mutant NO_RECHECK_IN_SLEEP
    model=segment
    caught "a fork under way not seen" states FORKING_NOT_NOTED
    exit
fi
sound "one ring, 2 records: no execution is endless" cycles CAPACITY=4 RECORDS0=2
sound "one ring, 4 records in full batches" $small=4 FULL_BATCHES
sound "both rings, 2 records and 1, bells for another link" $small=2 RECORDS1=1 SMALLEST=2
sound "both rings, 2 records each way" $small=2 RECORDS1=2 SMALLEST=2 SPURIOUS=0
if [ "$extent" != short ]; then
    sound "one ring, 3 records" $small=3
    sound "one ring of 64 bytes, 3 records of up to half of it" states RECORDS0=3 SMALLEST=3
    sound "one ring, 5 records in full batches" $small=5 FULL_BATCHES SPURIOUS=0
    sound "both rings full at once, 3 records each way" \
        $small=3 RECORDS1=3 SMALLEST=2 FULL_BATCHES SPURIOUS=0
    sound "both rings: no execution is endless" cycles CAPACITY=4 RECORDS0=2 RECORDS1=1 SMALLEST=2
fi
if [ "$extent" = deep ]; then
    sound "one ring of 64 bytes, 3 records of any size" states RECORDS0=3
    sound "one ring, 4 records" $small=4 SPURIOUS=0
fi

# `short` leaves out mutants that the stress program catches, too.
unless_short() { [ "$extent" = short ] || "$@"; }

echo "mutants"
unless_short caught "tail stored relaxed" $mutant STORE_TAIL=RELAXED
unless_short caught "tail loaded relaxed" $mutant LOAD_TAIL=RELAXED
unless_short caught "head stored relaxed" $mutant STORE_HEAD=RELAXED
unless_short caught "head loaded relaxed" $mutant LOAD_HEAD=RELAXED
caught "sleeping exchanged relaxed" $mutant CHANGE_SLEEPING=RELAXED
caught "waiting exchanged relaxed" $mutant CHANGE_WAITING=RELAXED
caught "sleeping looked at before it is exchanged" $mutant LOOK_AT_SLEEPING_FIRST
caught "waiting looked at before it is exchanged" $mutant LOOK_AT_WAITING_FIRST
caught "sleeping cleared by a store in awake" $mutant AWAKE_BY_A_STORE
unless_short caught "no second look in sleep" $mutant NO_RECHECK_IN_SLEEP
unless_short caught "no second look in want_room" $mutant NO_RECHECK_IN_WANT_ROOM
caught "bell cleared after reading" $mutant BELL_CLEARED_LATE
caught "bell cleared after the look whether asleep" $mutant ASLEEP_FIRST
caught "bell orders nothing" $mutant BELL_ORDERS_NOTHING
caught "bell rung before sleeping is cleared" \
    states CAPACITY=4 RECORDS0=1 RUNG_BEFORE_SLEEPING_IS_CLEARED
caught "outbox ignored if asleep" $mutant OUTBOX_IGNORED
caught "continuation that only receives" states CAPACITY=4 RECORDS0=3 RECORDS1=1 SMALLEST=2 \
    SPURIOUS=0 FULL_BATCHES CONTINUATION_ONLY_RECEIVES
caught "bell not cleared" cycles CAPACITY=4 RECORDS0=2 BELL_NOT_CLEARED
caught "a record larger than half the ring (RING-7)" $mutant LARGEST=3
model=segment
caught "answer stored relaxed" states STORE_ANSWER=RELAXED
caught "answer loaded relaxed" states LOAD_ANSWER=RELAXED
caught "what a child has a copy of is not kept" states NEVER_KEPT
caught "forks counted once" states COUNTED_ONCE
caught "a fork under way not seen" states FORKING_NOT_NOTED
caught "forks counted before the look for one under way" states COUNTED_FIRST
echo "all $mutants mutants caught"
