"""`python -m aiomultiprocess info`: what a bug report should contain first."""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Iterator

from .. import __version__, _accel
from .._processes.cpus import usable_cpus
from .._transport import select
from ..core import get_context


def show() -> int:
    """Print the table; the exit status is 1 if no backend is available."""
    try:
        selection = select.select()
    except (RuntimeError, ValueError) as error:
        chosen, failed = f"none: {error}", 1
    else:
        chosen, failed = f"{selection.name} ({selection.why})", 0
    for name, what in lines(chosen):
        print(f"{name:14}{what}")
    return failed


def lines(chosen: str) -> Iterator[tuple[str, str]]:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield "version", __version__
    yield "python", f"{python} on {platform.system()} {platform.machine()}"
    yield "backend", chosen
    yield "extension", _extension()
    yield "ring", _ring()
    yield "loop", asyncio.run(_loop())
    yield "start method", get_context().get_start_method()
    yield "workers", f"{usable_cpus()} by default, the CPUs that this process may use"


def _extension() -> str:
    error = _accel.EXTENSION_ERROR
    if error is None:
        return f"amp_ext, built for {sys.implementation.cache_tag}"
    return f"none ({error})"


def _ring() -> str:
    if _accel.EXTENSION_ERROR is not None:
        return "none"
    from .._transport.shm import CAPACITY

    return f"{CAPACITY >> 10} KiB each way for a worker"


async def _loop() -> str:
    loop = asyncio.get_running_loop()
    kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
    return f"{kind} by default; workers run what their parent runs"
