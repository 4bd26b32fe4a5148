"""A pool over the workers of a dask cluster, by the address of its scheduler.

python examples/many_machines.py tcp://127.0.0.1:8786
"""

import asyncio
import sys

from distributed import Client

from aiomultiprocess import Pool


async def fetch(number: int) -> str:
    """Stands for the work of your program."""
    await asyncio.sleep(0.01)
    return f"page {number}"


async def by_address(address: str) -> None:
    async with Pool(backend="dask", address=address) as pool:
        pages = await pool.map(fetch, range(1000), retries=1)
        hosts = {worker.host for worker in pool.stats().workers}
    print(f"{len(pages):,} pages; some hosts: {len(hosts) > 0}")


async def by_client(address: str) -> None:
    async with (
        Client(address, asynchronous=True) as client,
        Pool(backend="dask", client=client) as pool,
    ):
        async for page in pool.map(fetch, range(3)):
            print(page)


async def through_scheduler(address: str) -> None:
    async with (
        Client(address, asynchronous=True, direct_to_workers=False) as client,
        Pool(backend="dask", client=client) as pool,
    ):
        pages = await pool.map(fetch, range(1000))
    print(f"{len(pages):,} pages through the scheduler")


async def main(address: str) -> None:
    await by_address(address)
    await by_client(address)
    await through_scheduler(address)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
