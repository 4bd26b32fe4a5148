"""Programs of 0.9.1: their imports work; what they override in vain or look up is refused."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import pickle
from collections.abc import Sequence
from typing import Any

import pytest

import workload
from aiomultiprocess import Pool, PoolResult, PoolTerminatedError, Process, RoundRobin, Worker
from aiomultiprocess import types as amp_types
from aiomultiprocess.pool import PoolWorker

pytestmark = pytest.mark.row("G61")

# What these modules of 0.9.1 had at their top level, without the standard library's.
NAMES = {
    "aiomultiprocess": (
        "Pool PoolResult Process QueueID RoundRobin Scheduler TaskID Worker set_context "
        "set_start_method core pool scheduler types __author__ __version__"
    ),
    "aiomultiprocess.core": (
        "Context DEFAULT_START_METHOD Process R Unit Worker context get_context get_manager log "
        "not_implemented set_context set_start_method _manager"
    ),
    "aiomultiprocess.pool": (
        "CHILD_CONCURRENCY LoopInitializer MAX_TASKS_PER_CHILD Pool PoolResult PoolTask "
        "PoolWorker Process ProxyException Queue QueueID R RoundRobin Scheduler T TaskID "
        "TracebackStr get_context log"
    ),
    "aiomultiprocess.scheduler": "Queue QueueID R RoundRobin Scheduler TaskID",
    "aiomultiprocess.types": (
        "Context LoopInitializer PoolResult PoolTask ProxyException Queue QueueID R T TaskID "
        "TracebackStr Unit"
    ),
    "aiomultiprocess.__version__": "__version__",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_name_of_a_module_can_be_imported_from_it(module: str) -> None:
    for name in NAMES[module].split():
        exec(f"from {module} import {name}")
    found = importlib.import_module(module)
    with pytest.raises(AttributeError, match=rf"module '{module}' has no attribute 'nonsense'"):
        _ = found.nonsense


def test_star_imports_from_the_pool_module_bring_what_they_brought() -> None:
    namespace: dict[str, Any] = {}
    exec("from aiomultiprocess.pool import *", namespace)
    assert set(NAMES["aiomultiprocess.pool"].split()) <= namespace.keys()


def test_a_unit_is_the_tuple_that_it_was() -> None:
    unit = amp_types.Unit(workload.two, (), {}, None)  # type: ignore[attr-defined]
    assert (unit.initializer, unit.initargs, unit.runner) == (None, (), None)
    assert pickle.loads(pickle.dumps(unit)) == unit


# -- subclasses ------------------------------------------------------------------------------------

POOL_HOOKS = ("init", "loop", "create_worker", "queue_work", "finish_work", "results")


def method(*args: Any) -> None:
    """What a subclass puts in the place of a method."""


@pytest.mark.parametrize("name", POOL_HOOKS)
def test_a_pool_that_overrides_a_method_that_is_no_longer_called_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=rf"OldPool\.{name} would never be called.*Instead: \w+"):
        type("OldPool", (Pool,), {name: method})


def test_a_mixin_that_overrides_a_method_that_is_no_longer_called_is_refused() -> None:
    class Counting:
        def queue_work(self, *args: Any) -> Any:
            return super().queue_work(*args)  # type: ignore[misc]

    with pytest.raises(TypeError, match=r"Counting\.queue_work would never be called"):
        type("CountingPool", (Counting, Pool), {})


@pytest.mark.parametrize("name", ["run", "run_async"])
def test_a_pool_worker_that_overrides_a_method_that_is_no_longer_called_is_refused(
    name: str,
) -> None:
    with pytest.raises(TypeError, match=rf"OldWorker\.{name} would never be called"):
        type("OldWorker", (PoolWorker,), {name: method})


@pytest.mark.parametrize("base", [Process, Worker])
def test_a_process_that_overrides_run_async_is_refused(base: type) -> None:
    with pytest.raises(TypeError, match=r"Old\.run_async would never be called"):
        type("Old", (base,), {"run_async": staticmethod(method)})


class Registered:
    """A mixin that takes part in making subclasses."""

    kinds: list[str] = []  # noqa: RUF012 - for all of them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registered.kinds.append(cls.__name__)


class OwnPool(Registered, Pool):
    """A subclass that overrides only what is public, and has methods of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[str] = []

    async def __aenter__(self) -> OwnPool:
        await super().__aenter__()
        return self

    async def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(f"apply {func.__name__}")
        return await super().apply(func, *args, **kwargs)

    def map(self, func: Any, iterable: Any, **kwargs: Any) -> PoolResult[Any]:
        self.calls.append(f"map {func.__name__}")
        return super().map(func, iterable, **kwargs)

    async def total(self, numbers: Sequence[int]) -> int:
        return sum(await self.map(workload.double, numbers))


