"""amp_ext.doorbell: how one process wakes the event loop of another."""

from collections.abc import Sequence
from typing import final

@final
class Doorbell:
    def __init__(self) -> None:
        """Make an eventfd, or a non-blocking pipe where the system has or allows no eventfd.

        The descriptors are close-on-exec. OSError if the system has no descriptor left.
        """

    @staticmethod
    def attach(fds: Sequence[int]) -> Doorbell:
        """Take over `fds`, the descriptors of a doorbell that another process made."""

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors to pass to the other process: one, or two of a pipe."""

    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int:
        """The descriptor that is readable from ring() to clear()."""

    def ring(self) -> None:
        """Make the descriptor readable. It never blocks."""

    def clear(self) -> None:
        """Make the descriptor unreadable. Call this before reading the ring, not after."""

    def close(self) -> None: ...
