"""The codec: turns items of a chunk, or results, into the payload of a frame, and back.

This page is the reference. The codec exists twice: in Python (`encoder`, `decoder`, `tags`), and
in Cython as `amp_ext.codec`, with modules of the same names. Both have the same functions and make
the same payloads, byte for byte, so that a parent and a worker may run different ones. Code that
encodes or decodes imports the codec from `_accel`, which chooses one of the two.

How it works
------------
A payload is `count` items, one after the other; the frame's header says how many there are, and to
which tasks they belong. Most items consist of plain builtin values. To pickle such an item alone
takes several microseconds, to encode its value a fraction of one. So builtin values have an
encoding of our own: one byte that says what follows, the *tag*, and then the value:

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
    REFERENCE           the number of a shared object, eight bytes
    PICKLE              as an item only: number of buffers, for each one byte (1: read-only), size
                        and bytes; then size and bytes of a pickle of protocol 5

Values are in the machine's byte order, because both ends are on one machine. A size or number is
one byte if it is below 255, else the byte 255 and eight more.

An item that holds any other value, at any depth, is one PICKLE. It is pickled as `multiprocessing`
does: with the reducers of `copyreg` and of `multiprocessing.reduction`, and with buffers out of
band. The encoder finds such a value by trying, and then removes what it wrote of the item.

What holds
----------
CODEC-1  Types are kept exactly: only exact builtin types have tags. A bool, an IntEnum, a
    namedtuple or an OrderedDict is never taken for the type that it extends.
CODEC-2  No two decoded items share an object that can change, even if the encoded items did.
CODEC-3  An object that one item holds twice is one object after decoding, too. So the encoder
    pickles an item that holds twice a list, dict or set, a tuple or frozenset that is not empty, or
    a str or bytes of length `SHARED_MIN` or more. It also pickles an item with a cycle, and one of
    more than `MAX_DEPTH` nested containers.
CODEC-4  An item that fails leaves nothing in the payload, and does not affect the items before and
    after it. Any exception raised while it is pickled or unpickled is its failure, except a
    KeyboardInterrupt, which is raised. Once `contain_interrupts` was called, one that is raised
    while an item is unpickled is its failure, too: a worker calls it, as it ignores Ctrl-C.
CODEC-5  Runs: at an item or member that is an int of 64 bits or a float, a run takes it and all
    that follow and are of the same kind, if these are `RUN_MIN` or more. Among items, a run takes
    no more than fit into `max_bytes` at eight bytes each, and one.
CODEC-6  Keys: a str that is a key of a DICT and has up to `KEY_SIZE` bytes takes the next number
    below `KEY_COUNT` where the encoder first meets it, and is a KEY from then on. If an item turns
    out to be a PICKLE, the numbers that it took are free again.
CODEC-7  The decoder does not trust a payload: it reads no byte beyond the end, makes no container
    for more members than the payload has bytes left, and nests no deeper than `MAX_DEPTH`. A
    payload that breaks the rules above is a `CorruptFrameError`. (Unpickling may run any code.)
CODEC-8  A payload is made in segments: bytes, of which those of `SEGMENT_MIN` or more may be the
    user's own, and views of the user's buffers that are as large. The caller sends the views before
    anything can change the buffers. Decoded values do not refer to the payload, with one exception:
    in a `frames.PayloadParts`, each bytes, buffer, pickle or BIGINT of `SEGMENT_MIN` or more is a
    segment, too; that segment becomes the value, and is no longer part of the payload.
CODEC-9  What an item holds outlives the process that sent it. Some libraries register reducers with
    `multiprocessing` that share memory by a descriptor, which is lost if a worker retires before
    the parent has read the result: torch has them in `torch.multiprocessing.reductions`, others in
    modules of the same name. The codec ignores these reducers for types that pickle by themselves,
    or by `copyreg`. It uses all other registered reducers, such as those of connections, which are
    nothing but a descriptor.
CODEC-10  An item for which there is no memory fails alone. In the encoder, the MemoryError is the
    failure of that item (CODEC-4). If the last item of a payload has `SEGMENT_MIN` or more bytes,
    they begin a segment, so that the items before it arrive in any case. In the decoder, a
    MemoryError is the failure of that item and of those behind it in the payload; likewise if a
    segment did not arrive (FRAME-5 in frames.py).
CODEC-11  The unpickler gets each buffer of a pickle as a memoryview of bytes, which is read-only if
    the buffer was: of memory in which it was lent (FRAME-6), or of bytes or a bytearray that
    nothing else refers to. So a buffer arrives as one type, whatever its size and the way it came.
CODEC-12  A reference stands for an object of the one type that `register_references` names, as long
    as its `_reference` is a number. The encoder passes those that it has met to `note` when the
    payload is done, and not before: no code in Python runs while an item is encoded, because
    another thread could change the item meanwhile. The decoder makes the object by what
    `receive_references` got; what that raises is the failure of the item (CODEC-4). An object that
    an item holds twice is pickled (CODEC-3).
"""

from .decoder import contain_interrupts, decode_items, loads, receive_references
from .encoder import dumps, encode_items, register, register_references
from .tags import CorruptFrameError

__all__ = [
    "CorruptFrameError",
    "contain_interrupts",
    "decode_items",
    "dumps",
    "encode_items",
    "loads",
    "receive_references",
    "register",
    "register_references",
]
