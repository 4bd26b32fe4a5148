"""One interface over everything that is compared.

An adapter uses its library as that library's users do, with the start method and the settings that
it has by default. It lives in a runner (runner.py) with the peer's own interpreter. Libraries are
imported where they are used, because each environment holds one of them.

A peer that has no coroutines runs the synchronous twin of each task. Where the user may choose how
many items make one unit of transport, `chunked` is true and the best choice is looked for.
"""

import asyncio
import concurrent.futures
import multiprocessing
import multiprocessing.pool
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import items
from items import Function, Task

Items = Sequence[Any]


class Peer(ABC):
    """A pool of workers. One is open at a time."""

    coroutines: ClassVar[bool] = False
    chunked: ClassVar[bool] = True

    def function(self, task: Task) -> Function:
        return task.coroutine if self.coroutines else task.twin

    @abstractmethod
    async def open(self, workers: int, concurrency: int) -> None:
        """Start the workers; `concurrency` tasks at once in each, where there is such a thing."""

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def map(self, function: Function, items: Items, chunk: int) -> Items: ...

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        raise NotImplementedError

    async def apply(self, function: Function, argument: Any) -> Any:
        raise NotImplementedError

    async def gather(self, function: Function, arguments: Items) -> Items:
        """As many calls of their own, all at once."""
        raise NotImplementedError

    async def begin_map(self, function: Function, items: Items, chunk: int) -> Callable[[], bool]:
        """Start a map, and return a function that says whether it is done."""
        raise NotImplementedError

    async def stream(self, function: Function, values: Iterable[Any]) -> int:
        """Map an iterator, drop each result as it comes, and return how many came."""
        raise NotImplementedError

    async def make_room(self, size: int) -> None:  # noqa: B027 - for most there is nothing to do
        """Prepare what a limit needs to copy so many bytes."""

    async def share(self, value: Any) -> Any:
        """Put an array where all workers can read it; what this returns goes to tasks for it.

        A limit copies it and returns None.
        """
        raise NotImplementedError

    async def unshare(self, shared: Any) -> None:  # noqa: B027 - for some it ends with its last name
        """Give up what `share` returned."""

    def with_shared(self, function: Function, first: Any) -> Function | None:
        """`function` with its first argument for a map, or None: the peer does not offer it."""
        return None

    async def bells(self) -> dict[str, float]:
        """Doorbells that were rung, and frames that were published, in all so far."""
        raise NotImplementedError

    async def frames(self, count: int) -> dict[str, float]:
        """Send so many small frames through the transport alone, see streaming.py."""
        raise NotImplementedError

    async def warm_up(self, workers: int) -> None:
        """Give every worker something to do, until all have surely started."""
        for _ in range(3):
            await self.map(self.function(items.BURN), [0.005] * 4 * workers, 1)

    async def touch(self, workers: int) -> None:
        """Let everything run for a moment that has stood still."""
        await self.map(self.function(items.ECHO), range(4 * workers), 1)

    async def round_trips(self, function: Function, count: int) -> list[float]:
        """Seconds that each of so many calls took, one after the other."""
        times = []
        for number in range(count):
            begin = perf_counter()
            await self.apply(function, number)
            times.append(perf_counter() - begin)
        return times


class Aiomultiprocess(Peer):
    """This library or its forerunner, whichever is installed."""

    coroutines = True
    chunked = False
    options: ClassVar[dict[str, Any]] = {}

    async def open(self, workers: int, concurrency: int) -> None:
        pool_class = import_module("aiomultiprocess").Pool
        self.pool: Any = pool_class(workers, childconcurrency=concurrency, **self.options)
        self._background: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._background is not None:  # 0.9.1 would never stop polling for its results
            self._background.cancel()
            await asyncio.wait([self._background])
        self.pool.terminate()
        await self.pool.join()

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        results: Items = await self.pool.map(function, items)
        return results

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        results: Items = await self.pool.starmap(function, items)
        return results

    async def apply(self, function: Function, argument: Any) -> Any:
        return await self.pool.apply(function, (argument,))

    async def gather(self, function: Function, arguments: Items) -> Items:
        apply = self.pool.apply
        return await asyncio.gather(*(apply(function, (argument,)) for argument in arguments))

    async def begin_map(self, function: Function, items: Items, chunk: int) -> Callable[[], bool]:
        async def wait() -> None:
            await self.pool.map(function, items)

        self._background = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return self._background.done

    async def stream(self, function: Function, values: Iterable[Any]) -> int:
        seen = 0
        async for _ in self.pool.map(function, iter(values)):
            seen += 1
        return seen


