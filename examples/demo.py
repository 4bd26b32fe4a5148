"""aiomultiprocess at work on real input: `make demo`, or `python examples/demo.py --help`.

Three jobs: fetch pages from a web server, parse the standard library, and map a trivial coroutine
over a million ints, the last beside multiprocessing.Pool.map with the best of several chunk sizes.
On a terminal bars show the progress; written to a file it is plain lines.
"""

import argparse
import ast
import asyncio
import multiprocessing
import socket
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import aiohttp
from aiohttp import web
from tqdm import tqdm

from aiomultiprocess import Pool, Process

# ---- (a) fetch pages: waiting for sockets, many at a time in each worker


async def page(request: web.Request) -> web.Response:
    """One page of the demo's own web server, about a kilobyte."""
    number = request.match_info["number"]
    return web.Response(text=f"<h1>page {number}</h1>" + "<p>lorem ipsum</p>" * 60)


async def serve(listener: socket.socket) -> None:
    """Serve pages until terminated; runs in a process of its own."""
    app = web.Application()
    app.add_routes([web.get("/{number}", page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await asyncio.Event().wait()


opened: asyncio.Future[aiohttp.ClientSession] | None = None  # globals are per process
holder: asyncio.Task[None] | None = None


async def hold_session(opened: asyncio.Future[aiohttp.ClientSession]) -> None:
    """Open a session, and close it when the worker ends, which cancels this task."""
    try:
        async with aiohttp.ClientSession() as session:
            opened.set_result(session)
            await asyncio.Event().wait()
    except Exception as error:
        if opened.done():
            raise
        opened.set_exception(error)


async def one_session() -> aiohttp.ClientSession:
    """The session of this worker: the first item has it opened, the others wait for that."""
    global opened, holder
    if opened is None or (opened.done() and opened.exception()):  # never, or it failed
        opened = asyncio.get_running_loop().create_future()
        holder = asyncio.create_task(hold_session(opened))
    return await asyncio.shield(opened)  # one item that is cancelled leaves it to the others


async def fetch(url: str) -> int:
    """Fetch one page and return its length."""
    session = await one_session()
    async with session.get(url) as response:
        response.raise_for_status()
        return len(await response.text())


async def fetch_pages(count: int, workers: int | None) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    server = Process(target=serve, args=(listener,), daemon=True)
    server.start()
    listener.close()  # the server has its own copy
    print(f"fetching {count:,} pages from a web server in a process of its own", flush=True)
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(count)]
    begin, characters = perf_counter(), 0
    async with Pool(workers) as pool:
        with bar_of(count, "fetch", "page") as bar:
            async for length in pool.map(fetch, urls):
                characters += length
                bar.update()
    say("fetched", count, "pages", perf_counter() - begin, f"{characters:,} characters")
    server.terminate()
    await server.join()


# ---- (b) parse the standard library: computing, one file at a time in each worker


class Contents(NamedTuple):
    """What a Python file holds; all zero and `parsed` false where it is no valid Python."""

    parsed: bool
    lines: int = 0
    functions: int = 0
    classes: int = 0


def quiet() -> None:
    """The initializer of a worker: other people's old code is full of warnings."""
    warnings.simplefilter("ignore")


def parse(path: Path) -> Contents:
    """Count what one file defines. A plain function: there is nothing in it to await."""
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # Python's own tests hold some that must not parse
        return Contents(False)
    nodes = list(ast.walk(tree))
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    return Contents(True, source.count(b"\n"), functions, classes)


def library() -> list[Path]:
    """Every .py file of the running Python's standard library."""
    files = Path(sysconfig.get_path("stdlib")).rglob("*.py")
    return sorted(path for path in files if "site-packages" not in path.parts)


async def parse_library(limit: int | None, workers: int | None) -> None:
    paths = library()[:limit]
    print(f"parsing {len(paths):,} files of the standard library", flush=True)
    begin, found = perf_counter(), []
    async with Pool(workers, initializer=quiet, childconcurrency=1) as pool:
        with bar_of(len(paths), "parse", "file") as bar:
            async for contents in pool.map(parse, paths):
                found.append(contents)
                bar.update()
    _, lines, functions, classes = map(sum, zip(*found, strict=True))
    unparsed = sum(not contents.parsed for contents in found)
    totals = f"{lines:,} lines, {functions:,} functions, {classes:,} classes, {unparsed} not Python"
    say("parsed", len(paths), "files", perf_counter() - begin, totals)


# ---- (c) a million ints: nothing but the way there and back


async def increment(number: int) -> int:
    return number + 1


def increment_sync(number: int) -> int:
    return number + 1


ROUNDS = 3  # of each measurement, of which the fastest counts
CHUNK_SIZES = (100, 1_000, 10_000, 100_000)  # that are tried, besides Pool.map's own choice


async def map_numbers(count: int, workers: int | None) -> None:
    print(f"mapping {count:,} ints, the fastest of {ROUNDS} rounds each", flush=True)
    async with Pool(workers) as pool:
        await pool.map(increment, range(pool.process_count))  # its workers have started
        ours = float("inf")
        for _ in range(ROUNDS):
            begin = perf_counter()
            results = await pool.map(increment, range(count))
            ours = min(ours, perf_counter() - begin)
            assert results == list(range(1, count + 1))
        processes = pool.process_count
    say("mapped", count, "ints", ours, f"a coroutine each, backend {pool.backend}")
    theirs, chunk_size = compare(count, processes)
    more = f"a plain function each, multiprocessing.Pool.map in chunks of {chunk_size}"
    say("mapped", count, "ints", theirs, more)
    print(f"{'':8} that is {theirs / ours:.2f} times the speed of multiprocessing.Pool.map")


def compare(count: int, processes: int) -> tuple[float, str]:
    """How long multiprocessing.Pool.map takes with its best chunk size, and which that is."""
    found = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(increment_sync, range(processes))  # its workers have started
        for size in (None, *(size for size in CHUNK_SIZES if size < count)):
            name = f"{size:,}" if size else "its own choice"
            found[name] = min(
                timed(lambda size=size: pool.map(increment_sync, range(count), size))  # type: ignore[misc]
                for _ in range(ROUNDS)
            )
    tried = ", ".join(f"{name}: {seconds:.2f} s" for name, seconds in found.items())
    print(f"{'':8} chunk sizes tried with multiprocessing.Pool.map: {tried}", flush=True)
    best = min(found, key=lambda name: found[name])
    return found[best], f"{best}, the best of {len(found)} sizes tried"


def timed(run: Callable[[], object]) -> float:
    begin = perf_counter()
    run()
    return perf_counter() - begin


# ---- what it prints


def bar_of(count: int, does: str, unit: str) -> "tqdm[object]":
    """A progress bar on a terminal; none in a file."""
    return tqdm(total=count, desc=does, unit=unit, disable=None)


def say(did: str, count: int, what: str, seconds: float, more: str) -> None:
    rate = count / seconds
    print(f"{did:8} {count:,} {what} in {seconds:.2f} s, {rate:,.0f} a second: {more}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="aiomultiprocess at work on real input")
    parser.add_argument("--urls", type=int, default=5_000, help="pages to fetch")
    parser.add_argument("--files", type=int, help="files to parse (default: all)")
    parser.add_argument("--numbers", type=int, default=1_000_000, help="ints to map")
    parser.add_argument("--workers", type=int, help="worker processes (default: one a CPU)")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    await fetch_pages(options.urls, options.workers)
    await parse_library(options.files, options.workers)
    await map_numbers(options.numbers, options.workers)


if __name__ == "__main__":
    asyncio.run(main(arguments()))