async def test_a_pool_that_overrides_public_methods_works(backend: str) -> None:
    assert "OwnPool" in Registered.kinds
    async with OwnPool(1) as pool:
        assert await pool.total([1, 2, 3]) == 12
        assert await pool.apply(workload.two) == 2
    assert pool.calls == ["map double", "apply two"]


class CountingPool(Pool):
    """A subclass of 0.9.1: its overrides have the parameters of then; `stats` is its own."""

    stats: dict[str, int]  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stats = {}
        super().__init__(*args, **kwargs)

    def count(self, name: str) -> None:
        self.stats[name] = self.stats.get(name, 0) + 1

    def apply(self, func: Any, args: Any = None, kwds: Any = None) -> Any:
        self.count("apply")
        return super().apply(func, args, kwds)

    def close(self) -> None:
        self.count("close")
        super().close()

    def terminate(self) -> None:
        self.count("terminate")
        super().terminate()

    async def join(self) -> None:  # type: ignore[override]
        self.count("join")
        await super().join()


class TolerantPool(CountingPool):
    """One whose `apply` passes on what it does not know: two runs of it would not be refused."""

    def apply(self, func: Any, args: Any = None, kwds: Any = None, **more: Any) -> Any:
        self.count("apply")
        return Pool.apply(self, func, args, kwds, **more)


@pytest.mark.row("H224")
@pytest.mark.parametrize("kind", [CountingPool, TolerantPool])
def test_an_override_of_apply_runs_once_for_a_call_outside_the_loop(
    backend: str, kind: type[CountingPool]
) -> None:
    """POOL-1"""
    pool = kind(1)
    assert asyncio.run(pool.apply(workload.double, (4,))) == 8
    assert pool.stats == {"apply": 1}
    pool.terminate()


@pytest.mark.row("H224")
async def test_an_override_of_apply_runs_once_for_a_call_of_another_thread(backend: str) -> None:
    """POOL-1"""
    loop = asyncio.get_running_loop()
    async with CountingPool(1) as pool:
        await pool.apply(workload.two)

        def elsewhere() -> Any:
            call = pool.apply(workload.double, (5,))
            return asyncio.run_coroutine_threadsafe(call, loop).result(60)

        assert await asyncio.to_thread(elsewhere) == 10
        assert pool.stats == {"apply": 2}


@pytest.mark.row("H224")
async def test_shutdown_calls_overrides_with_the_parameters_of_0_9_1(backend: str) -> None:
    """POOL-1"""
    pool = CountingPool(1)
    call = pool.submit(workload.double, 4)
    assert await pool.shutdown() == 0
    assert await call == 8
    assert pool.stats == {"close": 1, "terminate": 1, "join": 1}


@pytest.mark.row("H224")
async def test_shutdown_counts_what_it_cuts_off_though_stats_is_of_the_subclass(
    backend: str,
) -> None:
    """POOL-1"""
    pool = CountingPool(1)
    call = pool.submit(workload.wait_for_ever)
    assert await pool.shutdown(0.05) == 1
    with pytest.raises(PoolTerminatedError):
        await call


