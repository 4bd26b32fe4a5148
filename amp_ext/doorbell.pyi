"""amp_ext.doorbell: how one process wakes the event loop of another."""

from collections.abc import Sequence
from typing import final

@final
class Doorbell:
    def __init__(self) -> None:
        """An eventfd, or a non-blocking pipe where there is none or it is refused; close-on-exec.

        OSError if there is no descriptor.
        """

    @staticmethod
    def attach(fds: Sequence[int]) -> Doorbell:
        """The doorbell behind `fds` of another process's doorbell, which are taken over."""

    @property
    def fds(self) -> tuple[int, ...]:
        """One descriptor, or two: those to hand to the other process."""

    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int:
        """Readable from ring() to clear()."""

    def ring(self) -> None:
        """Make it readable. Never blocks."""

    def clear(self) -> None:
        """Make it unreadable. Clear it before reading the ring, not after."""

    def close(self) -> None: ...
