"""Names of 0.9.1 that no longer exist, and what replaces each.

A program that was written for 0.9.1 may override a method that is never called now, or read an
attribute that is gone. It gets an error that names the replacement; this module holds the texts.

LEGACY-1  No class has a `__getattr__` for this: with one, Python takes several times as long for
    each attribute of its objects, those that exist included. A `Gone` stands for each name instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

C = TypeVar("C", bound=type)

SEES_EACH_TASK = (
    "a scheduler sees each task: its schedule_task is called before, complete_task after"
)

#: Methods that a subclass of Pool could override.
POOL_HOOKS = {
    "init": (
        "override __init__, or pass a scheduler, whose register_queue and register_process are "
        "called for each queue and worker"
    ),
    "loop": "nothing polls any more; run a task of your own beside the pool",
    "create_worker": (
        "set workers up by initializer= and loop_initializer=, replace them by maxtasksperchild="
    ),
    "queue_work": f"override apply, map and starmap; or {SEES_EACH_TASK}",
    "finish_work": f"override apply, map and starmap; or {SEES_EACH_TASK}",
    "results": "override apply, map and starmap, and wrap what they return",
}
POOL = POOL_HOOKS | {
    "queues": "a scheduler names the queues, in register_queue",
    "last_id": SEES_EACH_TASK,
}

RESULT = {"task_ids": f"await the result or use `async for`; {SEES_EACH_TASK}"}

WORKER_HOOKS = {
    "run": "wrap the function that you pass to apply or map, and use initializer= of Pool",
}
WORKER = WORKER_HOOKS | {
    "tx": "a scheduler names the queues, in register_queue",
    "rx": "await what apply and map return",
    "ttl": "use pool.maxtasksperchild",
    "concurrency": "use pool.childconcurrency",
    "exception_handler": "use pool.exception_handler",
}

PROCESS_HOOKS = {
    "run_async": "wrap the target, or use initializer= and loop_initializer=",
}
PROCESS = PROCESS_HOOKS | {
    "unit": "keep what you pass; the result of a Worker is in its attribute `result`",
}

QUEUE_METHODS = frozenset(
    [
        "put",
        "put_nowait",
        "get",
        "get_nowait",
        "qsize",
        "empty",
        "full",
        "close",
        "join_thread",
        "cancel_join_thread",
    ]
)
QUEUE = dict.fromkeys(
    QUEUE_METHODS,
    "it only stands for a queue; count tasks in schedule_task and complete_task of the scheduler",
)


def refuse_hooks(cls: type, hooks: Mapping[str, str]) -> None:
    """Raise TypeError for a class that overrides, itself or by a mixin, one of these methods."""
    for base in cls.__mro__:
        for name in sorted(hooks.keys() & vars(base).keys()):
            if isinstance(vars(base)[name], Gone):
                continue
            raise TypeError(
                f"{base.__qualname__}.{name} would never be called: aiomultiprocess 1.0 has no "
                f"such method to override. Instead: {hooks[name]}"
            )


class Gone:
    """Stands in a class for an attribute that 0.9.1 had there (LEGACY-1).

    To read it raises AttributeError, as if it were not there, and names the replacement. Another
    base of a subclass may have an attribute of that name.
    """

    def __init__(self, cls: type, name: str, replacement: str) -> None:
        self._cls = cls
        self._name = name
        self._replacement = replacement

    def __get__(self, owner: object, kind: type) -> Any:
        with suppress(AttributeError):
            return getattr(super(self._cls, kind if owner is None else owner), self._name)
        what = f"type object {kind.__name__!r}" if owner is None else f"{kind.__name__!r} object"
        raise AttributeError(
            f"{what} has no attribute {self._name!r}, which ended with aiomultiprocess 0.9.1. "
            f"Instead: {self._replacement}",
            name=self._name,
            obj=kind if owner is None else owner,
        )


def without(gone: Mapping[str, str]) -> Callable[[C], C]:
    """Decorate a class that had these attributes in 0.9.1; each is given with its replacement."""

    def decorate(cls: C) -> C:
        for name, replacement in gone.items():
            setattr(cls, name, Gone(cls, name, replacement))
        return cls

    return decorate
