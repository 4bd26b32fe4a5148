"""What Python prints of a task's error: the remote traceback once, and the error itself last."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
from test_exceptions import raised, travel

import exception_types as errors
import tracebacks
from aiomultiprocess import Pool, ProxyException, Worker
from support import run_script

HEADER = "Traceback (most recent call last):"


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def error_of(function: Any, *args: Any) -> Exception:
    """What one `apply` raises."""
    async with Pool(1) as pool:
        try:
            await pool.apply(function, args)
        except Exception as error:  # noqa: BLE001 - any that a task raises
            return error
    raise AssertionError("it returned")


def without_context(text: str) -> list[str]:
    """The lines that are no code and no mark below it: frames by their function's name."""
    found = []
    for line in text.splitlines():
        if line.startswith('  File "'):
            found.append("in " + line.rpartition(" in ")[2])
        elif line and not line.startswith(" "):
            found.append(line)
    return found


# -- what is printed of an error of a pool ---------------------------------------------------------


@pytest.mark.row("G69")
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "function", [tracebacks.look_up_plainly, tracebacks.look_up, tracebacks.look_up_later]
)
@pytest.mark.parametrize("way", ["apply", "map", "starmap", "for"])
async def test_an_error_shows_the_callers_frame_the_remote_frames_and_itself(
    way: str, function: Any
) -> None:
    async with Pool(1) as pool:

        async def call() -> None:
            if way == "apply":
                await pool.apply(function, ("missing",))
            elif way == "map":
                await pool.map(function, ["missing"])
            elif way == "starmap":
                await pool.starmap(function, [("missing",)])
            else:
                async for _ in pool.map(function, ["missing"]):
                    pass

        with pytest.raises(KeyError) as caught:
            await call()
    assert without_context(printed(caught.value)) == [
        "KeyError: 'missing'",
        "The above exception was the direct cause of the following exception:",
        HEADER,
        f"in {test_an_error_shows_the_callers_frame_the_remote_frames_and_itself.__name__}",
        "in call",
        f"aiomultiprocess.types.ProxyException(KeyError): {HEADER}",
        f"in {function.__name__}",
        "in inner",
        "KeyError: 'missing'",
    ]


@pytest.mark.row("G69")
@pytest.mark.usefixtures("backend")
async def test_frames_of_asyncio_are_shown_only_below_the_users() -> None:
    text = str(await error_of(tracebacks.look_up_within_a_timeout, "missing"))
    names = [line for line in without_context(text) if line.startswith("in ")]
    assert names == ["in look_up_within_a_timeout", "in wait_for", "in look_up_later", "in inner"]


@pytest.mark.row("G69")
async def test_a_cause_and_a_context_are_printed_with_their_remote_frames_once() -> None:
    for function, words in (
        (tracebacks.fail_from, "direct cause"),
        (tracebacks.fail_during, "During handling"),
    ):
        error = await error_of(function)
        text = str(error)
        assert printed(error).count(text) == 1
        assert printed(error).count("raise ValueError") == printed(error).count("{}[key]") == 1
        assert words in text
        assert printed(error).endswith("\nValueError: outer\n")


@pytest.mark.row("G69")
async def test_notes_are_printed_once_after_the_error() -> None:
    error = await error_of(tracebacks.fail_with_notes)
    assert printed(error).endswith("\nValueError: noted\nthe first\nthe second\n")
    assert printed(error).count("the first") == 1
    error.add_note("of the caller")
    assert printed(error).endswith("\nthe second\nof the caller\n")


@pytest.mark.row("G69")
async def test_notes_of_an_error_that_arrives_as_text_are_printed_too() -> None:
    error = errors.BadReduce("x")
    error.add_note("mind the gap")
    proxy = travel(raised(error))
    assert type(proxy) is ProxyException
    assert printed(proxy).count("mind the gap") == 1
    assert "cannot be pickled and rebuilt (" in printed(proxy).splitlines()[-1]


@pytest.mark.row("G69")
async def test_a_syntax_error_shows_its_remote_traceback_too() -> None:
    error = await error_of(tracebacks.compile_badly)
    assert isinstance(error, SyntaxError)
    assert printed(error).count("in compile_badly") == 1
    assert printed(error).splitlines()[-1].startswith("aiomultiprocess.types.ProxyException(Syntax")


@pytest.mark.row("G69")
async def test_a_recursion_ten_thousand_deep_is_shortened_as_python_shortens_it() -> None:
    error = await error_of(tracebacks.recurse, 10_000)
    assert isinstance(error, ValueError)
    text = str(error)
    assert "[Previous line repeated 99" in text
    assert text.endswith("\nValueError: the bottom")
    assert len(text.splitlines()) < 40


