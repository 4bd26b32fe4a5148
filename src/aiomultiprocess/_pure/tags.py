"""Tags and limits that encoder and decoder share. `codec` says what they mean.

`amp_ext/tags.pxd` has the same numbers for Cython; a test compares the two.
"""

from __future__ import annotations

from typing import Final

NONE: Final = 0
FALSE: Final = 1
TRUE: Final = 2
INT8: Final = 3
INT16: Final = 4
INT32: Final = 5
INT64: Final = 6
BIGINT: Final = 7
FLOAT: Final = 8
STR: Final = 9
BYTES: Final = 10
TUPLE: Final = 11
LIST: Final = 12
SET: Final = 13
FROZENSET: Final = 14
DICT: Final = 15
KEY: Final = 16
PICKLE: Final = 17
INT8S: Final = 18
INT16S: Final = 19
INT32S: Final = 20
INT64S: Final = 21
FLOATS: Final = 22
REFERENCE: Final = 23

#: The first byte of a size or number that does not fit into one.
LONG_SIZE: Final = 255
#: CODEC-3: an item is pickled if it nests containers deeper than MAX_DEPTH, or holds a str or bytes
#: of this length twice.
MAX_DEPTH: Final = 32
SHARED_MIN: Final = 4096
#: CODEC-5: the shortest run.
RUN_MIN: Final = 4
#: CODEC-6: how many keys have numbers, and how many bytes each may have.
KEY_COUNT: Final = 256
KEY_SIZE: Final = 64
#: CODEC-8: bytes of this size or more are a segment of their own, and are not copied.
SEGMENT_MIN: Final = 64 * 1024


class CorruptFrameError(ValueError):
    """A payload that no encoder can have made."""
