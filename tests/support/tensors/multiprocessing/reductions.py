"""How tensors are shared: the one who unpickles asks the process that pickled for a descriptor."""

from __future__ import annotations

import tempfile
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import tensors


def reduce_tensor(tensor: tensors.Tensor) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(tensor.numbers))
        file.flush()
        return rebuild_tensor, (DupFd(file.fileno()),)


def rebuild_tensor(handle: Any) -> tensors.Tensor:
    file = open(handle.detach(), "rb")  # noqa: SIM115 - the memory of the tensor, as long as it lives
    file.seek(0)
    tensor = tensors.Tensor(*file.read())
    tensor.memory = file
    return tensor


def reduce_event(event: tensors.Event) -> Any:
    return tensors.Event, ()


def register() -> None:
    ForkingPickler.register(tensors.Tensor, reduce_tensor)
    ForkingPickler.register(tensors.Event, reduce_event)
