"""A preload of a dask worker: its machine refuses another process."""

from typing import Any, NoReturn

from aiomultiprocess._cluster.processes import HostedProcess


def _refuse(*args: Any) -> NoReturn:
    raise OSError(11, "no process is left")


HostedProcess.start = _refuse  # type: ignore[method-assign]