class Ours(Aiomultiprocess):
    """This library, with a transport that was asked for."""

    async def share(self, value: Any) -> Any:
        return import_module("aiomultiprocess").share(value).__enter__()

    async def unshare(self, shared: Any) -> None:
        shared.__exit__(None, None, None)

    def with_shared(self, function: Function, first: Any) -> Function:
        return partial(function, first)

    async def frames(self, count: int) -> dict[str, float]:
        streaming = import_module("streaming")
        figures: dict[str, float] = await streaming.stream(self.options["backend"], count)
        return figures


class Shm(Ours):
    options: ClassVar[dict[str, Any]] = {"backend": "shm"}

    async def bells(self) -> dict[str, float]:
        """Both directions; those of the workers are asked for, often enough to reach each."""
        counts = {0: (0, 0)}
        for worker in self.pool.processes:
            producer = worker.link._producer
            down, frames = counts[0]
            counts[0] = (down + producer.bells, frames + producer.published)
        while len(counts) <= len(self.pool.processes):
            counts |= dict(await self.pool.map(items.bells_of_worker, range(64)))
        bells, frames = map(sum, zip(*counts.values(), strict=True))
        return {"bells": bells, "frames": frames}


class Pipe(Ours):
    options: ClassVar[dict[str, Any]] = {"backend": "pipe"}


class MultiprocessingPool(Peer):
    async def open(self, workers: int, concurrency: int) -> None:
        self._pool = multiprocessing.Pool(workers)

    async def close(self) -> None:
        self._pool.terminate()
        self._pool.join()

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        return self._pool.map(function, items, chunk)

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        return self._pool.starmap(function, items, chunk)

    async def apply(self, function: Function, argument: Any) -> Any:
        return self._pool.apply(function, (argument,))

    async def gather(self, function: Function, arguments: Items) -> Items:
        pending = [self._pool.apply_async(function, (argument,)) for argument in arguments]
        return [result.get() for result in pending]

    async def begin_map(self, function: Function, items: Items, chunk: int) -> Callable[[], bool]:
        return self._pool.map_async(function, items, chunk).ready


class Executor(Peer):
    """ProcessPoolExecutor by itself."""

    async def open(self, workers: int, concurrency: int) -> None:
        self._executor = concurrent.futures.ProcessPoolExecutor(workers)

    async def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        return list(self._executor.map(function, items, chunksize=chunk))

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        columns = zip(*items, strict=True)
        return list(self._executor.map(function, *columns, chunksize=chunk))

    async def apply(self, function: Function, argument: Any) -> Any:
        return self._executor.submit(function, argument).result()

    async def gather(self, function: Function, arguments: Items) -> Items:
        pending = [self._executor.submit(function, argument) for argument in arguments]
        return [future.result() for future in pending]

    async def begin_map(self, function: Function, values: Items, chunk: int) -> Callable[[], bool]:
        submit = self._executor.submit
        pending = [submit(items.each, function, part) for part in items.chunks(values, chunk)]
        return lambda: all(future.done() for future in pending)


class RunInExecutor(Executor):
    """ProcessPoolExecutor behind `loop.run_in_executor`, chunks made by hand."""

    async def map(self, function: Function, values: Items, chunk: int) -> Items:
        return await self._chunks(items.each, function, values, chunk)

    async def starmap(self, function: Function, values: Items, chunk: int) -> Items:
        return await self._chunks(items.each_star, function, values, chunk)

    async def apply(self, function: Function, argument: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, argument)

    async def gather(self, function: Function, arguments: Items) -> Items:
        run, executor = asyncio.get_running_loop().run_in_executor, self._executor
        return await asyncio.gather(*(run(executor, function, argument) for argument in arguments))

    async def _chunks(self, each: Function, function: Function, values: Items, n: int) -> Items:
        run, executor = asyncio.get_running_loop().run_in_executor, self._executor
        parts = items.chunks(values, n)
        done = await asyncio.gather(*(run(executor, each, function, part) for part in parts))
        return [result for part in done for result in part]


class Interpreters(Executor):
    """InterpreterPoolExecutor: threads of one process, each with an interpreter of its own."""

    async def open(self, workers: int, concurrency: int) -> None:
        futures: Any = concurrent.futures
        self._executor = futures.InterpreterPoolExecutor(
            workers, initializer=exec, initargs=(FIND_TASKS,)
        )


#: A new interpreter has a path of its own, without the folder of the script.
FIND_TASKS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"


