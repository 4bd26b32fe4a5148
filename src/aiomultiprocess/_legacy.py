"""Names of 0.9.1 that no longer exist, and what replaces each.

A program that was written for 0.9.1 may override a method that is never called now, or read an
attribute that is gone. It gets an error that names the replacement; this module holds the texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

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
            raise TypeError(
                f"{base.__qualname__}.{name} would never be called: aiomultiprocess 1.0 has no "
                f"such method to override. Instead: {hooks[name]}"
            )


def refuse_attribute(owner: object, name: str, gone: Mapping[str, str]) -> NoReturn:
    """Raise AttributeError as Python does, with the replacement if 0.9.1 had the attribute."""
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    if name in gone:
        text += f", which ended with aiomultiprocess 0.9.1. Instead: {gone[name]}"
    raise AttributeError(text, name=name, obj=owner)
