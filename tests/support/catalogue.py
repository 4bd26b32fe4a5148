"""The catalogue of failures: what goes wrong in such systems, a row for each, and its tests.

A test that shows a row says so by `@pytest.mark.row("B13")`. conftest.py loads this module as a
plugin: `pytest --collect-only -q` ends with the list of all rows and their tests, and
test_catalogue.py fails if there is a row without one.

A: values and functions. B: death. C: ring and frames. D: resources. E: life cycle. F: load.
G: what public bug reports and programs found.
"""

from __future__ import annotations

import pytest

ROWS = {
    "A1": "an argument that cannot be pickled fails alone, in the caller, by its number",
    "A2": "a function that cannot be pickled is refused, with the way out",
    "A3": "an argument that cannot be unpickled fails its task, and no worker",
    "A4": "a result that cannot be pickled fails its task alone",
    "A5": "a result that cannot be unpickled fails its task alone",
    "A6": "of errors that are hard to carry the text arrives, and the type where it can",
    "A7": "what ends programs, raised by a task, ends that task only",
    "A8": "whatever can be called works, and what cannot be is refused at the call",
    "A9": "an exception_handler that fails is logged, and the task's own error kept",
    "A10": "inputs that are empty, of one item, raising midway, or endless",
    "A11": "one result awaited twice, by two tasks, iterated and awaited",
    "A12": "items do not share their arguments",
    "B13": "a worker that dies is reported by its signal or exit code, and the others go on",
    "B14": "exactly the started tasks of a dead worker fail; the others run elsewhere",
    "B15": "a result that was published before the death is delivered",
    "B16": "nothing runs twice, whenever its worker is killed",
    "B17": "workers that kill each other leave no call unanswered",
    "B18": "a death is noticed though a process that the worker forked lives on",
    "B19": "an initializer that fails breaks the pool with its error, without a storm",
    "B20": "workers that cannot be started are an error of those who wait for them",
    "B21": "a backlog of one-task workers is finished, whether the pool is closed or dropped",
    "B22": "terminate() fails what is awaited and lets finally blocks run",
    "B23": "workers of a killed parent end, whatever either of them was doing",
    "B24": "all killed at once leave nothing, and the next start has nothing to say",
    "B25": "a forked copy of the parent may not use its pools, and does not touch their workers",
    "C26": "ring and codecs against models, and the codecs against each other",
    "C27": "cursors beyond 2^32 and 2^64, payloads of every length",
    "C28": "two threads over one ring, under sanitizers",
    "C29": "a model of the ring, all its interleavings, and mutants that must be caught",
    "C30": "any bytes as the mapping are an error or data",
    "C31": "a peer that damages the ring is killed, its tasks fail, the parent is sound",
    "C32": "a writer killed at any step leaves whole frames",
    "C33": "no wake-up is lost",
    "C34": "two full rings do not wait for each other, and a full doorbell does not block",
    "D35": "memory that the system refuses leads to the other backend or an OSError",
    "D36": "neither side can shrink the memory under the other",
    "D37": "pools that come and go leave nothing",
    "D38": "a call that is given up leaves nothing, and its late result goes nowhere",
    "D39": "millions of tasks, gigabytes, and endless inputs in bounded memory",
    "E40": "Ctrl-C is one KeyboardInterrupt, the parent's",
    "E41": "a script without a main guard gets an error that says so",
    "E42": "programs end with their pools open, forgotten, or without a loop",
    "E43": "the program's own children and ours do not take each other's exit codes",
    "E44": "pools within workers work, or are refused in words",
    "E45": "python -I, python -m, an interactive session, a frozen program",
    "E46": "a with block that is left by an error, a cancellation or a timeout leaves no worker",
    "F47": "random kills under a steady load: everything is answered once, memory stays",
    "G48": "no worker gets a map's tasks while others idle, whatever kind of input it has",
    "G49": "an encoder without memory fails that item alone, and crashes no process",
    "G50": "a container that changes while it is encoded, or is seen half decoded, is no fault",
    "G51": "an argument too large for its worker's memory fails alone, and the worker lives",
    "G52": "a worker's loop may have asyncio.eager_task_factory, on every Python",
    "G53": "a system call that a sandbox refuses has its way round, or is a clear error",
    "G54": "a launch that lacks descriptors is an error, and no crash at exit",
    "G55": "python -bb reports nothing",
    "G56": "childconcurrency=sys.maxsize works",
    "G57": "cancelling many calls takes time in proportion to their number",
    "G58": "results_generator() and aiter(result) are async generators, which can be closed",
    "G59": "a worker that runs nothing ends as multiprocessing ends a process: atexit runs",
    "G60": "a plain function that calls asyncio.run() learns what to do, without noise",
    "G61": "a subclass that overrides what 0.9.1 called is refused; old import paths work",
    "G62": "a result that cannot be pickled names itself, its function and the way out",
    "G63": "functions and classes of a session get one hint, wherever they are passed",
    "G64": "calls that were never awaited log nothing when their pool ends",
    "G65": "exception_handler gets tasks that failed, not callers that gave up",
    "G66": "initargs=None, items that are no arguments, calls of another thread: accepted or named",
    "G67": "an iterator is read after the call, as map's docstring says",
    "G68": "a copy that an item forks ends before it runs the engine, and with its parent",
    "G69": "an error shows its remote traceback once, the user's frames, and its own line last",
    "G70": "a forgotten main guard is one line, not a traceback a worker",
    "G71": "make demo installs what it needs, says what it compares, prints plain lines to a file",
    "G72": "counts of 2^31 are corrupt frames on every platform; no 64-bit atomics: a pure wheel",
    "G73": "items pass for coroutines wherever plain tasks do",
    "G74": "each item's task has a name of its own",
    "G75": "what makes an import fail is shown as its cause; gevent's patches are survived",
    "G76": "a thread that an item left does not keep a retired worker alive",
    "G77": "README's session for each worker holds when opening it awaits",
    "G78": "results that share memory by descriptor arrive by value, and outlive their worker",
    "G79": "a pool that is used in a second loop names the ways out",
    "H80": "a cancelled map of an endless iterator frees its input and lets the pool close",
    "H81": "an item that runs for ever does not hold up as_completed over an endless input",
    "H82": "code of the user's that cancels its own map loses no task",
    "H83": "maps whose await timed out in a gather let their pool close",
    "H84": "a bar of tqdm starts no process and no thread",
    "H85": "asyncio.wait takes what ensure_future made of an apply",
    "H86": "another thread does not write into a link by cancelling a call",
    "H87": "priorities that are used once leave nothing behind",
    "H88": "a cancelled call that waits does not keep its arguments",
    "H89": "a parent that was blocked times out nothing that ended meanwhile",
    "H90": "a killed task is never retried, its neighbours are, and tasks behind it run elsewhere",
    "H91": "a worker over its memory limit loses no task",
    "H92": "a lifespan that ends by itself replaces its worker",
    "H93": "an executor finishes its calls while the interpreter exits",
    "H94": "values of a stream are neither lost nor changed on their way",
    "H95": "a copy that a call in a thread forks does no harm",
    "H96": "a slow reader of a stream with a time limit is no time-out",
    "H97": "a generator that its limit cancelled and that waits for its reader is killed",
    "H98": "calls that are cancelled while they wait are counted in stats()",
    "H99": "a stream of a worker that is to leave does not keep other tasks from running",
    "H100": "a call that was given up and never returns does not hold a worker that is to leave",
    "H101": "a call that was given up while it waited for a thread holds up nothing",
    "H102": "each task is in exactly one number of stats(), at any time",
    "H103": "a pool in a thread replaces its workers after the main module's code has ended",
    "H104": "a value that was yielded before its worker died is not lost",
    "H105": "a worker that names a segment it never passed breaks its own link and no other",
    "H106": "a process that dies at any step of a segment's life leaves nothing of it",
    "H107": "the memory of an array is not used again while a forked copy has it",
    "H108": "a payload that was half received when its link closed is freed",
    "H109": "a shared object that is released stays for tasks that wait, and for new workers",
    "H110": "an array that was received is changed by no later one, and not by its sender",
    "H111": "a host that is found before the subscription took effect is used",
    "H112": "what the first process of a lost host gave back as it ended counts as started",
    "H113": "a message that cannot be written ends its stream, and no task hangs",
    "H114": "with many hosts each process gets more than one item at a time",
    "H115": "a test that hangs does not end the cluster that other tests use",
    "H116": "an exception that holds what cannot be pickled arrives as its type",
    "H117": "a program that imports tblib, or dask, gets exceptions without its own frames",
    "H118": "what a process of a host had finished, or yielded, when it died is not lost",
    "H119": "a pool over a cluster that is forgotten before it has a host leaves the cluster",
    "H120": "a pool over a cluster that ends while it connects leaves no connection",
    "H121": "a loop that ends before its pool over a cluster leaves no task and no connection",
    "H122": "a host whose network is cut is noticed, settles each task once, and is used again",
    "H123": "a frame that is not sent keeps what it would have told of segments",
    "H124": "a forked copy of a process does not keep its monitor's socket alive",
    "H125": "a monitor without descriptors pauses, and does not spin",
    "H126": "the error of an input comes last from as_completed too, after items that still run",
    "H127": "a result does not wait for a slow task that runs after its own in the same worker",
    "H128": "behind a slow plain function, which no other was measured by, no fast one waits",
    "H129": "a thread that returns a value after the limit of its task is no timeout",
    "H130": "a thread that never returns after its limit costs its worker, and holds up no call",
    "H131": "a time-out around `async for` over a map leaves nothing running in the workers",
    "H132": "a cancelled step of an iteration loses no result",
    "H134": "results that were taken early change nothing of those after them in their payload",
    "H135": "a suspended item that ends does not wait for another that then blocks the loop",
    "H136": "a shared object that was released harms no pool that a worker gives it to",
    "H137": "large bytes reach a process on a host as what they were, and it survives them",
    "H138": "a stopped dask worker keeps a new pool from no other host, and not from its end",
    "H139": "a dask worker that the scheduler cannot connect to breaks no pool that has others",
    "H140": "a host that was refused is used once a fit one announces itself at its address",
    "H141": "a host that announces itself while its address is tried is not forgotten",
    "H142": "a client that is closed is refused where it is given, and named",
    "H143": "a slow link is not a silent host, and one that stops midway in a message is",
    "H144": "a map of a huge range that is given up takes no memory for what was never taken",
    "H145": "a pool that is sent by mistake is named in the error",
    "H146": "a shared object that is released stays for the calls that an executor has in line",
    "H147": "a lent buffer that its receiver cannot map fails its item and harms no other",
    "H148": "an error is reported by a worker that has no descriptor left",
    "H149": "a shared object may be released in another thread while calls come and go",
    "H150": "a dask worker without this package breaks no pool that has others",
    "H151": "a host that is retired behind a slow link has sent all before it ends",
    "H152": "a host that is refused keeps a pool from no other, whichever answers first",
    "H153": "a host that can start no process keeps a pool from no other",
    "H154": "a shared object that a host cannot hold fails who asks for it, and no other task",
    "H155": "workers of several hosts with one process id have rates of their own in top",
    "H156": "a dask worker without this package may join a cluster that a pool uses",
    "H157": "the result of a Worker that does not fit into this process is a MemoryError",
    "H158": "hundreds of shared objects reach a worker that does not ask for their values",
    "H159": "a worker that is forked while a thread loads a shared object can load it too",
    "H160": "what a lifespan logs arrives before the first task",
    "H161": "a program that multiplies the threshold of collection finds it so in its workers",
    "H162": "a stream, as any other call, keeps a pool that the program has no reference to",
    "H163": "the target of a Process may be a method of its own, and the object finds itself there",
    "H164": "an async generator that suppresses its cancellation is not read on for ever",
    "H165": "a scheduler that ends the pool is asked about no further task of the map",
    "H166": "a host need not wait for a process that could not be sent to it",
    "H167": "a stream whose values found no memory ends with that error, and with no gap before it",
    "H168": "a scheduler may name a queue by any value: by None, too, deaths are noticed",
    "H169": "what the collector finds holds no buffer of a memory: neither a lock nor a complaint",
    "H170": "steps of several tasks that share an iterator lose nothing when some are cancelled",
    "H171": "a result that a step waits for is kept, though other steps read far ahead",
    "H172": "a payload over the limit of a frame fails its own task, by name",
    "H173": "what is cancelled while a frame is written, or pickled, breaks no link and is stopped",
    "H174": "a frame that arrives while a worker closes its loop cuts nothing of its end short",
    "H175": "a map ends with the last item of its iterator, though no worker has room for more",
    "H176": "the results of a map are in no cycle, whatever its input and its queues",
    "H177": "cancelling n maps that wait takes time in proportion to n",
    "H178": "large errors count in how far an endless input is read ahead, as results do",
    "H179": "a pool that ends adds no error to a map whose input was read to its end",
    "H180": "an iterator keeps the workers of all queues busy, and is read no further than needed",
    "H181": "a frame that a host has no memory for fails its own tasks, and shifts no other",
    "H182": "a host that fails after it was reached is tried less and less often, and named",
    "H183": "a place of a host that was lost gets one worker and not two",
    "H184": "a message of a cluster that found no memory leaves nothing of itself behind",
    "H185": "a frame that is not sent takes back no segment that another has lent",
    "H186": "user code within the codec finds no sequence with holes, and may empty its own",
    "H187": "an endless input of which nothing can be sent leaves the loop to others",
    "H188": "a step of as_completed that is cancelled keeps neither its reader nor its map",
    "H133": "Ctrl-C twice at the exit of an executor leaves no worker and no error of our own",
}

NO_TEST = "NO TEST"


def tests_of_rows(items: list[pytest.Item]) -> dict[str, list[str]]:
    """The names of the tests of each row, without their parameters."""
    found: dict[str, dict[str, None]] = {row: {} for row in ROWS}
    for item in items:
        name = item.nodeid.partition("[")[0]
        for mark in item.iter_markers("row"):
            for row in mark.args:
                found[row][name] = None
    return {row: list(names) for row, names in found.items()}


def pytest_itemcollected(item: pytest.Item) -> None:
    """A row that is not in the catalogue is a slip of the pen."""
    unknown = {row for mark in item.iter_markers("row") for row in mark.args} - set(ROWS)
    if unknown:
        raise pytest.UsageError(f"{item.nodeid}: no such row: {', '.join(sorted(unknown))}")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """After the list of tests, that of rows with their tests, a line for each row."""
    if session.config.option.collectonly:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line("")
        for row, tests in tests_of_rows(session.items).items():
            reporter.write_line(f"{row} {ROWS[row]}: {', '.join(tests) or NO_TEST}")
