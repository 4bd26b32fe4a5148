"""Write the inputs that ring_fuzz.c starts from: sound mappings, which the fuzzer then mutates.

python3 seeds.py FOLDER
"""

import struct
import sys
from pathlib import Path

FORMATTED, HONEST, TWO_RINGS, UP = 0x04, 0x08, 0x10, 0x20
MAGIC, VERSION, CAPACITY, ENTRIES = 0x31474E4952504D41, 2, 64, 3
BEGIN, END, PADDING, DATA = 1, 2, 0x50, 0x40
WRITE, PUBLISH, WANT_ROOM, READ, RELEASE, SLEEP, AWAKE, POKE = 0, 3, 4, 5, 7, 8, 9, 10


def cursors(tail: int, head: int, sleeping: int = 0, waiting: int = 0) -> bytes:
    return struct.pack("<4Q", tail, head, sleeping, waiting)


def record(length: int, kind: int = DATA | BEGIN | END) -> bytes:
    return struct.pack("<II", length, kind) + bytes(length + -length % 8)


def seed(options: int, down: bytes, up: bytes, data: tuple[bytes, bytes], script: bytes) -> bytes:
    head = bytes([options]) + struct.pack("<5Q", MAGIC, VERSION, CAPACITY, ENTRIES, 0) + down + up
    return head + b"".join(ring.ljust(CAPACITY, b"\0") for ring in data) + script


def seeds() -> dict[str, bytes]:
    empty, whole = cursors(0, 0), BEGIN | END
    traffic = bytes([WRITE, 12 << 2 | whole, PUBLISH, READ, READ, RELEASE, SLEEP, AWAKE] * 8)
    full = bytes([WRITE, 24 << 2 | whole] * 3 + [WANT_ROOM, 24, READ, RELEASE] * 4)
    unread = record(8), record(16)
    wrapped = record(0) + bytes(40) + record(8, PADDING)
    poke = (
        bytes([POKE + 1, 0x06]) + struct.pack("<Q", 40) + bytes([POKE, 0x34]) + bytes(8) + traffic
    )
    far = 2**64 - 16
    return {
        "honest": seed(HONEST, empty, empty, (b"", b""), traffic + full),
        "full": seed(FORMATTED, empty, empty, (b"", b""), full),
        "unread": seed(TWO_RINGS, cursors(16, 0), cursors(24, 0, 1, 1), unread, traffic),
        "wrapped": seed(FORMATTED | UP, empty, cursors(72, 48), (b"", wrapped), traffic),
        "far": seed(FORMATTED, cursors(far, far), empty, (b"", b""), traffic + full),
        "poked": seed(FORMATTED | TWO_RINGS, empty, empty, (b"", b""), traffic + poke),
    }


def main(folder: str) -> None:
    for name, content in seeds().items():
        (Path(folder) / name).write_bytes(content)


if __name__ == "__main__":
    main(sys.argv[1])
