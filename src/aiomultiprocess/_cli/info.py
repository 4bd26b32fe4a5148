"""`python -m aiomultiprocess info`: what a bug report should contain first."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Iterator

from .. import __version__, _accel
from .._processes.cpus import usable_cpus
from .._transport import select
from ..core import get_context


def show(*, as_json: bool = False) -> int:
    """Print the table; the exit status is 1 if no backend is available."""
    try:
        selection = select.select()
    except (RuntimeError, ValueError) as error:
        name, why, failed = None, str(error), 1
    else:
        name, why, failed = selection.name, selection.why, 0
    if as_json:
        print(json.dumps(facts(name, why), indent=2))
        return failed
    chosen = f"none: {why}" if name is None else f"{name} ({why})"
    for title, what in lines(chosen):
        print(f"{title:14}{what}")
    return failed


def facts(backend: str | None, why: str) -> dict[str, object]:
    """The same for programs: None for what is not there."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "backend": backend,
        "backend_reason": why,
        "extension": _accel.EXTENSION_ERROR is None,
        "extension_error": None if _accel.EXTENSION_ERROR is None else str(_accel.EXTENSION_ERROR),
        "ring_bytes": _ring_bytes(),
        "loop": asyncio.run(_loop()),
        "start_method": get_context().get_start_method(),
        "workers": usable_cpus(),
    }


def lines(chosen: str) -> Iterator[tuple[str, str]]:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield "version", __version__
    yield "python", f"{python} on {platform.system()} {platform.machine()}"
    yield "backend", chosen
    yield "extension", _extension()
    yield "ring", _ring()
    yield "loop", f"{asyncio.run(_loop())} by default; workers run what their parent runs"
    yield "start method", get_context().get_start_method()
    yield "workers", f"{usable_cpus()} by default, the CPUs that this process may use"


def _extension() -> str:
    error = _accel.EXTENSION_ERROR
    if error is None:
        return f"amp_ext, built for {sys.implementation.cache_tag}"
    return f"none ({error})"


def _ring() -> str:
    capacity = _ring_bytes()
    return "none" if capacity is None else f"{capacity >> 10} KiB each way for a worker"


def _ring_bytes() -> int | None:
    if _accel.EXTENSION_ERROR is not None:
        return None
    from .._transport.shm import CAPACITY

    return CAPACITY


async def _loop() -> str:
    loop = asyncio.get_running_loop()
    return f"{type(loop).__module__}.{type(loop).__qualname__}"
