"""A network of its own for some programs, joined with this machine's by a cable that can be cut."""

from __future__ import annotations

import os
import subprocess
from typing import Self

import pytest

OURS, THEIRS = "198.18.77.1", "198.18.77.2"  # of a range that is for tests of networks


class Network:
    """A network namespace (Linux, root), in use as `with Network() as network`."""

    def __init__(self) -> None:
        self.name = f"aiomp{os.getpid()}"
        self.address = THEIRS  # of programs in there
        self._near, self._far = f"n{os.getpid()}", f"f{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self.name)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or error
            pytest.skip(f"the system refuses a network namespace, so none can be cut: {said}")
        try:
            _ip("link", "add", self._near, "type", "veth", "peer", self._far, "netns", self.name)
            _ip("addr", "add", f"{OURS}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            self._inside("link", "set", "lo", "up")
            self._inside("addr", "add", f"{THEIRS}/30", "dev", self._far)
            self.mend()
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"the system refuses a cable between networks: {error.stderr}")
        return self

    def __exit__(self, *error: object) -> None:
        _ip("netns", "del", self.name)  # and with it the cable, when its last program has ended

    @property
    def command(self) -> list[str]:
        """What comes before the command of a program that is to run in there."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """From now on what is sent is lost, both ways, and nobody is told."""
        self._inside("link", "set", self._far, "down")

    def mend(self) -> None:
        """Join both again."""
        self._inside("link", "set", self._far, "up")
        self._inside("route", "replace", "default", "via", OURS)

    def _inside(self, *command: str) -> None:
        _ip("-n", self.name, *command)


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True, text=True)