class Mpire(Peer):
    async def open(self, workers: int, concurrency: int) -> None:
        pool_class = import_module("mpire").WorkerPool
        self._pool: Any = pool_class(n_jobs=workers, keep_alive=True)
        self._mapped = False

    async def close(self) -> None:
        self._pool.terminate()

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        if items and isinstance(items[0], (dict, tuple)):  # else it would unpack them
            items = [(item,) for item in items]
        return await self.starmap(function, items, chunk)

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        self._mapped = True
        results: Items = self._pool.map(
            function, items, chunk_size=chunk, concatenate_numpy_output=False
        )
        return results

    async def apply(self, function: Function, argument: Any) -> Any:
        if not self._mapped:  # 2.10 fails in every map after an apply that came first
            return (await self.starmap(function, [(argument,)], 1))[0]
        return self._pool.apply(function, (argument,))

    async def gather(self, function: Function, arguments: Items) -> Items:
        pending = [self._pool.apply_async(function, (argument,)) for argument in arguments]
        return [result.get() for result in pending]


class Loky(Executor):
    """What joblib stands on: an executor with the interface of the standard one."""

    async def open(self, workers: int, concurrency: int) -> None:
        self._executor = import_module("loky").get_reusable_executor(max_workers=workers)

    async def close(self) -> None:
        self._executor.shutdown(kill_workers=True)  # type: ignore[call-arg]  # loky's own


class Joblib(Peer):
    """joblib.Parallel on its copy of loky; it has nothing for single calls."""

    async def open(self, workers: int, concurrency: int) -> None:
        joblib = import_module("joblib")
        self._workers = workers
        self._delayed = joblib.delayed
        self._class = joblib.Parallel

    async def close(self) -> None:
        import_module("joblib.externals.loky").get_reusable_executor().shutdown(kill_workers=True)

    async def map(self, function: Function, items: Items, chunk: int) -> Items:
        delayed = self._delayed(function)
        return self._run([delayed(item) for item in items], chunk)

    async def starmap(self, function: Function, items: Items, chunk: int) -> Items:
        delayed = self._delayed(function)
        return self._run([delayed(*item) for item in items], chunk)

    def _run(self, calls: list[Any], chunk: int) -> Items:
        parallel = self._class(n_jobs=self._workers, backend="loky", batch_size=chunk)
        results: Items = parallel(calls)
        return results


class Ray(Peer):
    async def open(self, workers: int, concurrency: int) -> None:
        self._ray: Any = import_module("ray")
        self._ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=(512 << 20) if workers == 2 else (2 << 30),  # many: one shared GB
            # it is stopped while others are measured: that is no failure
            _system_config={"health_check_failure_threshold": 1000},
        )

    async def close(self) -> None:
        self._ray.shutdown()

    async def map(self, function: Function, values: Items, chunk: int) -> Items:
        return self._chunks(items.each, function, values, chunk)

    async def starmap(self, function: Function, values: Items, chunk: int) -> Items:
        return self._chunks(items.each_star, function, values, chunk)

    async def apply(self, function: Function, argument: Any) -> Any:
        return self._ray.get(self._ray.remote(function).remote(argument))

    async def share(self, value: Any) -> Any:
        return self._ray.put(value)  # a task gets the object for it

    async def gather(self, function: Function, arguments: Items) -> Items:
        remote = self._ray.remote(function).remote
        results: Items = self._ray.get([remote(argument) for argument in arguments])
        return results

    def _chunks(self, each: Function, function: Function, values: Items, chunk: int) -> Items:
        remote = self._ray.remote(each).remote
        done = self._ray.get([remote(function, part) for part in items.chunks(values, chunk)])
        return [result for part in done for result in part]


class Dask(Peer):
    """dask.distributed on a local cluster; its workers run coroutines."""

    coroutines = True

    async def open(self, workers: int, concurrency: int) -> None:
        distributed = import_module("distributed")
        self._cluster: Any = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=concurrency, dashboard_address=None
        )
        self._client: Any = distributed.Client(self._cluster)

    async def close(self) -> None:
        self._client.close()
        self._cluster.close()

    async def map(self, function: Function, values: Items, chunk: int) -> Items:
        each = items.each_coroutine if self._is_coroutine(function) else items.each
        return self._chunks(each, function, values, chunk)

    async def starmap(self, function: Function, values: Items, chunk: int) -> Items:
        return self._chunks(items.each_coroutine_star, function, values, chunk)

    async def apply(self, function: Function, argument: Any) -> Any:
        return self._client.submit(function, argument, pure=False).result()

    async def gather(self, function: Function, arguments: Items) -> Items:
        results: Items = self._client.gather(self._client.map(function, arguments, pure=False))
        return results

    def _chunks(self, each: Function, function: Function, values: Items, chunk: int) -> Items:
        submit = self._client.submit
        parts = items.chunks(values, chunk)
        done = self._client.gather([submit(each, function, part, pure=False) for part in parts])
        return [result for part in done for result in part]

    @staticmethod
    def _is_coroutine(function: Function) -> bool:
        return asyncio.iscoroutinefunction(function)
