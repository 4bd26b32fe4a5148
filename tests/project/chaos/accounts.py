"""The accounts: what was submitted, how it ended, and what was executed."""

from __future__ import annotations

import array
import logging
import pickle
import signal
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from aiomultiprocess import ProxyException, TaskTimeoutError, WorkerLostError
from chaos.tasks import EXIT_CODE, LIMIT, Task

FLUSH = 4096  # outcomes kept in memory
SHOWN = 20  # faults that are shown in words

#: Tasks that do not react to their cancellation.
DEAF = ("block", "linger")

#: How a worker that we end may exit; anything else is a fault.
OUR_EXITS = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM, EXIT_CODE}


class Outcome(IntEnum):
    """How a task can end."""

    RESULT = 0
    ERROR = 1
    UNSENT = 2
    WORKER_LOST = 3
    CANCELLED = 4
    DROPPED = 5
    TIMED_OUT = 6
    HOST_LOST = 7


#: What the report calls them, and how often at least a task that ended so was executed.
MEANING = {
    Outcome.RESULT: ("its result", 1),
    Outcome.ERROR: ("its own error", 1),
    Outcome.UNSENT: ("an argument that cannot be sent", 0),
    Outcome.WORKER_LOST: ("WorkerLostError", 0),
    Outcome.CANCELLED: ("cancelled or timed out", 0),
    Outcome.DROPPED: ("not read to the end", 0),
    Outcome.TIMED_OUT: ("TaskTimeoutError", 0),
    Outcome.HOST_LOST: ("WorkerLostError, with its host", 0),
}


