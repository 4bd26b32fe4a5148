"""A preload of a dask worker: its machine has no memory for a shared object."""

from typing import Any, NoReturn

from aiomultiprocess._transport import shared_objects


def _refuse(content: Any) -> NoReturn:
    raise OSError(28, "No space left on device")


shared_objects.store = _refuse  # type: ignore[assignment]
