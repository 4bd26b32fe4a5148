"""Codecs, journals and buffers while memory is refused: CODEC-4, CODEC-10, RESULTS-2.

Each test runs in a process of its own, because the failure it looks for is a crash.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from struct import calcsize
from typing import Any

import pytest

from aiomultiprocess._wire import frames
from codec_support import CODECS, arrived, decode
from support import run_script

pytestmark = [
    pytest.mark.row("G49"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's"),
]

NAMES = [codec.__name__ for codec in CODECS]

SETUP = """
import functools, gc, importlib, pickle, sys
import codec_support, scarcity
from aiomultiprocess._pure import codec as other, journal
from aiomultiprocess._wire import frames
from aiomultiprocess._wire.journal import read
codec = importlib.import_module(sys.argv[1] if len(sys.argv) > 1 else NAME)
MIB = scarcity.MIB
COMPILED = not NAME.startswith("aio")
def joined(segments): return b"".join(bytes(segment) for segment in segments)
"""


def run(folder: Path, name: str, body: str, within: float = 60.0) -> str:
    """What a script on one codec prints; it must end well."""
    script = run_script(folder, f"NAME = {name!r}\n{SETUP}\n{body}", within=within)
    assert script.process.returncode == 0, script.out + script.err
    return script.out


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def refusals() -> None:
    """Allocations that can be refused one by one; CPython builds have a test module for that."""
    if importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this Python was built without _testcapi, which alone can refuse allocations")


@pytest.mark.parametrize(
    "large",
    [
        '"x" * (40 * MIB)',
        '"ü" * (20 * MIB)',
        '[5, "text", None] * (8 * MIB)',
        "[1 << 40] * (8 * MIB)",
        "[0.5] * (8 * MIB)",
        "{i: -i for i in range(4 * MIB)}",
        "{0: [b'bytes of an item that is no segment' * 8] * 300_000}",
        "codec_support.Plain('x' * (40 * MIB))",
    ],
)
def test_an_item_too_large_for_memory_fails_and_those_before_it_are_kept(
    name: str, large: str, tmp_path: Path
) -> None:
    out = run(
        tmp_path,
        name,
        f"""
items = ["before", {{"key": 1}}, {large}, "after"]
with scarcity.limited(24 * MIB):
    segments, count, error = codec.encode_items(items, 0, 4, sys.maxsize)
    again = codec.encode_items(items, 3, 4, sys.maxsize)
assert type(error) is MemoryError, error
assert other.decode_items(joined(segments), count) == (items[:2], None)
assert other.decode_items(joined(again[0]), 1) == (["after"], None)
print("sound")
""",
    )
    assert out == "sound\n"


@pytest.mark.parametrize(
    "large", ['"x" * (40 * MIB)', f"[()] * ({16 // calcsize('P')} * MIB)", "[0.5] * (2 * MIB)"]
)
def test_an_item_too_large_to_be_decoded_fails_and_those_before_it_are_kept(
    name: str, large: str, tmp_path: Path
) -> None:
    out = run(
        tmp_path,
        name,
        f"""
items = ["before", {{"key": 1}}, {large}, "behind"]
payload = joined(codec.encode_items(items, 0, 4, sys.maxsize)[0])
with scarcity.limited(8 * MIB):
    values, failures = codec.decode_items(payload, 4)
assert values == [*items[:2], None, None]
assert {{at: type(error) for at, error in failures.items()}} == {{2: MemoryError, 3: MemoryError}}
assert codec.decode_items(payload, 4) == (items, None)
print("sound")
""",
    )
    assert out == "sound\n"


def test_an_encoder_survives_the_refusal_of_any_allocation(
    name: str, tmp_path: Path, refusals: None
) -> None:
    out = run(
        tmp_path,
        name,
        """
items = [
    1, "a" * 3000, {"key": 1, "other": [2, 3]}, {4, 5}, 1 << 90, bytes(70_000), [1, 2, 3, 4, 5],
    pickle.PickleBuffer(bytearray(70_000)), [bytes(66_000)], "\\ud800", range(3),
    {str(i): (i, [i]) for i in range(9)}, "z" * 70_000,
]
encode = functools.partial(codec.encode_items, items, 0, len(items), sys.maxsize)
whole = joined(encode()[0])
def check(outcome):
    assert gc.isenabled()
    if not isinstance(outcome, MemoryError):
        segments, count, error = outcome
        # CPython 3.11 forgets to say what was wrong in some places
        assert error is None or isinstance(error, MemoryError | SystemError), error
        assert whole.startswith(joined(segments))
        assert (count == len(items)) is (error is None), (count, error)
    assert joined(encode()[0]) == whole
assert scarcity.each_refusal(encode, check, COMPILED) > 20
print("sound")
""",
    )
    assert out == "sound\n"


def test_a_decoder_survives_the_refusal_of_any_allocation(
    name: str, tmp_path: Path, refusals: None
) -> None:
    out = run(
        tmp_path,
        name,
        """
items = [
    1, 1000, "a" * 3000, {"key": 1000, "other": [2, 3000]}, {"key": "other"}, {4, 5000}, 1 << 90,
    [1000, 2000, 3000, 4000], bytes(70_000), ([frozenset({"x"}), 0.5],), [0.5] * 5,
    range(3), pickle.PickleBuffer(bytearray(70_000)), pickle.PickleBuffer(b"a" * 70_000),
    pickle.PickleBuffer(bytearray(7)), "\\ud800 and more",
]
segments = codec.encode_items(items, 0, len(items), sys.maxsize)[0]
whole = codec.decode_items(joined(segments), len(items))[0]
def check(outcome):
    assert gc.isenabled()
    if not isinstance(outcome, MemoryError):
        values, failures = outcome
        failures = failures or {}
        assert len(values) == len(items)
        assert all(isinstance(error, MemoryError) for error in failures.values())
        kept = [at for at in range(len(items)) if at not in failures]
        shapes = [codec_support.shape([some[at] for at in kept]) for some in (values, whole)]
        assert shapes[0] == shapes[1]
