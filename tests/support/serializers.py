"""What the tests of serializers run in workers."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any


def call(function: Any, value: Any) -> Any:
    return function(value)


def kind(value: object) -> str:
    return type(value).__name__


def closure() -> Any:
    one = 1
    return lambda value: value + one


async def closure_after_a_turn(number: int) -> Any:
    await asyncio.sleep(0)
    return lambda value: value + number


class Marked:
    """Refuses pickle; `Marking` can take it."""

    mark = "raw"

    def __reduce__(self) -> Any:
        raise TypeError("not by pickle")


class Marking:
    """A serializer that turns a `Marked` into a text."""

    def dumps(self, obj: Any, /) -> bytes:
        return pickle.dumps(_without_marked(obj))

    def loads(self, data: bytes, /) -> Any:
        return pickle.loads(data)


def _without_marked(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_without_marked, value))
    return Text() if type(value) is Marked else value


class Text:
    mark = "marked"


def mark_of(value: Any) -> str:
    return getattr(value, "mark", type(value).__name__)
