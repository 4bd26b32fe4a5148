"""Start methods, and single coroutines in processes of their own: Process and Worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _legacy, types
from ._arguments import (
    any_seconds,
    check_synchronous,
    checked_sequence,
    is_coroutine_function,
    label_of,
)
from ._processes import loops
from ._processes.exit import Exit
from ._processes.spawn import process_class, report_exit
from ._processes.start_arguments import at_its_caller
from ._wire import exceptions
from ._wire.tracebacks import RemoteTraceback, without_our_frames
from .types import Context, LoopInitializer, WorkerLostError
from .types import R as R  # programs of 0.9.1 import it from here

if TYPE_CHECKING:
    from multiprocessing.managers import SyncManager

    from ._processes import child
    from ._processes.result import PipeReceiver, ThreadReceiver

DEFAULT_START_METHOD = "spawn"
GEVENT = (
    "If gevent has patched the sockets: from Python 3.14 on, they cannot talk to multiprocessing's "
    'fork server. Use the start method "spawn".'
)

log = logging.getLogger(__name__)

# The context of all processes and pools that are made from now on. "spawn" is the default, so that
# all platforms have the same features; it cannot run functions that are not importable.
context: Context = multiprocessing.get_context(DEFAULT_START_METHOD)

_manager: SyncManager | None = None

if not TYPE_CHECKING:

    def __getattr__(name: str) -> type:
        """`Unit`, which programs of 0.9.1 import from here (types.py)."""
        if name != "Unit":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return types.Unit


def get_manager() -> SyncManager:
    """A manager for the whole program; the first call starts its process."""
    global _manager
    if _manager is None:
        _manager = context.Manager()
    return _manager


def set_start_method(method: str | None = DEFAULT_START_METHOD) -> None:
    """Choose how processes and pools made from now on start their processes.

    Args:
        method: "spawn", "fork" or "forkserver"; "spawn" if left out; None for CPython's own default
            on this platform.

    Raises:
        ValueError: this platform does not have the method.
        TypeError: the method is not a string.
    """
    global context
    if method is not None and not isinstance(method, str):
        raise TypeError(f"method must be the name of a start method or None, not {method!r}")
    known = multiprocessing.get_all_start_methods()
    if method is not None and method not in known:
        raise ValueError(f"method must be one of {', '.join(known)} here, or None, not {method!r}")
    context = multiprocessing.get_context(method)


def get_context() -> Context:
    """The multiprocessing context that processes and pools are made with."""
    return context


def set_context(method: str | None = None) -> None:
    """Do what `set_start_method` does, with another default. [DEPRECATED]"""
    return set_start_method(method)


async def not_implemented(*args: Any, **kwargs: Any) -> None:
    """What a Process without a target runs."""
    raise NotImplementedError()


@_legacy.without(_legacy.PROCESS)
class Process:
    """A coroutine in a process of its own.

    Args:
        group: None; it is here because multiprocessing has it.
        target: the coroutine function; importable, unless the start method is "fork". It may be a
            method of this object, of which the process has a copy.
        name: name of the process; None lets multiprocessing choose it.
        args, kwargs: arguments of the target; pickled, unless the start method is "fork".
        daemon: whether the process ends with this one; None means as for this process.
        initializer: a plain function, called in the process before the target.
        initargs: arguments of the initializer.
        loop_initializer: a plain function that makes the event loop of the process; without it, the
            process uses the loop implementation that runs where `start` is called.

    (`process_target`, which 0.9.1 had, is refused.)

    Raises:
        ValueError: the target is not a coroutine function, or an initializer is one.
        TypeError: another argument has a wrong type.

    Example:
        process = Process(target=fetch, args=("https://example.org",))
        process.start()
        await process.join(timeout=10)
    """

    _exit: Exit | None = None
    _closed = False
    _sender = 0  # the id of the process that starts this one now

    def __init__(
        self,
        group: None = None,
        target: Callable[..., Any] | None = None,
        name: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Sequence[Any] | None = (),
        loop_initializer: LoopInitializer | None = None,
        process_target: None = None,
    ) -> None:
        if process_target is not None:
            raise TypeError(
                f"process_target ended with aiomultiprocess 0.9.1, got {process_target!r}. "
                f"Instead: {_legacy.PROCESS_HOOKS['run_async']}"
            )
        if group is not None:
            raise ValueError(f"group must be None, not {group!r}")
        if target is not None and not is_coroutine_function(target):
            raise ValueError(
                f"target must be coroutine function, not {target!r}; define it with `async def`"
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        check_synchronous("initializer", initializer)
        check_synchronous("loop_initializer", loop_initializer)
        from ._processes import child  # here: a pool's workers are made without it

        if target is None:
            target = not_implemented
        self._label = label_of(target)
        self._loop_initializer = loop_initializer
        self._main: child.ChildMain | None = child.ChildMain(
            label=self._label,
            target=target,
            args=checked_sequence("args", args),
            kwargs=_checked_mapping("kwargs", {} if kwargs is None else kwargs),
            initializer=initializer,
            initargs=checked_sequence("initargs", initargs),
            loop=loop_initializer,
        )
        self.aio_process = process_class(context)(
            target=child.run, name=name, args=(self._main,), daemon=daemon
        )
        self._main.process = self.aio_process

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For its own process, if the target or an argument refers to this object (child.py).

        TypeError for any other process.
        """
        if self._sender != os.getpid():
            from ._parent.callers import refuse_to_pickle  # here: few programs need it

            refuse_to_pickle(self)
        return super().__reduce_ex__(protocol)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """TypeError for a subclass that overrides a method of 0.9.1 that is never called now."""
        super().__init_subclass__(**kwargs)
        _legacy.refuse_hooks(cls, _legacy.PROCESS_HOOKS)

    def __await__(self) -> Generator[Any, None, Any]:
        """Start the process if it was not started, and wait for it as `join` does."""
        if not self._is_started():
            self.start()
        return self.join().__await__()

    def start(self) -> None:
        """Start the process; no event loop needs to run.

        Raises:
            pickle.PicklingError, AttributeError, TypeError: the target or an argument cannot be
                pickled.
            OSError: the system refuses a process.
            RuntimeError: it was started before, or this is a process whose main module has no
                `if __name__ == "__main__":` guard.
        """
        main = self._unstarted()
        main.loop = loops.spec_of(loops.running_loop(), self._loop_initializer)
        self._sender = os.getpid()
        try:
            self._launch()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise at_its_caller(error) from error.__cause__
        finally:
            self._sender = 0
        self._exit = Exit(self.aio_process)
        self._main = None  # the child has its copy by now; ours may be large

    def _unstarted(self) -> child.ChildMain:
        if self._main is None or self._is_current():
            raise RuntimeError("a process can be started only once")
        return self._main

    def _launch(self) -> None:
        try:
            self.aio_process.start()
        except BlockingIOError as error:
            if "gevent" in sys.modules:
                error.add_note(GEVENT)
            raise

    async def join(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - 0.9.1 has it
        """Wait for the process to end; return as soon as it has.

        Args:
            timeout: in seconds; None waits for ever.

        Raises:
            TimeoutError: the process did not end in time; it keeps running.
            ValueError: the process was not started, or is the one that calls this, or `timeout` is
                not a number.
        """
        if not self._is_started():
            raise ValueError("must start process before joining it")
        if self._is_current():
            raise ValueError("a process cannot wait for its own end")
        limit = any_seconds("timeout", timeout)
        if not self._ended():
            async with asyncio.timeout(limit):
                await self._exit_of_process().wait()

    @property
    def name(self) -> str:
        """The name of the process."""
        return self.aio_process.name

    def is_alive(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._is_started() and not self._ended()

    @property
    def daemon(self) -> bool:
        """Whether the process ends with this one; may be set before `start`."""
        return self.aio_process.daemon

    @daemon.setter
    def daemon(self, value: bool) -> None:
        self.aio_process.daemon = value

    @property
    def pid(self) -> int | None:
        """The process id, None before `start`."""
        return self.aio_process.pid

    @property
    def exitcode(self) -> int | None:
        """The exit code, negative for a signal.

        None before the end, and also after it if another part of the program took the code.
        """
        return self._exit_of_process().exitcode if self._is_started() and self._ended() else None

    def terminate(self) -> None:
        """Send SIGTERM to the process, if it has not ended."""
        if not self._is_started():
            raise ValueError("must start process before terminating it")
        if not self._ended():
            self.aio_process.terminate()

    def kill(self) -> None:
        """Send SIGKILL to the process, if it has not ended."""
        if not self._is_started():
            raise ValueError("must start process before killing it")
        if not self._ended():
            self.aio_process.kill()

    def close(self) -> None:
        """Release the resources of the process. ValueError while it runs, and at any later use.

        It may be called again, and does nothing then.
        """
        if self._closed:
            return
        if self._is_started():
            self._ended()  # also updates the process object of multiprocessing
        self.aio_process.close()
        self._closed = True

    def _is_started(self) -> bool:
        """Whether the process was started; ValueError once it is closed."""
        if self._closed:
            raise ValueError("process object is closed")
        return self.aio_process.pid is not None

    def _exit_of_process(self) -> Exit:
        if self._exit is None:
            self._exit = Exit(self.aio_process)
        return self._exit

    def _ended(self) -> bool:
        return not self._is_current() and self._exit_of_process().check()

    def _is_current(self) -> bool:
        """Whether this is called in the process itself."""
        return self.aio_process is multiprocessing.current_process()


class Worker(Process):
    """A coroutine in a process of its own, which sends back its result.

    If the target raises an exception, the exception is *returned* in place of a result.

    Example:
        length = await Worker(target=measure, args=("https://example.org",))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        report_exit(self.aio_process)
        self._receiver: PipeReceiver | ThreadReceiver | None = None
        self._result: tuple[Any] | None = None

    def start(self) -> None:
        """Start the process, see `Process.start`."""
        from ._processes.result import Receiver
        from ._pure.encoder import dumps  # by value: a result outlives its process (CODEC-9)

        main = self._unstarted()
        receiver = Receiver()
        main.sender, main.dumps = receiver.sender, dumps
        try:
            super().start()
        except BaseException:
            receiver.close()
            raise
        receiver.release()
        self._receiver = receiver
        with contextlib.suppress(OSError):  # no descriptor left: the wait raises the error
            self._listen()

    async def join(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - 0.9.1 has it
        """Wait for the process to end, and return the result or what the target raised.

        Args:
            timeout: in seconds; None waits for ever.

        Raises:
            WorkerLostError: the process ended without a result, for example because it was killed.
            TimeoutError: the process did not end in time; it keeps running.
            ValueError: the process was not started, or is the one that calls this, or `timeout` is
                not a number.
        """
        self._listen()
        await super().join(timeout)
        try:
            return self.result
        except Exception as error:
            without_our_frames(error)
            raise

    @property
    def result(self) -> Any:
        """What `join` returns; ValueError before the end, WorkerLostError if there is no result."""
        if not self.is_alive() and self.pid is not None:
            if self._result is None:
                self._result = (self._load(),)
            return self._result[0]
        raise ValueError("coroutine not completed")

    def close(self) -> None:
        """Release the resources of the process, see `Process.close`."""
        super().close()
        if self._receiver is not None:
            self._receiver.close()

    def _listen(self) -> None:
        loop = loops.running_loop()
        if self._receiver is not None and loop is not None:
            self._receiver.attach(loop)

    def _ended(self) -> bool:
        if self._receiver is not None:
            self._receiver.pump()  # until we read its result, the child may be unable to end
        return super()._ended()

    def _load(self) -> Any:
        from ._processes.result import START_ERROR, load_result

        assert self._receiver is not None  # the process was started
        self._receiver.pump(limit=sys.maxsize)
        self._receiver.close()
        incoming = self._receiver.incoming
        if incoming.lacked:
            raise MemoryError(
                f"the result of {self._label} has {incoming.lacked} bytes: there is no memory here"
            )
        if incoming.message is None:
            what = self._label if incoming.started else _start_of(self._label)
            raise WorkerLostError(what, self.pid, self.exitcode)
        kind, payload = incoming.message
        if kind == START_ERROR:
            proxy = exceptions.load_exception(payload)
            what = f"its start, before {self._label} ran: {proxy.__cause__ or proxy}"
            text = RemoteTraceback(str(proxy))
            raise WorkerLostError(what, self.pid, self.exitcode) from text
        return load_result(kind, payload, self._label)


def _checked_mapping(name: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping of names to arguments, not {values!r}")
    return dict(values)


def _start_of(label: str) -> str:
    return (
        f"its start, before {label} ran: importing the main module (its code that starts a process "
        'must be below `if __name__ == "__main__":`)'
    )
