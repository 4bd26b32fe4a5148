"""A peer's runner as the orchestrator sees it: a process that is asked and answers within a bound.

While it is not its turn a runner and all its descendants are stopped (SIGSTOP): a pool that polls
would otherwise take its share from the measured peer. The runner is in a process group of its
own but in our session: should we be killed, the kernel continues and hangs up what we had stopped.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

RUNNER = Path(__file__).with_name("runner.py")
START_PATIENCE = 60.0  # seconds for a runner to say that it is there

Answer = dict[str, Any]


#: What looking at a process raises that ends meanwhile.
GONE = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)


class HungError(Exception):
    """No answer within the bound."""


class FailedError(Exception):
    """The peer answered with an error, or its runner died."""


class Session:
    """One runner. Its first answer says who it is; `close` leaves nothing of it."""

    def __init__(self, python: Path, peer: str, log: Path, *, stopped: bool = True) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # a peer with threads of its own in NumPy would be measured with more than two cores' work
        environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(RUNNER), peer],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                process_group=0,
            )
        self.pid = self._process.pid
        self._stopped = stopped
        self._family = [psutil.Process(self.pid)]
        try:
            self.who = self._answer(START_PATIENCE)
        except BaseException:
            self.kill()
            raise
        self._rest()

    def ask(self, patience: float, **command: object) -> Answer:
        """Let the peer do one thing. HungError and FailedError mean: kill it, ask no more."""
        self._wake()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise FailedError("the runner died") from None
        answer = self._answer(patience)
        self._rest()
        return answer

    def close(self, patience: float = 20.0) -> None:
        """Let the peer close its pool and go; kill it if it does not."""
        self._wake()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self.kill()

    def kill(self) -> None:
        """End the runner and all its descendants."""
        self._family = list({*self._family, *family(self.pid)})
        # the group first, at one stroke: a pool that is alive replaces the workers it loses
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in self._family:  # those that left the group
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _answer(self, patience: float) -> Answer:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        deadline = time.monotonic() + patience
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise HungError(f"no answer within {patience:.0f} s")
            # in slices: descendants may hold the pipe open after the runner died
            readable, _, _ = select.select([fd], [], [], min(left, 0.5))
            data = os.read(fd, 1 << 16) if readable else b""
            if not data and (readable or self._process.poll() is not None):
                raise FailedError("the runner died")
            line += data
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise FailedError(answer["error"])
        return answer

    def _rest(self) -> None:
        if self._stopped:
            self._family = family(self.pid)
            for process in self._family:  # the runner first, so that it does not see workers stop
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()

    def _wake(self) -> None:
        if self._stopped:
            for process in reversed(self._family):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()


# Looking at a runner and its workers from outside, which wakes none of them.


def family(pid: int) -> list[psutil.Process]:
    """A process and all its descendants; empty if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def used(processes: list[psutil.Process]) -> dict[int, tuple[float, float]]:
    """Seconds of CPU, and context switches, of these processes so far; without those that ended."""
    count = _used_on_linux if Path("/proc/self/schedstat").exists() else _used_elsewhere
    found = {}
    for process in processes:
        with contextlib.suppress(*GONE):
            found[process.pid] = count(process)
    return found


def _used_on_linux(process: psutil.Process) -> tuple[float, float]:
    """Of all threads; schedstat counts nanoseconds where cpu_times counts hundredths."""
    nanoseconds = switches = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        nanoseconds += int((task / "schedstat").read_text().split()[0])
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                switches += int(line.split()[1])
    return nanoseconds / 1e9, switches


def _used_elsewhere(process: psutil.Process) -> tuple[float, float]:
    times, switches = process.cpu_times(), process.num_ctx_switches()
    return times.user + times.system, switches.voluntary + switches.involuntary


def idle(pid: int, seconds: float) -> dict[str, float]:
    """What a runner with an idle pool does: its children, the CPU and the wake-ups of all."""
    processes = family(pid)
    time.sleep(min(1.0, seconds))  # what was measured before comes to rest
    before = used(processes)
    time.sleep(seconds)
    after = used(processes)  # a helper of a peer may have ended: it has no figures
    return {
        "children": len(processes) - 1,
        "cpu": sum(cpu - before[pid][0] for pid, (cpu, _) in after.items()) / seconds,
        "switches": sum(count - before[pid][1] for pid, (_, count) in after.items()) / seconds,
    }


def peak_memory(pid: int) -> tuple[float, float]:
    """The most bytes that were resident: of the runner, and the sum over its descendants."""
    peaks = {}
    for process in family(pid):
        with contextlib.suppress(*GONE):
            peaks[process.pid] = _peak(process)
    if pid not in peaks:
        raise FailedError("the runner died")
    return peaks.pop(pid), sum(peaks.values())


def _peak(process: psutil.Process) -> float:
    """On Linux the kernel keeps the peak; elsewhere this is what is resident now."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    resident: int = process.memory_info().rss
    return resident
