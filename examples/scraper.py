"""Fetch many pages, store each in SQLite as it comes, and go on where Ctrl-C has stopped it.

    python examples/scraper.py                                    # from a server of its own
    python examples/scraper.py --url 'https://example.org/{}' --pages 50

Each worker has one aiohttp session, which the pool opens and closes: `Pool(lifespan=...)`. A page
has its own time limit. A page that fails is not stored, so the next run fetches it again; what is
stored is not fetched again. Exit code 0: all pages are stored, 1: some failed, 130: Ctrl-C.
"""

import argparse
import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiohttp import web

from aiomultiprocess import Pool, ProxyException, current_worker

# ---- in the workers


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """What each worker has as long as it runs: `current_worker().state` is what this yields."""
    async with aiohttp.ClientSession() as session:
        yield session


class Page(NamedTuple):
    title: str
    words: int


async def fetch(url: str, number: int) -> Page:
    """Fetch one page and take from it what will be stored."""
    session: aiohttp.ClientSession = current_worker().state
    async with session.get(url.format(number)) as response:
        response.raise_for_status()
        text = await response.text()
    title = text.partition("<title>")[2].partition("</title>")[0]
    return Page(title, len(text.split()))


# ---- in this process


class Store:
    """The pages that were fetched, in a database that outlives the program."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute(
            "create table if not exists pages (number integer primary key, title, words)"
        )

    def numbers(self) -> set[int]:
        return {number for (number,) in self._connection.execute("select number from pages")}

    def add(self, number: int, page: Page) -> None:
        """Store a page; it stays, whatever happens to the program after this."""
        with self._connection:
            self._connection.execute("insert into pages values (?, ?, ?)", (number, *page))


class Progress:
    """Counts pages, and prints a line for every so many."""

    def __init__(self, stored: int, pages: int, server: "Server | None") -> None:
        self.stored, self._pages, self._server = stored, pages, server

    def add(self) -> None:
        self.stored += 1
        if self.stored % 20 == 0:
            self.show("so far")

    def show(self, when: str) -> None:
        served = f", {self._server.served} were served" if self._server else ""
        print(f"{when}: {self.stored} of {self._pages} pages are stored{served}", flush=True)


async def scrape(
    store: Store, url: str, options: argparse.Namespace, server: "Server | None"
) -> bool:
    """Fetch what is not stored; whether all is stored then."""
    wanted = set(range(options.pages))
    missing = sorted(wanted - store.numbers())
    progress = Progress(len(wanted) - len(missing), len(wanted), server)
    progress.show("begin")
    try:
        async with Pool(options.workers, lifespan=session) as pool:
            pages = pool.map(
                partial(fetch, url),
                missing,
                task_timeout=options.timeout,  # seconds, of each page
                retries=1,  # should its worker die
                return_exceptions=True,  # one bad page does not end the others
            )
            async for index, page in pages.as_completed(with_index=True):
                if isinstance(page, BaseException):
                    print(f"page {missing[index]} failed: {reason(page)}", flush=True)
                else:
                    store.add(missing[index], page)
                    progress.add()
    finally:  # also by Ctrl-C: the end of the pool has cancelled what was under way
        progress.show("end")
    return progress.stored == len(wanted)


def reason(error: BaseException) -> str:
    """One line of an error. What a task raised is the last line of its traceback in the worker."""
    last = str(error).splitlines()[-1]
    return last if isinstance(error, ProxyException) else f"{type(error).__name__}: {last}"


async def main(options: argparse.Namespace) -> bool:
    with closing(sqlite3.connect(options.database)) as connection:
        if options.url:
            return await scrape(Store(connection), options.url, options, None)
        server = Server()
        with server.running() as url:
            return await scrape(Store(connection), url, options, server)


# ---- a web server to try it with


class Server:
    """Serves pages that take 20 ms each, from a thread of its own, and counts them."""

    def __init__(self) -> None:
        self.served = 0
        self.port = 0
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()

    async def _page(self, request: web.Request) -> web.Response:
        await asyncio.sleep(0.02)
        self.served += 1
        number = request.match_info["number"]
        text = f"<title>page {number}</title>" + "<p>lorem ipsum</p> " * 60
        return web.Response(text=text, content_type="text/html")

    async def _serve(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/{number}", self._page)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._end.wait()
        await runner.cleanup()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve as long as the context lasts; the address of the pages."""
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        thread.start()
        self._started.wait()
        try:
            yield f"http://127.0.0.1:{self.port}/{{}}"
        finally:
            self._loop.call_soon_threadsafe(self._end.set)
            thread.join()
            self._loop.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="where to fetch; {} is the number of the page")
    parser.add_argument("--pages", type=int, default=1000, help="how many pages")
    parser.add_argument("--database", type=Path, default=Path("pages.db"), help="where to store")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds that a page may take")
    parser.add_argument("--workers", type=int, help="worker processes (default: one a CPU)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(not asyncio.run(main(arguments())))
    except KeyboardInterrupt:
        print("the next run goes on from here")
        sys.exit(130)
