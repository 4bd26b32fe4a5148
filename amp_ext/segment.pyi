"""amp_ext.segment: memory that one process fills, and in which another keeps an object."""

from typing import Final, final

#: Bytes of a segment before its data.
HEADER: Final[int]
#: The bit of `answer` that says that a copy of the object may live on in another process.
KEPT: Final[int]

@final
class Segment:
    """The mapping of a segment in one process. It is unmapped when no loan needs it any more."""

    @staticmethod
    def create(capacity: int, data: bytes | bytearray | memoryview) -> Segment:
        """In the owner: memory for `capacity` bytes, reserved and of a sealed size, with `data`.

        OSError if the system refuses it, ValueError if there is no data, or too much.
        """

    @staticmethod
    def attach(fd: int) -> Segment:
        """In the borrower: map the memory behind `fd`, which this takes over.

        OSError if it cannot be mapped or its size is not sealed; ValueError if it is too small.
        """

    @property
    def fd(self) -> int:
        """Its descriptor, -1 once that is closed."""

    @property
    def held(self) -> bool:
        """In the borrower: whether a loan has not ended."""

    @property
    def capacity(self) -> int:
        """How many bytes of data it has."""

    @property
    def answer(self) -> int:
        """Twice the number of the loan that ended last, and the bit `KEPT`; 0 before the first."""

    def fill(self, data: bytes | bytearray | memoryview) -> None:
        """In the owner: copy data into it. ValueError if that is too large."""

    def loan(self, number: int, size: int, readonly: bool) -> Loan:
        """In the borrower: the first `size` bytes as a buffer; its end is the end of the loan.

        ValueError if the last one has not ended, or it has not so many bytes.
        """

    def close_fd(self) -> None:
        """Close its descriptor. The memory stays mapped."""

@final
class Loan:
    """A buffer that lies in a segment. When the last view of it is gone, the owner learns it."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
