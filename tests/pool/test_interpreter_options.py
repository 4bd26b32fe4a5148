"""Programs under the options of the interpreter that change what code may do.

Workers inherit the options. Under `-bb` a comparison of str and bytes is an error, under `-W error`
each warning, under `-O` there is no assert, under `-OO` no docstring, and under `-I` and `-S` there
is less on `sys.path`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import aiomultiprocess
from support import run_script

PROGRAM = """
import asyncio, os, pickle, sys
from aiomultiprocess import Pool, Process, Worker, WorkerLostError, set_start_method

class Unreadable:
    def __reduce__(self):
        return divide, (1, 0)

def divide(a, b):
    return a / b

async def echo(*args, **kwds):
    await asyncio.sleep(0)
    return args, kwds

async def fail(*args):
    raise ValueError("wrong", *args)

async def leave(code):
    os._exit(code)

async def make_lambda():
    return lambda: None

async def options():
    return sys.flags.bytes_warning, sys.flags.optimize, sys.warnoptions

async def items(values):
    for value in values:
        yield value

def check(condition):
    if not condition:  # an assert is nothing under -O
        raise SystemExit(f"not so, in line {sys._getframe(1).f_lineno}")

async def fails(awaitable, *kinds):
    try:
        await awaitable
    except kinds:
        return True
    return False

VALUES = [b"bytes", "text", bytearray(b"more"), {b"k": "v"}, {"b"}, {b"b"}, None, bytes(1 << 20)]

async def use_a_pool():
    async with Pool(2, initializer=divide, initargs=(1, 2)) as pool:
        expected = [((value,), {}) for value in VALUES]
        check(await pool.map(echo, VALUES) == expected)
        check([result async for result in pool.map(echo, items(VALUES))] == expected)
        check(await pool.apply(echo, (b"a",), {"b": "c"}) == ((b"a",), {"b": "c"}))
        check(await pool.apply(options) == await options())
        check(await fails(pool.apply(fail, (b"bytes", "text")), ValueError))
        check(await fails(pool.apply(fail, (Unreadable(),)), Exception))
        check(await fails(pool.apply(make_lambda), Exception))
        check(await fails(pool.apply(echo, (lambda: None,)), pickle.PicklingError))
        check(await fails(pool.apply(echo, (Unreadable(),)), Exception))
        check(await fails(pool.map(divide, [1]), TypeError))
        check(await fails(pool.apply(leave, (3,)), WorkerLostError))
        task = asyncio.ensure_future(pool.apply(asyncio.sleep, (60,)))
        await pool.apply(echo)
        task.cancel()
        check(await fails(task, asyncio.CancelledError))

async def use_processes():
    check(await Worker(target=echo, args=(b"a", "b")) == ((b"a", "b"), {}))
    check(await Worker(target=echo, args=(bytes(1 << 20),)) == ((bytes(1 << 20),), {}))
    check(isinstance(await Worker(target=fail, args=(b"a",)), ValueError))
    check(await fails(Worker(target=leave, args=(5,)), WorkerLostError))
    process = Process(target=leave, args=(4,))
    await process
    check(process.exitcode == 4)

async def main():
    await use_a_pool()
    await use_processes()
    print("done")

if __name__ == "__main__":
    set_start_method({method!r})
    asyncio.run(main())
"""

OPTIONS = ["-bb -W error", "-X dev -W error", "-O", "-OO", "-I", "-S -W error", "-X utf8=0 -E -s"]


@pytest.mark.row("G55")
@pytest.mark.parametrize("options", OPTIONS)
def test_a_pool_and_processes_work_under_each_option(
    options: str,
    backend: str,
    start_method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = Path(aiomultiprocess.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(installed))  # `-S` would not find it
    source = PROGRAM.replace("{method!r}", repr(start_method))
    script = run_script(tmp_path, source, *options.split(), within=60)
    assert (script.process.returncode, script.out) == (0, "done\n"), script.err
    # 3.15 warns of globals that its own fork server made, while logging formats a traceback
    complaints = ("BytesWarning", "ResourceWarning", "Exception ignored")
    assert [word for word in complaints if word in script.err] == [], script.err
