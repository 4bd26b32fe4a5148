"""Tutorial, step 4: follow the links of a site, with a session in each worker."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp

from aiomultiprocess import Pool, current_worker

SITE = "http://127.0.0.1:8099"


class Page(NamedTuple):
    title: str
    links: list[str]


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(SITE) as session:
        yield session


async def scrape(path: str) -> Page:
    """Runs in a worker: fetch one page, and find its title and its links."""
    async with current_worker().state.get(path) as response:
        response.raise_for_status()
        text = await response.text()
    title = re.search("<title>(.*?)</title>", text)
    return Page(title[1] if title else "", re.findall('href="(.*?)"', text))


async def main() -> None:
    titles: dict[str, str] = {}
    failed: list[str] = []
    new = ["/0"]
    async with Pool(2, lifespan=session) as pool:
        while new:
            pages = pool.map(scrape, new, task_timeout=10, retries=1, return_exceptions=True)
            found: set[str] = set()
            async for index, page in pages.as_completed(with_index=True):
                if isinstance(page, BaseException):
                    failed.append(new[index])
                else:
                    titles[new[index]] = page.title
                    found.update(page.links)
            new = sorted(found - titles.keys() - set(failed))
    print(f"{len(titles)} pages have a title; failed: {failed}")


if __name__ == "__main__":
    asyncio.run(main())
