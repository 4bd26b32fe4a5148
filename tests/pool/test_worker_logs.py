"""`Pool(logs=…)`: records of the workers' loggers reach the handlers of the parent's."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logging_targets
import workload
from aiomultiprocess import Pool, PoolExecutor, RoundRobin, WorkerLostError
from aiomultiprocess._parent.logs import threshold_of
from support import pool_script, run_script

pytestmark = pytest.mark.usefixtures("backend")


class Collecting(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def seen() -> Iterator[Collecting]:
    """A handler of the logger `of`, whose children the workers use."""
    handler = Collecting()
    logger = logging.getLogger("of")
    logger.addHandler(handler)
    logger.propagate = False
    yield handler
    logger.propagate = True
    logger.removeHandler(handler)


@pytest.mark.row("H160")
async def test_what_a_lifespan_logs_arrives_before_any_task(seen: Collecting) -> None:
    async with Pool(1, logs=True, lifespan=logging_targets.talkative):
        async with asyncio.timeout(20):
            while len(seen.records) < 2:  # noqa: ASYNC110 - a log has no events
                await asyncio.sleep(0.01)
    assert seen.texts == ["entering", "entered"]


async def test_records_reach_the_handlers_of_the_same_logger(
    seen: Collecting, start_method: str
) -> None:
    async with Pool(1, logs=True) as pool:
        pid = await pool.apply(logging_targets.say, ("one %s and %d", "word", 2))
    (record,) = seen.records
    assert record.getMessage() == "one word and 2"
    assert (record.name, record.levelno) == ("of.worker", logging.WARNING)
    assert record.process == pid != os.getpid()
    assert record.processName != "MainProcess"
    assert record.funcName == "say"


async def test_records_of_a_task_are_handled_before_its_result(seen: Collecting) -> None:
    async with Pool(1, logs=True) as pool:
        for number in range(20):
            await pool.apply(logging_targets.say_after_a_turn, (number,))
            assert seen.texts[-1] == f"number {number}"


async def test_records_of_a_worker_keep_their_order(seen: Collecting) -> None:
    async with Pool(1, logs=True) as pool:
        await pool.map(logging_targets.say_after_a_turn, range(2000))
    assert seen.texts == [f"number {number}" for number in range(2000)]


async def test_an_exception_arrives_as_text(seen: Collecting) -> None:
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.fail_and_say)
    (record,) = seen.records
    assert record.exc_info is None
    assert "LookupError: deep down" in (record.exc_text or "")
    assert "LookupError: deep down" in logging.Formatter().format(record)


async def test_extra_attributes_arrive_as_far_as_they_can(seen: Collecting) -> None:
    """LOGS-1"""
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say_with_extras)
    (record,) = seen.records
    assert record.getMessage() == "with <local>"
    assert (vars(record)["number"], vars(record)["local"]) == (5, "<local>")


async def test_records_of_other_threads_arrive(seen: Collecting) -> None:
    """LOGS-2"""
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say_from_a_thread, ("from a thread",))
        await pool.apply(workload.two)
    (record,) = seen.records
    assert (record.getMessage(), record.threadName) == ("from a thread", "of its own")


async def test_records_of_the_initializer_arrive_also_if_it_fails(seen: Collecting) -> None:
    start = {"initializer": logging_targets.say_at_start}
    async with Pool(1, logs=True, initargs=("begin",), **start) as pool:  # type: ignore[arg-type]
        await pool.apply(workload.two)
    async with Pool(1, logs=True, initargs=("fail",), **start) as pool:  # type: ignore[arg-type]
        with pytest.raises(LookupError):
            await pool.apply(workload.two)
    assert seen.texts == ["begin", "fail"]


async def test_the_levels_of_the_parent_hold_in_workers(
    seen: Collecting, monkeypatch: pytest.MonkeyPatch, start_method: str
) -> None:
    quiet, loud = logging.getLogger("of.quiet"), logging.getLogger("of.loud")
    quiet.setLevel(logging.ERROR)
    loud.setLevel(logging.DEBUG)
    try:
        async with Pool(1, logs=True) as pool:
            for name in ("of.quiet", "of.loud", "of.other"):
                for level in (logging.DEBUG, logging.WARNING, logging.ERROR):
                    options = {"level": level, "name": name}
                    await pool.apply(logging_targets.say, (f"{name} {level}",), options)
            assert await pool.apply(logging_targets.level_of, ("of.loud",)) == logging.DEBUG
    finally:
        quiet.setLevel(logging.NOTSET)
        loud.setLevel(logging.NOTSET)
    root = logging.getLogger().getEffectiveLevel()
    others = [level for level in (10, 30, 40) if level >= root]
    expected = ["of.quiet 40", "of.loud 10", "of.loud 30", "of.loud 40"]
    assert seen.texts == [*expected, *(f"of.other {level}" for level in others)]


@pytest.mark.parametrize("level", [logging.INFO, "INFO"])
async def test_a_level_replaces_that_of_the_root_logger(seen: Collecting, level: Any) -> None:
    async with Pool(1, logs=level) as pool:
        for number in (logging.DEBUG, logging.INFO, logging.WARNING):
            await pool.apply(logging_targets.say, (str(number),), {"level": number})
    assert seen.texts == ["20", "30"]


async def test_handlers_of_the_parent_do_nothing_in_workers(
    tmp_path: Path, start_method: str
) -> None:
    """LOGS-4"""
    file = tmp_path / "log"
    handler = logging.FileHandler(file)
    logging.getLogger().addHandler(handler)
    try:
        async with Pool(2, logs=True) as pool:
            await pool.map(logging_targets.say, [f"line {n}" for n in range(10)])
            assert await pool.apply(logging_targets.handlers_of_root) == ["LogSender"]
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert sorted(file.read_text().split()) == sorted(
        " ".join(f"line {n}" for n in range(10)).split()
    )


async def test_a_logger_that_the_parent_has_disabled_stays_silent(seen: Collecting) -> None:
    logger = logging.getLogger("of.worker")
    async with Pool(1, logs=True) as pool:
        logger.disabled = True
        try:
            await pool.apply(logging_targets.say, ("unheard",))
        finally:
            logger.disabled = False
    assert seen.texts == []


async def test_what_is_too_much_is_dropped_and_counted(
    seen: Collecting, caplog: pytest.LogCaptureFixture
) -> None:
    """LOGS-3"""
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say_all, (50_000,))
    dropped = next(r for r in caplog.records if "log records" in r.getMessage())
    assert isinstance(dropped.args, tuple)
    assert len(seen.records) + int(str(dropped.args[1])) == 50_000
    assert seen.texts == [f"number {number}" for number in range(len(seen.records))]


async def test_a_handler_that_fails_harms_nothing(
    seen: Collecting, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError("of the filter")

    logger = logging.getLogger("of.worker")
    logger.addFilter(refuse)
    try:
        async with Pool(1, logs=True) as pool:
            await pool.apply(logging_targets.say, ("refused",))
            assert await pool.apply(workload.two) == 2
    finally:
        logger.removeFilter(refuse)
    assert "could not be handled" in caplog.text
    assert "of the filter" in caplog.text


@pytest.mark.row("H211")
@pytest.mark.parametrize("kind", [LookupError, asyncio.CancelledError, GeneratorExit])
async def test_a_record_that_does_not_unpickle_takes_no_other_with_it(
    seen: Collecting, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say_three_of_which_one_raises, (kind,))
    assert seen.texts == ["before", "after"]
    assert "could not be handled" in caplog.text
    assert f"{kind.__name__}: not here" in caplog.text


@pytest.mark.row("H211")
def test_what_ends_programs_in_a_handler_is_raised_after_the_records_of_its_frame(
    seen: Collecting,
) -> None:
    class Ending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "number 1":
                raise SystemExit(3)

    async def main() -> None:
        async with Pool(1, logs=True) as pool:
            await pool.apply(logging_targets.say_all, (4,))
            await asyncio.Event().wait()

    logger = logging.getLogger("of.worker")
    logger.addHandler(ending := Ending())
    try:
        with pytest.raises(SystemExit, match="3"):
            asyncio.run(main())
    finally:
        logger.removeHandler(ending)
    assert seen.texts == ["number 0", "number 2", "number 3"]


@pytest.mark.row("H211")
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_ends_programs_while_a_record_is_unpickled_is_raised_after_the_others(
    seen: Collecting, kind: type[BaseException]
) -> None:
    """A signal handler of the program may have raised it there."""

    async def main() -> None:
        async with Pool(1, logs=True) as pool:
            await pool.apply(logging_targets.say_three_of_which_one_raises, (kind,))
            await asyncio.Event().wait()

    with pytest.raises(kind, match="not here"):
        asyncio.run(main())
    assert seen.texts == ["before", "after"]


async def test_a_worker_that_dies_loses_its_last_records_and_no_others(seen: Collecting) -> None:
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say, ("first",))
        with pytest.raises(WorkerLostError):
            await pool.apply(logging_targets.say_and_die)
        await pool.apply(logging_targets.say, ("of the next worker",))
    assert [text for text in seen.texts if text != "last words"] == ["first", "of the next worker"]


async def test_a_thread_of_an_idle_worker_is_heard(seen: Collecting) -> None:
    """LOGS-2"""
    arrived = asyncio.Event()
    seen.emit = lambda record: arrived.set()  # type: ignore[method-assign]
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say_later_from_a_thread)
        await arrived.wait()


async def test_a_pool_that_is_closed_delivers_all_records(seen: Collecting) -> None:
    pool = Pool(2, logs=True)
    results = pool.map(logging_targets.say_after_a_turn, range(500))
    pool.close()
    await results
    await pool.join()
    assert sorted(seen.texts) == sorted(f"number {number}" for number in range(500))


@pytest.mark.row("H208")
@pytest.mark.parametrize("end", [Pool.close, Pool.terminate])
async def test_what_a_worker_logs_at_its_end_arrives_though_its_link_is_full(
    seen: Collecting, caplog: pytest.LogCaptureFixture, end: Callable[[Pool], None]
) -> None:
    """LOGS-5"""
    pool = Pool(1, logs=True)
    await pool.apply(logging_targets.say_when_the_loop_ends, (5000,))
    end(pool)
    await pool.join()
    numbers = [int(text.split()[0]) for text in seen.texts]
    assert numbers == list(range(5000))
    assert "log records" not in caplog.text


BLOCKED = """
seen = logging.NullHandler()
texts = []
seen.handle = lambda record: texts.append(record.getMessage())
logging.getLogger("of").addHandler(seen)
logging.getLogger("of").propagate = False
pool = Pool(1, logs=True, grace=0.4)
await pool.apply(logging_targets.say_when_the_loop_ends, (5000,))
pids = [process.pid for process in pool.processes]
pool.close()
os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)  # and read nothing
await pool.join()
print(len(texts))
"""


@pytest.mark.row("H208")
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="it has to wait without reaping")
def test_records_for_which_a_blocked_parent_leaves_no_room_are_counted(tmp_path: Path) -> None:
    """LOGS-5"""
    script = run_script(tmp_path, pool_script(BLOCKED, setup="import logging, logging_targets"))
    said = re.search(r"^worker \d+ exits with up to (\d+) log records unsent", script.err, re.M)
    assert said is not None, script.err
    assert int(script.out) < 5000 <= int(script.out) + int(said[1])


@pytest.mark.row("H208")
async def test_a_record_that_is_too_large_is_shortened_and_says_so(
    seen: Collecting, caplog: pytest.LogCaptureFixture
) -> None:
    """LOGS-3"""
    async with Pool(1, logs=True) as pool:
        await pool.apply(logging_targets.say_far_too_much, (5 << 20,))
        await pool.apply(logging_targets.say, ("after it",))
    text, after = seen.texts
    assert text[:70] == "x" * 70
    assert text.endswith("x... (shortened: 5,242,880 characters were logged)")
    values = vars(seen.records[0])
    assert values["number"] == 5
    assert values["large"].startswith("(a value of 5,242,")
    assert after == "after it"
    assert "log records" not in caplog.text


async def test_a_scheduler_of_the_user_changes_nothing(seen: Collecting) -> None:
    class Own(RoundRobin):
        pass

    async with Pool(2, logs=True, queuecount=2, scheduler=Own()) as pool:
        await pool.map(logging_targets.say_after_a_turn, range(100))
    assert sorted(seen.texts) == sorted(f"number {number}" for number in range(100))


def test_an_executor_delivers_records_too(seen: Collecting) -> None:
    with PoolExecutor(1, logs=True) as executor:
        executor.submit(logging_targets.say, "from an executor").result()
    assert seen.texts == ["from an executor"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_process_that_an_item_forks_does_not_use_the_link(seen: Collecting) -> None:
    async with Pool(1, logs=True) as pool:
        assert await pool.apply(logging_targets.say_in_a_fork) == 7
        await pool.apply(logging_targets.say, ("after it",))
    assert seen.texts == ["after it"]


def test_records_of_exit_hooks_are_written_to_stderr(tmp_path: Path) -> None:
    body = """
        async with Pool(1, logs=True) as pool:
            await pool.apply(logging_targets.say_at_the_end, ("at the end",))
            pool.close()
            await pool.join()
    """
    script = run_script(tmp_path, pool_script(body, setup="import logging_targets"))
    assert script.err == "at the end\n"


async def test_without_logs_nothing_arrives(seen: Collecting) -> None:
    async with Pool(1) as pool:
        await pool.apply(logging_targets.say, ("to stderr of the worker",))
    assert seen.texts == []


@pytest.mark.parametrize(
    ("logs", "error"), [("LOUD", ValueError), (-1, TypeError), (1.5, TypeError), ([], TypeError)]
)
def test_what_is_no_level_is_refused(logs: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="logs must be True or a level of logging, such as"):
        Pool(1, logs=logs)


async def test_the_name_of_a_level_may_be_in_lower_case(seen: Collecting) -> None:
    async with Pool(1, logs="error") as pool:
        await pool.apply(logging_targets.say, ("an error?",))
    assert threshold_of("error") == logging.ERROR
    logging.addLevelName(25, "notice")
    assert threshold_of("notice") == 25
