"""The codec: items of a chunk, or results, to the payload of a frame and back.

This page is the reference. The codec exists twice: in Python (`encoder`, `decoder`, `tags`), and
in Cython as `amp_ext.codec`, with modules of the same names. Both have the same functions and make
the same payloads, byte for byte, so that a parent and a worker may run different ones. Code that
encodes or decodes imports from `_accel`, which has chosen.

How it works
------------
A payload is `count` items, one after the other; how many there are, and whose, is in the frame's
header. Most items are made of plain builtin values, which take a fraction of a microsecond of their
own but several to pickle one by one. So those have an encoding of ours: one byte that says what
follows, the tag, and then the value:

    NONE FALSE TRUE     nothing more
    INT8 … INT64        a signed integer of that width, the narrowest that holds it
    BIGINT              size, two's complement in the fewest bytes that hold value and sign
    FLOAT               eight bytes
    STR                 size, UTF-8 (lone surrogates pass)
    BYTES               size, the bytes
    TUPLE LIST SET FROZENSET      number of members, the members in their order
    DICT                number of pairs, the pairs in their order, each its key and then its value
    KEY                 as a key of a DICT only: one byte, the number of a key of this payload
    INT8S … INT64S, FLOATS        a run, only among items or members of a TUPLE or LIST: number of
                        values, then the values, all in the width that the widest needs
    PICKLE              as an item only: number of buffers, for each one byte (1: read-only), size
                        and bytes; then size and bytes of a pickle of protocol 5

Values are in the machine's byte order, because both ends are on one machine. A size or number is
one byte if it is below 255, else the byte 255 and eight more.

An item that holds anything else, anywhere, is one PICKLE, made as `multiprocessing` makes it: with
the reducers of `copyreg` and those of `multiprocessing.reduction`, and with buffers out of band.
That is found out by trying; what was written of the item by then is taken back.

What holds
----------
CODEC-1  Types are kept exactly: only exact builtin types have tags. A bool, an IntEnum, a
    namedtuple or an OrderedDict is never taken for the type that it extends.
CODEC-2  No two items share anything that can change, not even if they did before.
CODEC-3  What one item holds twice stays one object: an item in which a list, dict or set, a tuple
    or frozenset that is not empty, or a str or bytes of `SHARED_MIN` or more is met twice is a
    PICKLE.
    So is one with a cycle, and one of more than `MAX_DEPTH` nested containers.
CODEC-4  An item that fails leaves nothing behind, and those before and after it never notice.
    Whatever is raised while it is pickled or unpickled is its failure, except KeyboardInterrupt.
CODEC-5  Runs: at an item or member that is an int of 64 bits or a float, a run takes it and all of
    the same kind that follow, if they are `RUN_MIN` or more. Among items it takes no more than fit
    into
    `max_bytes` at eight bytes each, and one.
CODEC-6  Keys: a str that is a key of a DICT and of up to `KEY_SIZE` bytes takes the next number
    below `KEY_COUNT` where it is met first, and is a KEY from then on. The numbers that an item
    took are
    free again if it turns out a PICKLE.
CODEC-7  The decoder trusts nothing: it looks at no byte beyond the payload, makes no container for
    more members than the payload has bytes left, and nests no deeper than `MAX_DEPTH`; what breaks
    the
    rules above is a `CorruptFrameError`. (A pickle is unpickled, which may do anything at all.)
CODEC-8  A payload is made in segments: bytes, of which those of `SEGMENT_MIN` or more may be the
    user's own, and views of buffers as large, which are to be sent before anything can change them.
    What
    was decoded does not refer to the payload, with one exception: if that is a `frames.Parts`, each
    bytes, buffer, pickle or BIGINT of `SEGMENT_MIN` or more is a segment there too, becomes the
    value, and is the payload's no more.
CODEC-9  What an item holds outlives the process that sent it. Some libraries register reducers with
    `multiprocessing` that share memory by a descriptor, which is lost when a worker retires before
    the result is read: torch has them in `torch.multiprocessing.reductions`, others in modules of
    the same name. They are passed over for types that pickle by themselves, or by `copyreg`. All
    other registered reducers count, as those of connections, which are nothing but a descriptor.
CODEC-10 What there is no memory for fails alone. While items are encoded it is the failure of that
    item (CODEC-4). Where one of SEGMENT_MIN or more bytes ends a payload, they begin a segment, so
    that
    those before it arrive in any case. Where they are decoded, that item is a failure, a
    MemoryError, and
    so are those behind it in the payload; likewise if a segment did not arrive (frames.py,
    FRAME-5).
"""

from .decoder import decode_items, loads
from .encoder import dumps, encode_items
from .tags import CorruptFrameError

__all__ = ["CorruptFrameError", "decode_items", "dumps", "encode_items", "loads"]
