"""The event loops of workers (loops.py)."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiomultiprocess import Pool
from aiomultiprocess._processes import loops
from support import run_script

if sys.platform != "linux":
    pytest.skip("other systems' selectors are exact themselves", allow_module_level=True)

WAIT = 0.0123456  # seconds, no whole number of milliseconds


@pytest.fixture
def selector() -> Iterator[loops.ExactSelector]:
    selector = loops.ExactSelector()
    yield selector
    selector.close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long select() was asked to wait."""
    waits: list[float] = []

    def note(readers: Any, writers: Any, others: Any, timeout: float) -> Any:
        waits.append(timeout)
        return select.select(readers, writers, others, timeout)

    monkeypatch.setattr(loops, "select", SimpleNamespace(select=note))
    return waits


def test_a_wait_is_as_long_as_was_asked(selector: loops.ExactSelector, waits: list[float]) -> None:
    begun = time.monotonic()
    assert selector.select(WAIT) == []
    assert time.monotonic() >= begun + WAIT
    assert waits == [WAIT]  # and not rounded up


def test_a_wait_ends_when_there_is_something_to_read(
    selector: loops.ExactSelector, waits: list[float]
) -> None:
    reader, writer = os.pipe()
    try:
        key = selector.register(reader, 1)
        os.write(writer, b"x")
        assert selector.select(WAIT) == [(key, 1)]
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("timeout", [None, 0, -1, loops.ExactSelector.LONGEST])
def test_other_waits_are_left_to_epoll(
    selector: loops.ExactSelector, waits: list[float], timeout: float | None
) -> None:
    reader, writer = os.pipe()
    try:
        selector.register(reader, 1)
        os.write(writer, b"x")
        assert len(selector.select(timeout)) == 1
    finally:
        os.close(reader)
        os.close(writer)
    assert waits == []


def test_a_descriptor_that_select_cannot_take_is_left_to_epoll(
    selector: loops.ExactSelector, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector, "DESCRIPTORS", selector.fileno())
    assert selector.select(WAIT) == []
    assert waits == []


async def selector_of_a_worker(_: int) -> tuple[str, str]:
    loop = asyncio.get_running_loop()
    return type(loop).__name__, type(getattr(loop, "_selector", None)).__name__


async def test_a_worker_has_an_exact_loop_and_one_that_was_chosen_is_left_alone() -> None:
    async with Pool(1) as pool:
        assert await pool.apply(selector_of_a_worker, (0,)) == (
            "_UnixSelectorEventLoop",
            "ExactSelector",
        )
    async with Pool(1, loop_initializer=asyncio.SelectorEventLoop) as pool:
        assert (await pool.apply(selector_of_a_worker, (0,)))[1] == "EpollSelector"


async def settings_of_a_worker(_: int) -> str:
    loop = asyncio.get_running_loop()
    selector = type(getattr(loop, "_selector", None)).__name__
    return f"{type(loop).__name__} {selector} {loop.slow_callback_duration}"


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("OwnLoop()", "OwnLoop EpollSelector 42"),
        ("asyncio.SelectorEventLoop(selectors.PollSelector())", "{} PollSelector 42"),
        ("asyncio.SelectorEventLoop()", "{} ExactSelector 42"),
    ],
)
def test_the_loop_that_a_policy_of_the_main_module_sets_stays(
    tmp_path: Path, loop: str, expected: str
) -> None:
    program = f"""
        import asyncio, selectors, warnings
        from aiomultiprocess import Pool
        from test_loops import settings_of_a_worker

        warnings.simplefilter("ignore", DeprecationWarning)

        class OwnLoop(asyncio.SelectorEventLoop):
            pass

        class OwnPolicy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self):
                loop = {loop}
                loop.slow_callback_duration = 42
                return loop

        asyncio.set_event_loop_policy(OwnPolicy())

        async def main():
            async with Pool(1) as pool:
                print(await pool.apply(settings_of_a_worker, (0,)))

        if __name__ == "__main__":
            asyncio.run(main())
    """
    script = run_script(tmp_path, program)
    assert script.out.strip() == expected.format("_UnixSelectorEventLoop"), script.err


def test_a_signal_that_arrives_while_a_loop_is_closed_causes_no_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """asyncio closes the pipe that signals are written to before it puts their handlers away."""
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    close_self_pipe = loop._close_self_pipe  # type: ignore[attr-defined]

    def close_and_be_terminated() -> None:
        close_self_pipe()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop, "_close_self_pipe", close_and_be_terminated)
    loops.close_loop(loop)
    assert capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
