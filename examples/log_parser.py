"""Read a log as a worker parses it: values arrive while the rest is still being read.

    python examples/log_parser.py [access.log]

Prints the slowest requests and how many failed. Without a file it makes one with 200,000 lines. The
worker decompresses and parses, which takes a CPU; the loop here stays free.
"""

import asyncio
import gzip
import heapq
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

from aiomultiprocess import Pool

LINE = re.compile(r'(\S+) \[([^\]]+)\] "(\S+) (\S+)" (\d{3}) (\d+\.\d+)')


class Request(NamedTuple):
    client: str
    method: str
    path: str
    status: int
    seconds: float


def parse(path: str) -> Iterator[Request]:
    """The requests of a log, which may be compressed. Runs in a worker."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if (found := LINE.match(line)) is not None:
                client, _, method, target, status, seconds = found.groups()
                yield Request(client, method, target, int(status), float(seconds))


def write_example(path: Path, lines: int = 200_000) -> None:
    dice = random.Random(7)
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as log:
        for n in range(lines):
            stamp = time.strftime("%d/%b/%Y:%H:%M:%S", time.gmtime(1_700_000_000 + n))
            status = dice.choice((200, 200, 200, 200, 301, 404, 500))
            log.write(
                f'10.0.{n % 7}.{n % 251} [{stamp}] "GET /page/{n % 1000}" {status} '
                f"{dice.expovariate(20):.4f}\n"
            )


async def summarize(path: Path) -> None:
    statuses: Counter[int] = Counter()
    slowest: list[tuple[float, str]] = []
    async with Pool(1) as pool, aclosing(pool.stream(parse, (str(path),), ahead=4096)) as requests:
        async for request in requests:
            statuses[request.status] += 1
            heapq.heappush(slowest, (request.seconds, request.path))
            if len(slowest) > 3:
                heapq.heappop(slowest)
    failed = sum(count for status, count in statuses.items() if status >= 500)
    print(f"{statuses.total():,} requests, {failed:,} failed")
    for seconds, target in sorted(slowest, reverse=True):
        print(f"{seconds:.4f} s  {target}")


def main() -> None:
    if len(sys.argv) > 1:
        asyncio.run(summarize(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "access.log.gz"
        write_example(path)
        asyncio.run(summarize(path))


if __name__ == "__main__":
    main()
