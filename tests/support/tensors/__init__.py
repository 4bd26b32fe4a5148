"""A library that is to its tensors what torch is: `multiprocessing` shares them by a descriptor.

As there, that comes with the import, and is in a module `multiprocessing.reductions`.
"""

from __future__ import annotations

from typing import Any


class Tensor:
    """Numbers; a pickle of it holds them, unless the reducer of `reductions` makes it."""

    memory: Any = None  # of one that is shared

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers

    def __reduce_ex__(self, protocol: object) -> Any:
        return type(self), self.numbers

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and self.numbers == other.numbers

    __hash__ = None  # type: ignore[assignment]


class Event:
    """Cannot be pickled without the reducer of `reductions`."""

    def __getstate__(self) -> Any:
        raise TypeError("an event cannot be pickled")


from tensors.multiprocessing import reductions  # noqa: E402  (it needs the classes)

reductions.register()
