"""The child process of a `Process` or a `Worker`: it runs one coroutine in a loop of its own."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

from . import loops
from .initializer import call_initializer
from .start_arguments import StartArguments
from .startup import accept_interrupts, collect_garbage

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from .result import Sender

log = logging.getLogger("aiomultiprocess.core")  # the name is 0.9.1's


class ChildMain:
    """What the child runs. It is pickled as `StartArguments`, and complete after `load`.

    The target may be a method of the `Process` object, and so bring that along, which refers to
    this object and to the process of multiprocessing. In the child it has None, and that process.
    """

    def __init__(
        self,
        *,
        label: str,  # names the target in messages
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        initializer: Callable[..., object] | None,
        initargs: Sequence[Any],
        loop: loops.LoopSpec,
    ) -> None:
        self.label = label
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.initializer = initializer
        self.initargs = initargs
        self.loop = loop
        self.process: BaseProcess | None = None  # that will be the child
        # Of a Worker: where its result goes, and what pickles it.
        self.sender: Sender | None = None
        self.dumps: Callable[[Any], bytes] = pickle.dumps

    def __getstate__(self) -> dict[str, Any]:
        parts = vars(self).copy()
        state = {name: parts.pop(name) for name in ("label", "sender", "dumps")}
        parts["loop_initializer"] = parts.pop("loop")
        there = [(self, (type(None), ())), (parts.pop("process"), (current_process, ()))]
        where = f"the process that runs {self.label}"
        state["arguments"] = StartArguments(where, parts, there=there)
        return state

    def load(self) -> None:
        """In the child: unpickle the arguments; UnpicklingError if that fails."""
        received = vars(self).pop("arguments", None)
        if received is not None:  # None in a forked child
            vars(self).update(received.load())
            self.loop = vars(self).pop("loop_initializer")


def run(main: ChildMain) -> None:
    """Run the coroutine. The process ends with exit code 0, 1, or that of a SystemExit."""
    try:
        if main.sender is not None:
            main.sender.open()
        _load(main)
        accept_interrupts()
        collect_garbage()
        _run_in_loop(main)
    except SystemExit:
        raise
    except KeyboardInterrupt:  # Ctrl-C reached the parent too, which prints a traceback
        sys.exit(1)
    except BaseException as error:  # asyncio.CancelledError too
        from .._wire.tracebacks import without_our_frames

        without_our_frames(error)
        log.exception("aio process %s failed", os.getpid())
        sys.exit(1)


def _load(main: ChildMain) -> None:
    """Unpickle the arguments. A Worker sends an error to its parent; a Process logs it."""
    try:
        main.load()
    except Exception as error:
        if main.sender is None:
            raise
        _send_error(main.sender, error, start=True)
        sys.exit(1)


def _run_in_loop(main: ChildMain) -> None:
    runner = asyncio.Runner(loop_factory=functools.partial(loops.new_loop, main.loop))
    try:
        runner.get_loop()
        if main.initializer is not None:
            call_initializer(main.initializer, main.initargs)
        # copied here, because the initializer may have set variables
        result = runner.run(_call(main), context=contextvars.copy_context())
        message = None if main.sender is None else _dump_result(main, result)
    except BaseException as error:
        if main.sender is not None:
            _send_error(main.sender, error)
        raise
    else:
        if main.sender is not None:
            _send_result(main.sender, message)  # not in `try`: half of it may be written
    finally:
        runner.close()


async def _call(main: ChildMain) -> Any:
    return await main.target(*main.args, **main.kwargs)


def _dump_result(main: ChildMain, result: object) -> bytes:
    from .result import dump_result

    return dump_result(result, main.label, main.dumps)


def _send_result(sender: Sender, message: Any) -> None:
    from .result import RESULT

    sender.send(RESULT, message)


def _send_error(sender: Sender, error: BaseException, *, start: bool = False) -> None:
    from .._wire import exceptions
    from . import result

    kind = result.START_ERROR if start else result.ERROR
    sender.send(kind, exceptions.dump_exception(error))