for payload in (joined(segments), codec_support.arrived(segments)):
    decode = functools.partial(codec.decode_items, payload, len(items))
    assert decode()[1] is None
    assert scarcity.each_refusal(decode, check, COMPILED) > 10
    assert decode()[1] is None
print("sound")
""",
    )
    assert out == "sound\n"


def test_a_result_too_large_for_memory_leaves_a_journal_as_it_was(
    name: str, tmp_path: Path
) -> None:
    out = run(
        tmp_path,
        name,
        """
kind = importlib.import_module("amp_ext.journal").Journal if COMPILED else journal.Journal
memory = bytearray(1 << 13)
writer = kind(memoryview(memory))
writer.begin(7, 0)
for large in ("x" * (40 * MIB), [0.5] * (8 * MIB), codec_support.Plain("x" * (40 * MIB))):
    assert writer.append("before")
    with scarcity.limited(24 * MIB):
        try:
            writer.append(large)
        except MemoryError:
            print("refused")
    assert writer.append("after")
chunk_id, offset, count, payload = writer.take()
assert other.decode_items(joined(payload), count) == (["before", "after"] * 3, None)
assert [entry.items for entry in read(memoryview(memory))] == [6]
""",
    )
    assert out == "refused\n" * 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("amp_ext")])
def test_a_journal_survives_the_refusal_of_any_allocation(
    name: str, tmp_path: Path, refusals: None
) -> None:
    """An answer that was accepted is in the entry, one that was refused is not.

    Of the Python one, the interpreter may be refused memory between any two instructions.
    """
    out = run(
        tmp_path,
        name,
        """
kind = importlib.import_module("amp_ext.journal").Journal
values = [1, {"key": 2000}, "a" * 900, {3, 4000}, 1 << 80, bytes(200), range(5), [6]]
def entry(at, start, stop):
    memory = bytearray(1 << 13)
    writer = kind(memoryview(memory))
    assert not isinstance(scarcity.attempt(lambda: writer.begin(7, 0), 1000, 1001), MemoryError)
    accepted = []
    for place, value in enumerate(values):
        append = lambda: writer.append(value)
        fits = scarcity.attempt(append, start, stop) if place == at else append()
        if not isinstance(fits, MemoryError):
            assert fits is True
            accepted.append(value)
    taken = scarcity.attempt(writer.take, start, stop) if at == len(values) else writer.take()
    assert writer.place() == (7, 0, len(accepted))
    [(_, _, _, count, payload)] = read(memoryview(memory))
    payload = bytes(payload)
    assert count == len(accepted)
    if not isinstance(taken, MemoryError):
        assert joined(taken[3]) == payload
    assert other.decode_items(payload, count) == (accepted, None)
    writer.begin(8, 0)
    assert writer.append("after")
    assert writer.take()[:3] == (8, 0, 1)
    return isinstance(taken, MemoryError) or len(accepted) < len(values)
for at in range(len(values) + 1):
    refused = 0
    for start in range(60):
        entry(at, start, start + 1)
        refused += entry(at, start, 0)
    assert refused < 60
    print(at, "sound")
""",
    )
    assert len(out.splitlines()) == 9


@pytest.mark.parametrize("writable", [False, True])
def test_a_buffer_builder_survives_the_refusal_of_any_allocation(
    name: str, writable: bool, tmp_path: Path, refusals: None
) -> None:
    out = run(
        tmp_path,
        name,
        f"""
package = "amp_ext" if COMPILED else "aiomultiprocess._pure"
builders = importlib.import_module(package + ".buffer_builder")
pieces = [bytes([at]) * 400_000 for at in range(9)]
views = list(map(memoryview, pieces))
def grow():
    one = builders.BufferBuilder(3_600_000, {writable})
    for view in views:
        one.add(view)
    return one.take()
def check(outcome):
    if not isinstance(outcome, MemoryError):
        assert outcome == b"".join(pieces)
assert scarcity.each_refusal(grow, check, COMPILED) > 0
print("sound")
""",
    )
    assert out == "sound\n"


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
@pytest.mark.parametrize("text", [False, True])
def test_items_before_a_segment_that_did_not_arrive_are_decoded(codec: Any, text: bool) -> None:
    """CODEC-10: also of one whose bytes stand between those of others."""
    large: Any = ["x" * 70_000, b"y" * 70_000] if text else b"y" * 70_000
    items = [1, {"key": "small"}, {"key": large}]
    segments, count, error = codec.encode_items(items, 0, 3, sys.maxsize)
    assert (count, error) == (3, None)
    assert [len(segment) >= 65_536 for segment in segments] == [False, *[True] * (1 + text)]
    for at in range(len(segments)):
        parts = arrived(segments)
        assert decode(codec, parts, 3) == items
        parts.segments[at] = len(segments[at])
        values, failures = codec.decode_items(parts, 3)
        whole = 2 if at else 0
        assert values == items[:whole] + [None] * (3 - whole)
        assert {place: type(why) for place, why in failures.items()} == dict.fromkeys(
            range(whole, 3), MemoryError
        )
    values, failures = codec.decode_items(frames.PayloadParts([80_000], 80_000), 3)
    assert (values, set(failures)) == ([None] * 3, {0, 1, 2})
    with pytest.raises(MemoryError, match="80000 bytes"):
        bytes(frames.PayloadParts([80_000], 80_000))