@dataclass
class Verdict:
    """What the two journals say together (CHAOS-1)."""

    submitted: int = 0
    executions: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    lost: int = 0
    resolved_twice: int = 0
    executed_too_often: int = 0
    executed_too_seldom: int = 0
    lost_unexecuted: int = 0
    lost_with_host_unexecuted: int = 0
    faults: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every task was resolved exactly once, rightly, and executed as it may be."""
        return not (
            self.lost
            + self.resolved_twice
            + self.executed_too_often
            + self.executed_too_seldom
            + self.faults
        )

    def fault(self, text: str) -> None:
        self.faults += 1
        self._tell(text)

    def lose(self, number: int, executions: int) -> None:
        """A task that was never resolved."""
        self.lost += 1
        self.executions += executions
        self._tell(f"task {number} was never resolved; executed {executions} times")

    def double(self, number: int) -> None:
        """A task that was resolved once more."""
        self.resolved_twice += 1
        self._tell(f"task {number} was resolved once more")

    def count(self, number: int, outcome: Outcome, limit: int, executions: int) -> None:
        """A task that was resolved."""
        self.outcomes[outcome] += 1
        self.executions += executions
        by_death = outcome in (Outcome.WORKER_LOST, Outcome.TIMED_OUT)
        self.lost_unexecuted += by_death and not executions
        with_host = outcome is Outcome.HOST_LOST
        self.lost_with_host_unexecuted += with_host and not executions  # CHAOS-15
        name, least = MEANING[outcome]
        most = 0 if outcome is Outcome.UNSENT else limit
        if not least <= executions <= most:
            self.executed_too_often += executions > most
            self.executed_too_seldom += executions < least
            self._tell(f"task {number}, {name}: executed {executions} times, allowed {most}")

    def _tell(self, text: str) -> None:
        if len(self.words) < SHOWN:
            self.words.append(text)


class Accounts:
    """Numbers tasks, judges how each of them ended, and keeps a journal of it (CHAOS-4)."""

    def __init__(self, folder: Path) -> None:
        self.executed = folder / "executed"
        self.executed.touch()
        self.submitted = 0
        self.resolved = 0
        self.deaf = 0  # tasks that are to be killed (CHAOS-9)
        self.faults: list[str] = []
        self._outcomes = (folder / "outcomes").open("w+b")
        self._unwritten = array.array("Q")

    def new(self, what: str, value: Any) -> Task:
        """One more task."""
        number = self.submitted
        self.submitted += 1
        self.deaf += what in DEAF
        return number, what, value

    def judge(self, task: Task, found: Any, limit: int = 1, timeout: float | None = None) -> None:
        """Book a task's result or error; report one that is not its own (CHAOS-3).

        `limit`: how often it may be executed; `timeout`: its time limit.
        """
        outcome = outcome_of(task, found, timeout)
        if outcome is None:
            outcome = Outcome.ERROR if isinstance(found, BaseException) else Outcome.RESULT
            self.fault(f"{str(task)[:100]} came to {found!r:.300}")
        self.book(task, outcome, limit)

    def book(self, task: Task, outcome: Outcome, limit: int = 1) -> None:
        """A task has ended; it may be executed `limit` times."""
        self.resolved += 1
        self._unwritten.append(task[0] << 16 | outcome << 8 | limit)
        if len(self._unwritten) >= FLUSH:
            self._flush()

    def fault(self, text: str) -> None:
        """Something happened that must not happen."""
        self.faults.append(text)

    def _flush(self) -> None:
        self._unwritten.tofile(self._outcomes)
        self._unwritten = array.array("Q")

    def close(self) -> Verdict:
        """Compare both journals: a few bytes for each task, as an hour has millions."""
        verdict = Verdict(self.submitted)
        for text in self.faults:
            verdict.fault(text)
        executions, beyond = self._executions()
        for number in beyond:
            verdict.fault(f"task {number} was executed and never submitted")
        resolved = bytearray(self.submitted)
        for record in self._records():
            number, outcome, limit = record >> 16, Outcome(record >> 8 & 255), record & 255
            if resolved[number]:
                verdict.double(number)
                continue
            resolved[number] = True
            verdict.count(number, outcome, limit, executions[number])
        for number, found in enumerate(resolved):
            if not found:
                verdict.lose(number, executions[number])
        return verdict

    def _executions(self) -> tuple[bytearray, list[int]]:
        """How often each task was executed (at most 255 times), and numbers that there are not."""
        executions, beyond = bytearray(self.submitted), []
        for number in _numbers(self.executed.read_bytes()):
            if number >= self.submitted:
                beyond.append(number)
            elif executions[number] < 255:
                executions[number] += 1
        return executions, beyond

    def _records(self) -> array.array[int]:
        self._flush()
        with self._outcomes as file:
            file.seek(0)
            return _numbers(file.read())


class Complaints(logging.Handler):
    """Whatever this package or asyncio logs as an error is a fault."""

    def __init__(self, accounts: Accounts) -> None:
        super().__init__(logging.ERROR)
        self._accounts = accounts

    def emit(self, record: logging.LogRecord) -> None:
        self._accounts.fault(f"logged: {self.format(record)}")


def outcome_of(task: Task, found: Any, timeout: float | None = None) -> Outcome | None:
    """What `found` is for this task; None if it can be neither its result nor its error."""
    number, what, value = task
    if isinstance(found, TaskTimeoutError):  # CHAOS-9
        ended_itself = not found.killed and found.__cause__ is not None
        right = found.timeout == timeout == LIMIT and not (ended_itself and what in DEAF)
        return Outcome.TIMED_OUT if right else None
    if isinstance(found, WorkerLostError):
        if found.host is not None and found.exitcode is None:
            return Outcome.HOST_LOST
        return Outcome.WORKER_LOST if found.exitcode in OUR_EXITS else None
    if what in ("segfault", "exit", "overtime", *DEAF):
        return None
    if what == "raise":
        original = found.__cause__ if isinstance(found, ProxyException) else None
        right = isinstance(found, ValueError) and isinstance(original, ValueError)
        return Outcome.ERROR if right and original.args == (number, value) else None
    if what == "stay":
        return Outcome.ERROR if isinstance(found, ProxyException) else None
    if what == "unsent":
        refused = isinstance(found, (pickle.PicklingError, TypeError, AttributeError))
        return Outcome.UNSENT if refused else None
    return Outcome.RESULT if type(found) is tuple and found == (number, value) else None


def _numbers(data: bytes) -> array.array[int]:
    numbers = array.array("Q")
    numbers.frombytes(data)
    return numbers
