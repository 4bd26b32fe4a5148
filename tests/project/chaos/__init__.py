"""Chaos: a steady mixed load on a pool whose workers die at random, and exact accounts of it.

    python -m tests.project.chaos --seconds 3600 --seed 1    (from the root, or `make chaos`)

    load.py, killers.py --> Pool --> tasks.py in workers --> a journal of executions
            |                                                      |
            +--> accounts.py: a journal of outcomes ---------------+--> report.py: the verdict

CHAOS-1  Each task has a number. It must end in exactly one outcome, and be executed exactly once;
    at most once if its worker died or its caller gave up; a retried task as often as is allowed.
CHAOS-2  The workers' own journal, not the pool, records what was executed: 8 bytes, appended
    by one system call before the task does anything else, so that SIGKILL finds it whole or absent.
CHAOS-3  A result names its task, so that one task's result cannot pass for another's.
CHAOS-4  Both journals are files, read at the end, and so is meter.py's table of samples, so that
    the parent's memory shows only what the pool keeps.
CHAOS-5  Every death has a known cause: a signal that was sent, or a task that was to end its
    worker.
CHAOS-6  A death costs tasks that were started. A worker may die between the mark and the journal,
    so that each death may cost one that was not executed, but no more.
CHAOS-7  How much is under way depends on how fast the machine is, and memory on that. So once a
    minute nothing is begun until all operations have ended; what is held then is what is kept.
    Allocators keep more, by what there once was at the same time: so the first minute is crowded.
CHAOS-8  The plan, load and kills, is drawn from the seed; when things happen depends on the
    machine.
CHAOS-9  A task ends by its time limit only if it may: its limit is the short one. One that takes
    longer by its nature never has a result, and one that does not react ends only with its worker:
    its error has no cause there. The pool ends no other worker, and counts as many time-outs as
    there were.
CHAOS-10  A stream is one task. Its reader gets each value in its place, up to the end, or to the
    error which is the stream's outcome.
CHAOS-11  The number of workers changes at random, and so does their memory, beyond their limit: no
    task is lost or run again by that.
CHAOS-12  A task runs within the lifespan of its worker, and no two workers have entered one with
    the same index: each locks a file of that number. A worker that finds it otherwise exits by a
    code that nothing explains (CHAOS-5).
CHAOS-13  A task sees the context variable of its submitter, and of no other: it returns the value.
CHAOS-14  At the end the pool's statistics have no task that waits or runs.
CHAOS-15  Over a dask cluster (`--backend dask`) hosts are harmed too (hosts.py). All that a host
    was sent counts as started, if it is lost: so such tasks have an outcome of their own, which
    explains that they were not executed. A host is lost only if it was killed, or stood still for
    long, and then it must be. Another takes over its indices while what ran there may still end,
    so that no index is entered twice is judged by what the pool says, and not by locks.
"""
