"""Which backend is chosen, what chooses it, and the error where a choice is unavailable."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import conftest
from aiomultiprocess import _accel
from aiomultiprocess._transport import select, shared_page, shm

WITH_EXTENSION = pytest.mark.skipif("shm" not in conftest.BACKENDS, reason="needs amp_ext")
SOURCE = Path(_accel.__file__).parent


@pytest.fixture(autouse=True)
def _nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(select.VARIABLE, raising=False)


def run(source: str) -> str:
    """The output of a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(source)],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip


def test_the_best_available_backend_is_the_default() -> None:
    selection = select.select()
    assert selection.name == conftest.BACKENDS[0]


@WITH_EXTENSION
def test_the_default_says_that_it_is_the_best() -> None:
    assert select.select() == ("shm", "the best that works here", select._make_shm)


def test_the_environment_chooses_for_a_program(backend: str) -> None:
    selection = select.select()
    assert selection.name == backend
    assert selection.why == "requested by AIOMULTIPROCESS_BACKEND"
    made = selection.make()
    assert made.name == backend
    made.close()


def test_the_argument_chooses_for_a_pool_against_the_environment(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(select.VARIABLE, "nonsense")
    selection = select.select(backend)
    assert selection.name == backend
    assert selection.why == "requested by the argument"


def test_an_empty_variable_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(select.VARIABLE, "")
    assert select.select().name == conftest.BACKENDS[0]


@pytest.mark.parametrize("name", ["carrier pigeon", "", "SHM"])
def test_an_unknown_backend_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"'{name}', requested by the argument: .*'shm', 'pipe', 'inline'"
    ):
        select.select(name)


def test_an_unknown_backend_in_the_environment_is_blamed_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(select.VARIABLE, "carrier pigeon")
    with pytest.raises(ValueError, match="'carrier pigeon', requested by AIOMULTIPROCESS_BACKEND"):
        select.select()


@pytest.fixture
def refused_ring() -> Iterator[None]:
    """Memory for a ring is refused, and only that."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shm.CAPACITY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.row("D35")
@WITH_EXTENSION
@pytest.mark.usefixtures("refused_ring")
def test_where_memory_is_refused_the_pipe_is_chosen_and_says_why() -> None:
    selection = select.select()
    assert selection.name == "pipe"
    assert "shm: shared memory for a ring of 1048576 bytes was refused" in selection.why
    assert "File too large" in selection.why
    selection.make().close()


@pytest.mark.row("D35")
@WITH_EXTENSION
@pytest.mark.usefixtures("refused_ring")
def test_where_memory_is_refused_shm_is_an_error_that_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"'shm', requested by the argument.*refused.*'pipe'"):
        select.select("shm")


@pytest.mark.row("D35")
@WITH_EXTENSION
@pytest.mark.usefixtures("refused_ring")
def test_memory_that_is_refused_later_is_an_os_error() -> None:
    made = shm.ShmBackend()
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        made.create()
    made.close()


@WITH_EXTENSION
def test_where_no_backend_is_available_every_attempt_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_accel, "EXTENSION_ERROR", ImportError("no such luck"))
    monkeypatch.setattr(shared_page, "_reserve", _refuse)
    with pytest.raises(RuntimeError, match=r"shm: .*no such luck.*; pipe: .*No space left"):
        select.select()


def _refuse(_fd: int, _size: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_without_the_extension_everything_is_python_and_the_reason_is_kept() -> None:
    out = run(
        """
        import sys
        sys.modules["amp_ext"] = None
        from aiomultiprocess import _accel
        from aiomultiprocess._transport.select import select
        print(select().name)
        print(select().why)
        print(_accel.Starter.__module__, _accel.native_watchdog())
        try:
            select("shm")
        except RuntimeError as error:
            print(error)
        """
    )
    name, why, starter, error = out.splitlines()
    assert name == "pipe"
    assert why.startswith("shm: amp_ext cannot be imported (")
    assert starter == "aiomultiprocess._pure.starter None"
    reason = "is unavailable: shm: amp_ext cannot be imported ("
    assert error.startswith(f"the backend 'shm', requested by the argument, {reason}")


@WITH_EXTENSION
def test_with_the_extension_all_of_it_is_used() -> None:
    assert _accel.EXTENSION_ERROR is None
    assert _accel.Starter.__module__ == "amp_ext.starter"
    assert _accel.native_watchdog() is not None
    for function in (_accel.encode_items, _accel.decode_items, _accel.dumps, _accel.loads):
        assert function.__module__.startswith("amp_ext.")


def test_one_module_imports_the_extension() -> None:
    importers = [
        path.name
        for path in SOURCE.rglob("*.py")
        if any(
            line.split()[:1] in (["import"], ["from"]) and line.split()[1].startswith("amp_ext")
            for line in path.read_text().splitlines()
        )
    ]
    assert importers == ["_accel.py"]


@WITH_EXTENSION
def test_the_extension_imports_nothing_of_the_library() -> None:
    out = run(
        """
        import pkgutil, sys
        from importlib import import_module
        import amp_ext
        names = [name for _, name, _ in pkgutil.iter_modules(amp_ext.__path__)]
        for name in names:
            import_module(f"amp_ext.{name}")
        print("starter" in names, [name for name in sys.modules if "aiomultiprocess" in name])
        """
    )
    assert out.strip() == "True []"
