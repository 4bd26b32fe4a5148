"""Collections of garbage while values are encoded or decoded, and what their finalizers do then.

CPython 3.11 collects within any allocation, later ones between instructions. Code of the user's
that runs there may change a container that is encoded, or look at all containers that there are.
With PYTHONMALLOC=debug, what is used after it was freed is garbage, which crashes the process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from codec_support import CODECS
from support import run_script

pytestmark = pytest.mark.row("G50")

SETUP = """
import gc, importlib, sys
import codec_support
from aiomultiprocess._pure import codec as other, journal
codec = importlib.import_module(NAME)
def joined(segments): return b"".join(bytes(segment) for segment in segments)
class Collections:
    '''Within it, each collection calls a function; there is one at every few allocations.'''
    def __init__(self, call, every):
        self.call, self.every, self.inside, self.count = call, every, False, 0
        self.kept = []
    def on_collection(self, phase, info):
        self.kept.append(info)  # or the next dict would be made of it, without an allocation
        if not self.inside:
            self.inside = True
            self.count += 1
            self.call()
            self.inside = False
    def __enter__(self):
        gc.callbacks.append(self.on_collection)
        gc.set_threshold(self.every)
        return self
    def __exit__(self, *error):
        gc.set_threshold(700)
        gc.callbacks.remove(self.on_collection)
"""


NAMES = [codec.__name__ for codec in CODECS]
COMPILED = [name for name in NAMES if name.startswith("amp_ext")]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONMALLOC", "debug")
    return str(request.param)


def run(folder: Path, name: str, body: str) -> None:
    script = run_script(folder, f"NAME = {name!r}\n{SETUP}\n{body}\nprint('sound')", within=60)
    assert script.process.returncode == 0, script.out + script.err
    assert script.out.endswith("sound\n")


def test_a_container_that_changes_while_it_is_encoded_is_encoded_as_it_was_at_a_moment(
    name: str, tmp_path: Path
) -> None:
    run(
        tmp_path,
        name,
        """
def new_key(): return "".join(["key ", str(next(numbers))])  # with no other reference
def fresh_dict(): return {new_key(): [new_key()] for _ in range(20)}
def fresh_list(): return [{new_key(): new_key()} for _ in range(20)]
def fresh_set(): return {(new_key(),) for _ in range(20)}
def fresh_large(): return {(new_key(),): bytes(70_000) for _ in range(4)}
def change_dict():
    keys = list(victim)
    for key in keys[:-3]:
        victim[key + "!"] = victim.pop(key)
    for key in keys[-3:]:
        del victim[key]
    victim.update({keys[0]: [1], keys[1]: 2 << 90, "another": {new_key(): new_key()}})
def change_list():
    del victim[len(victim) // 2:]
    victim.insert(0, {new_key(): [new_key()]})
    victim.extend({new_key()} for _ in range(7))
def change_set():
    members = sorted(victim)
    victim.difference_update(members[::2])
    victim.update((new_key(),) for _ in range(len(members[::2])))
def change_large():
    for key in list(victim):
        victim[(new_key(),)] = bytes(bytearray(victim.pop(key)))
import itertools
numbers = itertools.count()
total = 0
for fresh, change in (
    (fresh_dict, change_dict), (fresh_list, change_list), (fresh_set, change_set),
    (fresh_large, change_large),
):
    for offset in range(30):
        victim = fresh()
        size = len(victim)
        items = [[new_key(), victim, new_key()]] * 2
        used = [[{} for _ in range(100)], [[] for _ in range(100)]]  # all that CPython has kept
        with Collections(change, 1 + offset % 5) as collections:
            junk = [iter(()) for _ in range(offset // 5)]
            segments, count, error = codec.encode_items(items, 0, 2, sys.maxsize)
        total += collections.count
        if error is not None:
            assert NAME.startswith("aio"), error
            continue
        values, failures = other.decode_items(joined(segments), 2)
        assert failures is None
        assert [value[::2] for value in values] == [items[0][::2]] * 2
        assert all(type(value[1]) is type(victim) for value in values)
assert total
""",
    )


def test_a_collection_that_empties_what_is_encoded_does_not_crash_the_encoder(
    name: str, tmp_path: Path
) -> None:
    run(
        tmp_path,
        name,
        """
if NAME.startswith("amp"):
    journal = importlib.import_module("amp_ext.journal")
def empty():
    if waiting:
        waiting.pop()
        victim.clear()
def encode(victim):
    return codec.encode_items([victim], 0, 1, sys.maxsize)[2]
def append(victim):
    writer = journal.Journal(memoryview(bytearray(1 << 16)))
    writer.begin(1, 0)
    assert writer.append(victim)
waiting, emptied = [], 0
for use in (encode, append):
    for size in (1, 2, 20):
        for every in range(1, 20):
            used = [{} for _ in range(100)]  # all that CPython has kept
            victim = {"".join(["key ", str(at)]): [str(1000 + at)] for at in range(size)}
            with Collections(empty, every):
                gc.collect()
                waiting.append(True)
                error = use(victim)
                waiting.clear()
            assert error is None or NAME.startswith("aio"), error
            emptied += not victim
assert emptied
""",
    )


@pytest.mark.parametrize("name", COMPILED, indirect=True)
def test_no_container_that_is_half_decoded_is_shown_to_a_collection(
    name: str, tmp_path: Path
) -> None:
    """Python has no way to make one; CPython 3.11 itself shows some of its own."""
    run(
        tmp_path,
        name,
        """
def look():
    for one in gc.get_objects():
        if type(one) in (list, tuple) and len(one) < 60:
            for member in one:
                type(member)
class Looks:
    def __reduce__(self): return looks, ()
def looks():
    look()
    return "looked"
items = [
    [{"a": [1000 + i]}, ({i: (i, [])},), [[], {1, i}, ()], frozenset({(i,)})] for i in range(9)
] + [Looks(), [[]], "text"]
payload = joined(codec.encode_items(items, 0, len(items), sys.maxsize)[0])
items[9] = "looked"
for offset in range(10):
    with Collections(look, 1 + offset % 3):
        junk = [[] for _ in range(offset)]
        assert codec.decode_items(payload, len(items)) == (items, None)
""",
    )


def test_a_codec_leaves_the_collector_as_it_was(name: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        name,
        """
class Switches:
    def __init__(self, how): self.how = how
    def __reduce__(self):
        seen.append(gc.isenabled())
        return switch, (self.how,)
def switch(how):
    seen.append(gc.isenabled())
    getattr(gc, how)()
    return how
seen = []
for before, after in (("enable", "disable"), ("disable", "enable")):
    getattr(gc, before)()
    was = gc.isenabled()
    items = [[{"key": {1}}], Switches(before), {"other": [[]]}]
    segments, count, error = codec.encode_items(items, 0, 3, sys.maxsize)
    assert error is None and gc.isenabled() is was
    assert codec.encode_items([{"a": [print, lambda: 0]}], 0, 1, sys.maxsize)[2] is not None
    assert gc.isenabled() is was
    payload = joined(segments)
    values, failures = codec.decode_items(payload, 3)
    assert values[1] == before and gc.isenabled() is was
    for at in range(len(payload)):
        try:
            codec.decode_items(payload[:at], 3)
        except ValueError:
            pass
        assert gc.isenabled() is was
    assert set(seen) == {was}, seen
    seen.clear()
    items = [[{"key": {1}}], Switches(after), {"other": [[]]}]
    codec.decode_items(joined(codec.encode_items(items, 0, 3, sys.maxsize)[0]), 3)
    assert gc.isenabled() is not was  # as the item's code has left it
    seen.clear()
""",
    )
