"""`python -m aiomultiprocess`: what its commands print, into files and into terminals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import aiomultiprocess
from aiomultiprocess._cli import bars, pictures, watching
from conftest import ROOT
from support import Script
from test_benchmarks import run

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)

from monitored import BLOCKED, TWO_POOLS, Terminal, pid_of, without_rich

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of sockets for all processes of a test."""
    with tempfile.TemporaryDirectory(prefix="amp-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture(params=["with rich", "without rich"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a command in a terminal."""
    if request.param == "with rich":
        pytest.importorskip("rich")
        yield {}
        return
    with without_rich(tmp_path) as path:
        yield {"PYTHONPATH": path}


def refusal(*arguments: str) -> str:
    """What a command that fails writes."""
    done = subprocess.run(
        [sys.executable, "-m", "aiomultiprocess", *arguments],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert not done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


# -- info and version ------------------------------------------------------------------------------


def test_the_version_is_printed() -> None:
    printed = run("-m", "aiomultiprocess", "--version")
    assert printed == f"aiomultiprocess {aiomultiprocess.__version__}\n"


def test_info_for_programs_is_json(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(run("-m", "aiomultiprocess", "info", "--json"))
    assert facts["version"] == aiomultiprocess.__version__
    assert (facts["backend"], facts["workers"] >= 1) == (backend, True)
    assert facts["backend_reason"] == "requested by AIOMULTIPROCESS_BACKEND"
    monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", "pigeon")
    facts = json.loads(run("-m", "aiomultiprocess", "info", "--json", status=1))
    assert facts["backend"] is None
    assert facts["backend_reason"].startswith("unknown backend 'pigeon'")


@pytest.mark.row("H213")
@pytest.mark.parametrize("command", ["info", "info --json", "bench --seconds 0.1", "top"])
def test_a_command_whose_reader_has_gone_ends_quietly(command: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "aiomultiprocess", *command.split()],
            cwd=ROOT / "tests",
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(theirs)
    assert re.sub(r"\d+ s left|\s", "", done.stderr) == ""  # but for the progress of bench
    assert done.returncode == 0


# -- bench -----------------------------------------------------------------------------------------


def test_bench_writes_its_bars_into_an_svg(tmp_path: Path) -> None:
    file = tmp_path / "bars.svg"
    run("-m", "aiomultiprocess", "bench", "--seconds", "0.1", "--svg", file)
    drawn = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    assert len(drawn.findall("{*}rect")) == 1 + 5 * 3
    texts = [each.text or "" for each in drawn.findall("{*}text")]
    assert texts[0] == "map, ints (items/s, more is better)"
    assert texts.count("multiprocessing.Pool") == 5


def test_bench_refuses_a_file_that_cannot_be_written_before_it_measures(tmp_path: Path) -> None:
    said = refusal("bench", "--svg", str(tmp_path / "no" / "bars.svg"))
    assert said.endswith("bars.svg cannot be written: No such file or directory\n")


def test_bench_shows_bars_in_a_terminal(environment: dict[str, str]) -> None:
    with Terminal("bench", "--seconds", "0.1", **environment) as terminal:
        terminal.until("medians of ")
        assert terminal.finish() == 0
        assert "map, small dicts" in terminal.shown
        assert ("█" in terminal.shown) == (not environment)


def test_bars_are_as_long_as_their_figures_say() -> None:
    group = bars.Group("echo <1>", "us", [50.0, 100.0, 0.0])
    assert group.parts() == [0.5, 1.0, 0.0]
    assert bars.Group("none", "items/s", [0.0, 0.0]).parts() == [0.0, 0.0]
    drawn = bars.as_svg(["a", "b", "c"], [group], "a note")
    assert "echo &lt;1&gt; (us, less is better)" in drawn
    assert 'width="220.0"' in drawn
    assert 'width="440.0"' in drawn


# -- top -------------------------------------------------------------------------------------------


async def test_one_picture_of_all_pools_of_a_process(tmp_path: Path, backend: str) -> None:
    with Script(tmp_path, TWO_POOLS) as program:
        pid = await pid_of(program)
        shown = run("-m", "aiomultiprocess", "top", pid, "--once")
        assert shown.startswith(f"process {pid}, program.py, ")
        first, second = shown.split("\n\n")[1:]
        assert re.match(rf"pool 1, {backend}, open, 0:00:\d\d, 2 workers\n", first)
        assert re.match(rf"pool 2, {backend}, open, 0:00:\d\d, 1 worker\n", second)
        assert re.search(r"^waiting 0  running 1  done 40 \([\d.]+/s\)$", first, re.M)
        heads, *rows = first.splitlines()[3:]
        assert heads.split() == list(pictures.HEADS)
        assert [row.split()[0] for row in rows] == ["0", "1"]
        assert sorted(row.split()[2] for row in rows) == ["idle", "running"]
        assert run("-m", "aiomultiprocess", "top") == f"{pid:>8}  2 pools  program.py\n"
    assert run("-m", "aiomultiprocess", "top").startswith("there is no process whose pools can be")


@pytest.mark.parametrize("key", ["q", "\x03"])
async def test_a_screen_that_is_drawn_each_second_until_q_or_ctrl_c(
    tmp_path: Path, environment: dict[str, str], key: str
) -> None:
    with Script(tmp_path, TWO_POOLS) as program:
        pid = await pid_of(program)
        with Terminal("top", str(pid), **environment) as terminal:
            before = terminal.settings()
            terminal.until("(?s)(done 40.*){2}")  # twice: it is drawn anew
            assert "\x1b[" in terminal.raw
            assert re.search(r"worker +pid +state +busy +lag +rss +running", terminal.shown)
            assert "q ends this" in terminal.shown
            terminal.press("x")
            terminal.press(key)
            assert terminal.finish() == 0
            assert "Traceback" not in terminal.shown
            assert terminal.settings() == before


async def test_top_ends_with_a_sentence_when_the_process_does(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with Script(tmp_path, TWO_POOLS) as program:
        pid = await pid_of(program)
        with Terminal("top", str(pid), **environment) as terminal:
            terminal.until("done 40")
            program.kill_group()
            program.process.wait()
            assert terminal.finish() == 0
            assert f"process {pid} has ended" in terminal.shown


async def test_top_that_is_terminated_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    with Script(tmp_path, TWO_POOLS) as program:
        pid = await pid_of(program)
        with Terminal("top", str(pid)) as terminal:
            before = terminal.settings()
            terminal.until("done 40")
            assert terminal.settings() != before
            terminal.process.send_signal(signal.SIGTERM)
            assert terminal.finish() == 128 + signal.SIGTERM
            assert terminal.settings() == before


async def test_a_pool_whose_loop_is_blocked_is_said_not_to_answer(
    tmp_path: Path, runtime: Path
) -> None:
    with Script(tmp_path, BLOCKED) as program, contextlib.ExitStack() as stack:
        pid = await pid_of(program)
        silent = "a pool does not answer: its event loop is busy"
        assert silent in run("-m", "aiomultiprocess", "top", pid, "--once")
        with contextlib.suppress(BlockingIOError):  # more cannot wait in line
            while True:
                peer = stack.enter_context(socket.socket(socket.AF_UNIX))
                peer.setblocking(False)
                peer.connect(str(runtime / "aiomultiprocess" / f"{pid}-1.sock"))
        assert silent in run("-m", "aiomultiprocess", "top", pid, "--once")


def test_top_refuses_what_it_cannot_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("top", "4000000").startswith("there is no process 4000000: `python -m")
    assert "argument PID: invalid process number value: '0'" in refusal("top", "0")
    said = refusal("top", str(os.getpid()))
    assert said.startswith(f"process {os.getpid()} has no pool that can be watched")
    assert "Pool(monitor=True)" in said

    def refuse(pid: int, signum: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(watching.CannotWatchError, match="process 1 belongs to another user"):
        watching.first_answers(1)


def read_two_pictures(pid: int, program: Script) -> None:
    """Watch without a terminal, and end the program after the second picture."""
    command = [sys.executable, "-m", "aiomultiprocess", "top", str(pid)]
    with subprocess.Popen(
        command, cwd=ROOT / "tests", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as watcher:
        assert watcher.stdout is not None
        headings = 0
        while headings < 2:
            line = watcher.stdout.readline()
            assert "\x1b" not in line
            headings += line.startswith(f"process {pid}, ")
        program.kill_group()  # it is not reaped yet when it is looked for
        assert watcher.stdout.read().endswith(f"\nprocess {pid} has ended\n")
    assert watcher.returncode == 0


async def test_top_without_a_terminal_prints_one_picture_after_the_other(tmp_path: Path) -> None:
    with Script(tmp_path, TWO_POOLS) as program:
        read_two_pictures(await pid_of(program), program)


def read_one_line(pid: int) -> None:
    done = subprocess.run(
        f"{sys.executable} -m aiomultiprocess top {pid} | head -n 1",
        shell=True,
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"process {pid}, ")
    assert done.stderr == ""


async def test_top_ends_quietly_when_its_reader_has_enough(tmp_path: Path) -> None:
    with Script(tmp_path, TWO_POOLS) as program:
        read_one_line(await pid_of(program))


def test_a_socket_of_another_user_or_that_says_nonsense_is_not_believed(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runtime / "aiomultiprocess"
    folder.mkdir(mode=0o700)

    def serve(server: socket.socket, answers: list[bytes]) -> None:
        for answer in answers:
            peer, _ = server.accept()
            with peer, contextlib.suppress(BrokenPipeError):
                peer.sendall(answer)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "77-1.sock"))
        server.listen()
        sound = b'{"pid": 77, "format": 1}'
        said = [b"nonsense", b'{"pid": 78}', b"[]", sound, b'{"pid": 77, "format": 2}', sound]
        thread = threading.Thread(target=serve, args=(server, said))
        thread.start()
        assert [watching.answers(77) for _ in range(3)] == [[], [], []]
        assert watching.answers(77) == [{"pid": 77, "format": 1}]
        with pytest.raises(watching.CannotWatchError, match="process 77 uses another version"):
            watching.answers(77)
        monkeypatch.setattr(watching.monitor_folder, "is_own", lambda peer: False)
        assert watching.answers(77) == []
        thread.join()


# -- pictures --------------------------------------------------------------------------------------


def answer(uptime: float, done: int, workers: int = 1, busy: float = 0.5) -> Any:
    worker = {"pid": 5, "state": "running", "busy": busy, "lag": 2.0, "rss": 10**7, "host": None}
    worker |= {"running": 1, "waiting": 2, "done": done, "uptime": uptime}
    stats = {"waiting": 3, "running": 1, "done": done, "failed": 0, "timed_out": 0}
    stats |= {"cancelled": 0, "lost": 0, "retried": 0, "restarts": {"died": 2}}
    stats["workers"] = [worker | {"index": index} for index in range(workers)]
    return {"pid": 5, "program": "p", "pool": 1, "backend": "shm", "state": "open"} | {
        "uptime": uptime,
        "stats": stats,
    }


def test_rates_are_those_since_the_last_picture() -> None:
    made = pictures.Pictures(5)
    (part,) = made.picture([answer(10.0, 100)])
    assert part.lines[0] == "waiting 3  running 1  done 100 (10.0/s)"
    assert part.lines[2] == "workers replaced: died 2"
    assert part.workers[0][2:5] == ["blocked", "50%", "2.0 s"]
    (part,) = made.picture([answer(12.0, 140, busy=0.5 * 10 / 12)])
    assert part.lines[0] == "waiting 3  running 1  done 140 (20.0/s)"
    assert part.workers[0][3] == "0%"
    assert part.workers[0][-1] == "20.0"


@pytest.mark.row("H212")
def test_rates_after_a_silence_are_those_since_the_last_answer() -> None:
    made = pictures.Pictures(5)
    made.picture([answer(3600.0, 360_000)])
    assert made.picture([None])[0].title == "a pool does not answer: its event loop is busy"
    (part,) = made.picture([answer(3602.0, 360_010)])
    assert part.lines[0].endswith("done 360,010 (5.0/s)")
    assert part.workers[0][-1] == "5.0"
    assert made.picture([]) == []  # it has gone
    (part,) = made.picture([answer(10.0, 100)])
    assert part.lines[0].endswith("done 100 (10.0/s)")


@pytest.mark.row("H155")
def test_workers_of_two_hosts_with_one_process_id_have_rates_of_their_own() -> None:
    made = pictures.Pictures(5)
    first, second = (answer(uptime, 0, workers=2) for uptime in (10.0, 11.0))
    for given, done in ((first, (5000, 100)), (second, (5010, 110))):
        for worker, number in zip(given["stats"]["workers"], done, strict=True):
            worker.update(pid=20, done=number, uptime=given["uptime"])
    made.picture([first])
    (part,) = made.picture([second])
    assert [row[-1] for row in part.workers] == ["10.0", "10.0"]


def test_workers_that_do_not_fit_are_counted() -> None:
    (part,) = pictures.Pictures(5).picture([answer(1.0, 1, workers=30)], height=24)
    assert len(part.workers) == 16
    assert part.lines[-1] == "14 more workers not shown: the terminal is too low"