@pytest.mark.row("G69")
async def test_a_group_shows_its_members_remote_frames_once() -> None:
    error = await error_of(tracebacks.fail_together)
    assert isinstance(error, ExceptionGroup)
    assert printed(error).count("{}[key]") == 2  # one for each member
    assert printed(error).count("in fail_together") == 1


@pytest.mark.row("G69")
async def test_the_part_of_a_group_that_a_handler_takes_shows_the_remote_traceback() -> None:
    error = await error_of(tracebacks.fail_together)
    parts: list[BaseException] = []
    try:
        raise error
    except* KeyError as part:
        parts.append(part)
    assert printed(parts[0]).count("in fail_together") == 1


@pytest.mark.row("G69")
async def test_errors_in_a_group_of_the_callers_show_their_remote_traceback_once() -> None:
    async with Pool(1) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.apply(tracebacks.look_up, ("missing",)))
    shown = printed(caught.value)
    assert shown.count("in look_up\n") == 1
    assert f"{HEADER}\n    |   File" in shown
    assert "aiomultiprocess/" not in shown


@pytest.mark.row("G69")
async def test_a_log_shows_the_remote_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    error = await error_of(tracebacks.look_up, "missing")
    logging.getLogger("mine").error("failed", exc_info=error)
    assert caplog.text.count("in look_up\n") == 1
    assert caplog.text.endswith("\nKeyError: 'missing'\n")


@pytest.mark.row("G69")
async def test_an_original_that_is_raised_on_is_printed_with_the_remote_traceback() -> None:
    error = await error_of(tracebacks.look_up, "missing")

    def raise_original() -> None:
        try:
            raise error
        except ProxyException as proxy:
            raise (proxy.__cause__ or proxy)  # noqa: B904 - as a user may do

    with pytest.raises(KeyError) as caught:
        raise_original()
    assert type(caught.value) is KeyError
    assert printed(caught.value).count("in look_up\n") == 1
    assert printed(caught.value).endswith("\nKeyError: 'missing'\n")


@pytest.mark.row("G69")
async def test_the_original_that_a_worker_returns_has_its_remote_traceback() -> None:
    error = await Worker(target=tracebacks.look_up, args=("missing",))
    assert type(error) is KeyError
    assert [line for line in without_context(printed(error)) if line.startswith("in ")] == [
        "in look_up",
        "in inner",
    ]
    assert printed(error).endswith("\nKeyError: 'missing'\n")


@pytest.mark.row("G69")
@pytest.mark.parametrize("error", [ValueError("bad"), errors.OwnStr("x"), errors.Frozen(1, "two")])
def test_an_error_that_travels_twice_is_printed_once_more_each_time(error: Exception) -> None:
    further = travel(raised(travel(raised(error))))
    assert printed(further).count(str(further)) == 1


# -- where nothing is left to the caller -----------------------------------------------------------

PROGRAM = """
    import asyncio, tracebacks
    from aiomultiprocess import Pool, Process

    async def main():
        async with Pool(1) as pool:
            {call}

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.row("G69")
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "call",
    [
        'await pool.apply(tracebacks.look_up, ("missing",))',
        'await pool.map(tracebacks.look_up, ["missing"])',
    ],
)
def test_a_program_that_ends_by_the_error_prints_the_remote_traceback_once(
    tmp_path: Path, call: str
) -> None:
    script = run_script(tmp_path, PROGRAM.format(call=call))
    assert script.err.count("in look_up\n") == 1
    assert script.err.endswith("\nKeyError: 'missing'\n")
    assert "aiomultiprocess/" not in script.err.replace(str(tmp_path), "")


@pytest.mark.row("G69")
def test_a_process_prints_the_frames_of_its_target_alone(tmp_path: Path) -> None:
    call = 'await Process(target=tracebacks.look_up, args=("missing",))'
    script = run_script(tmp_path, PROGRAM.format(call=call))
    assert [line for line in without_context(script.err) if line.startswith("in ")] == [
        "in look_up",
        "in inner",
    ]
    assert script.err.endswith("\nKeyError: 'missing'\n")


PYTEST = """
    import tracebacks
    from aiomultiprocess import Pool

    async def test_it():
        async with Pool(1) as pool:
            await pool.apply(tracebacks.look_up, ("missing",))
"""


@pytest.mark.row("G69")
def test_pytest_shows_the_remote_traceback_once(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("\n".join(line[4:] for line in PYTEST.splitlines()))
    run = """
        import sys, pytest
        if __name__ == "__main__":
            del sys.modules["__main__"].__file__
            sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]))
    """
    script = run_script(tmp_path, run, within=60)
    shown = [line for line in script.out.splitlines() if line.startswith("E ")]
    assert sum("in look_up" in line for line in shown) == 1, script.out
    assert shown[-1].split(maxsplit=1)[1] == "KeyError: 'missing'"
    assert "aiomultiprocess/pool.py" not in script.out
