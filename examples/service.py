"""A web service that computes in a pool: FastAPI, uvicorn and uvloop.

    python examples/service.py --port 8000
    curl http://127.0.0.1:8000/work/1000
    curl http://127.0.0.1:8000/stats

A client that goes away frees the place of its task in the worker. A worker that dies costs no
request its answer. At SIGTERM the service takes no more requests, answers those that it has, ends
the pool, and exits with code 0.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from aiomultiprocess import Pool, TaskTimeoutError, WorkerLostError

TASK_TIMEOUT = 30.0  # seconds that the work of one request may take
DRAIN = 10.0  # seconds that requests, and then other tasks of the pool, have to end at SIGTERM


async def work(number: int, seconds: float) -> dict[str, Any]:
    """Runs in a worker: waits, as for a database, and then computes."""
    await asyncio.sleep(seconds)
    return {"number": number, "sum": sum(n * n for n in range(number)), "pid": os.getpid()}


async def disconnected(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(workers: int | None, concurrency: int) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Pool(workers, childconcurrency=concurrency) as pool:
            app.state.pool = pool
            yield
            cut_off = await pool.shutdown(timeout=DRAIN)
            print(f"the pool has ended, {cut_off} tasks were cut off", flush=True)

    app = FastAPI(lifespan=lifespan)

    @app.get("/work/{number}")
    async def answer(request: Request, number: int, seconds: float = 0.01) -> Any:
        # `retries`: the work has no effects, so it may run again if its worker dies.
        pool: Pool = app.state.pool
        applied = pool.apply(work, (number, seconds), retries=2, task_timeout=TASK_TIMEOUT)
        call = asyncio.ensure_future(applied)
        gone = asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait((call, gone), return_when=asyncio.FIRST_COMPLETED)
            if not call.done():
                return Response(status_code=499)
            return call.result()
        except TaskTimeoutError:
            raise HTTPException(504, f"this takes more than {TASK_TIMEOUT:g} s") from None
        except WorkerLostError:
            raise HTTPException(503, "several workers died of this") from None
        finally:
            gone.cancel()
            call.cancel()  # in the worker too, if it has not ended

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        pool: Pool = app.state.pool
        return dataclasses.asdict(pool.stats())

    return app


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--workers", type=int, help="worker processes (default: one a CPU)")
    parser.add_argument("--concurrency", type=int, default=16, help="tasks at once in each worker")
    return parser.parse_args()


def main() -> None:
    # When it has shut down because of a signal, uvicorn raises that signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    options = arguments()
    uvicorn.run(
        make_app(options.workers, options.concurrency),
        port=options.port,
        loop="uvloop",  # the workers run the same kind of loop
        access_log=False,
        timeout_graceful_shutdown=int(DRAIN),
    )


if __name__ == "__main__":
    main()