@pytest.mark.row("H224")
async def test_terminate_calls_an_override_of_close_once_as_in_0_9_1(backend: str) -> None:
    """POOL-1"""
    async with CountingPool(1) as pool:
        await pool.apply(workload.two)
        pool.stats.clear()
    assert pool.stats == {"close": 1, "terminate": 1, "join": 1}
    pool.terminate()
    assert pool.stats == {"close": 1, "terminate": 2, "join": 1}


@pytest.mark.row("H224")
async def test_a_pool_whose_close_fails_is_terminated(backend: str) -> None:
    class Failing(Pool):
        def close(self) -> None:
            raise LookupError("of the subclass")

    pool = Failing(1)
    await pool.apply(workload.two)
    with pytest.raises(LookupError):
        pool.terminate()
    await pool.join()
    assert not pool.processes


class OwnWorker(Worker):
    """A Worker whose public methods are overridden."""

    async def join(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as overridden
        return [await super().join(timeout)]


async def test_a_worker_that_overrides_public_methods_works() -> None:
    worker = OwnWorker(target=workload.two)
    assert await worker == [2]
    worker.close()


# -- attributes and arguments ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*POOL_HOOKS, "queues", "last_id"])
async def test_an_attribute_of_a_pool_that_is_gone_says_so(backend: str, name: str) -> None:
    async with Pool(1) as pool:
        with pytest.raises(AttributeError, match=f"'Pool' .* {name!r}, which ended.* Instead: "):
            getattr(pool, name)
        (worker,) = pool.processes
        with pytest.raises(AttributeError, match=r"'ttl', which ended.*use pool\.maxtasksperchild"):
            _ = worker.ttl
        results = pool.map(workload.double, [1])
        with pytest.raises(AttributeError, match="'task_ids', which ended"):
            _ = results.task_ids  # type: ignore[attr-defined]
        assert await results == [2]


def test_an_attribute_that_never_existed_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(
        AttributeError, match=r"^'Pool' object has no attribute 'nonsense'$"
    ) as info:
        _ = Pool(1).nonsense  # type: ignore[attr-defined]
    assert info.value.name == "nonsense"
    assert not hasattr(Process(), "nonsense")


def test_the_unit_of_a_process_is_gone_and_its_target_for_processes_is_refused() -> None:
    with pytest.raises(AttributeError, match="'unit', which ended"):
        _ = Process().unit  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="process_target ended with"):
        Process(process_target=method)  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [(), (1,), (1, 16)])
def test_a_pool_worker_cannot_be_made_from_queues(more: tuple[int, ...]) -> None:
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        with pytest.raises(
            TypeError, match=r"made by its Pool alone, and takes no queues: use Pool"
        ):
            PoolWorker(queue, queue, *more)  # type: ignore[arg-type, call-arg]
        with pytest.raises(TypeError, match="made by its Pool alone"):
            PoolWorker(tx=queue, rx=queue)  # type: ignore[call-arg]
    finally:
        queue.close()


def test_a_pool_result_cannot_be_made_from_task_ids() -> None:
    with pytest.raises(TypeError, match=r"made by map and starmap, not from \[1, 2\]"):
        PoolResult(Pool(1), [1, 2])  # type: ignore[arg-type]


class Measuring(RoundRobin):
    """A scheduler that would look into its queue."""

    def register_queue(self, tx: Any) -> Any:
        self.tx = tx
        return super().register_queue(tx)


async def test_a_queue_that_a_scheduler_gets_says_that_it_holds_nothing(backend: str) -> None:
    scheduler = Measuring()
    async with Pool(1, scheduler=scheduler) as pool:
        assert await pool.apply(workload.two) == 2
        with pytest.raises(AttributeError, match=r"'qsize', which ended.*schedule_task"):
            scheduler.tx.qsize()
        assert not hasattr(scheduler.tx, "nonsense")
