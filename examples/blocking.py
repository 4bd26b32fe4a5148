"""Libraries that block, such as `sqlite3` and `urllib`, side by side: `Pool(threads=...)`.

    python examples/blocking.py

Each page of a small web server (it runs in this program) takes 0.1 s. A plain function on the
loop of a worker would block it, so two workers would fetch two pages at a time; here they fetch 32.
"""

import asyncio
import sqlite3
import tempfile
import threading
import time
import urllib.request
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aiomultiprocess import Pool

PAGES = 128


def fetch(database: str, url: str) -> int:
    """Fetch a page and store it: two blocking libraries, no coroutine. Runs in a thread."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        page = answer.read()
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute("insert into pages values (?, ?)", (url, page))
    return len(page)


class SlowPages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(0.1)
        page = f"this is {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *args: object) -> None:
        """Write nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 64


async def fetch_all(database: Path, address: str) -> None:
    urls = [f"{address}/{n}" for n in range(PAGES)]
    begun = time.perf_counter()
    async with Pool(2, threads=16) as pool:
        size = sum(await pool.map(partial(fetch, str(database)), urls))
    print(f"{PAGES} pages of 0.1 s, {size:,} bytes, in {time.perf_counter() - begun:.1f} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(("127.0.0.1", 0), SlowPages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        database = Path(folder) / "pages.db"
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute("create table pages (url text primary key, page blob)")
        asyncio.run(fetch_all(database, f"http://127.0.0.1:{server.server_port}"))
        with closing(sqlite3.connect(database)) as connection:
            [(stored,)] = connection.execute("select count(*) from pages")
        print(f"{stored} pages are stored")
        server.shutdown()


if __name__ == "__main__":
    main()
