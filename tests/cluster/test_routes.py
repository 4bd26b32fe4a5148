"""Which way the stream to a host takes: straight, or through the scheduler."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from aiomultiprocess import __version__
from aiomultiprocess._cluster import routes
from aiomultiprocess._cluster.messages import FORMAT
from aiomultiprocess._cluster.routes import IncompatibleError, RelayedComm, Routes
from clusters import Dask

SCHEDULER, HOST, OTHER = "tcp://scheduler", "tcp://host", "tcp://other"


class Answer:
    """A comm with a greeting, after which it ends."""

    peer_address = "tcp://there"
    closed = None

    def __init__(self, version: str) -> None:
        self.version = version
        self.ended = False

    async def write(self, message: object) -> None:
        self.request = message

    async def read(self) -> dict[str, Any]:
        if self.ended:
            raise OSError("ended")
        self.ended = True
        return {
            "version": self.version,
            "format": FORMAT,
            "python": sys.version_info[:2],
            "threads": 3,
            "name": "it",
        }

    def abort(self) -> None:
        self.ended = True


class Net:
    """A client of dask and its network, of which some addresses are reached."""

    def __init__(self, *reached: str, direct: bool | None = None) -> None:
        self.reached = set(reached)
        self.direct_to_workers = direct
        self.scheduler = self
        self.address = SCHEDULER
        self.tried: list[str] = []
        self.installed = 0
        self.refusal: Exception | None = None
        self.version = __version__
        self.heard = 0
        self.routes = Routes(self, "operation", self.connect, self.hear)

    async def hear(self) -> None:
        self.heard += 1

    async def connect(self, address: str, patience: float) -> Any:
        self.tried.append(address)
        if address not in self.reached:
            raise OSError("no route")
        return Answer(self.version)

    async def run_on_scheduler(self, function: object) -> None:
        self.installed += 1
        if self.refusal is not None:
            raise self.refusal

    async def open(self, address: str = HOST) -> str:
        """Opens a stream, and says what it was opened to."""
        comm, greeting = await self.routes.open(address)
        assert greeting == (address, 3, "it")
        via = self.tried[-1]
        assert isinstance(comm, Answer if via == address else RelayedComm)
        return via


@pytest.fixture(autouse=True)
def _needs_dask() -> None:
    pytest.importorskip("distributed")


async def test_a_host_that_is_reached_straight_is_reached_so() -> None:
    net = Net(SCHEDULER, HOST)
    assert await net.open() == HOST
    assert not net.installed


async def test_a_host_that_is_not_is_reached_through_the_scheduler_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net(SCHEDULER)
    assert await net.open() == SCHEDULER
    assert await net.open(OTHER) == SCHEDULER
    assert net.tried == [HOST, SCHEDULER, SCHEDULER]  # ROUTE-2
    assert net.installed == 1
    (line,) = caplog.messages
    assert "tcp://host cannot be reached straight (OSError: no route)" in line


async def test_hosts_that_are_found_together_share_one_relay_and_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net(SCHEDULER)
    await asyncio.gather(*(net.open(f"tcp://{at}") for at in range(5)))
    assert net.installed == 1
    assert len(caplog.messages) == 1


async def test_where_some_are_reached_straight_each_is_tried_so() -> None:
    net = Net(SCHEDULER, HOST)
    await net.open(HOST)
    assert await net.open(OTHER) == SCHEDULER
    net.reached.add(OTHER)
    assert await net.open(OTHER) == OTHER


@pytest.mark.parametrize("refused", ["to connect", "to install"])
async def test_where_there_is_no_way_the_error_has_both_reasons(refused: str) -> None:
    net = Net() if refused == "to connect" else Net(SCHEDULER)
    if refused == "to install":
        net.refusal = ModuleNotFoundError("No module named 'aiomultiprocess'")
    with pytest.raises(
        ConnectionError, match=r"^straight: OSError: no route; through the"
    ) as error:
        await net.open()
    reason = {"to connect": "OSError", "to install": "the scheduler needs aiomultiprocess"}[refused]
    assert reason in str(error.value)
    net.refusal = None  # it is tried again from the beginning
    net.reached |= {SCHEDULER}
    assert await net.open() == SCHEDULER


async def test_a_client_that_wants_the_straight_way_gets_no_other() -> None:
    net = Net(SCHEDULER, direct=True)
    with pytest.raises(OSError, match=r"^no route$"):
        await net.open()
    assert net.tried == [HOST]


async def test_a_client_that_does_not_want_it_goes_through_the_scheduler_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net(SCHEDULER, HOST, direct=False)
    assert await net.open() == SCHEDULER
    assert not caplog.messages


@pytest.mark.parametrize("direct", [True, False])
async def test_the_end_of_a_stream_through_the_scheduler_waits_for_a_word_of_that(
    direct: bool,
) -> None:
    net = Net(SCHEDULER, HOST, direct=direct)
    comm, _ = await net.routes.open(HOST)
    with pytest.raises(OSError, match=r"^ended$"):
        await comm.read()
    assert net.heard == int(not direct)


@pytest.mark.parametrize("reached", [HOST, ""])
async def test_a_host_of_another_version_is_not_tried_another_way(reached: str) -> None:
    net = Net(SCHEDULER, reached)
    net.version = "0.1"
    with pytest.raises(IncompatibleError, match=r"it has aiomultiprocess 0\.1"):
        await net.open()
    assert net.tried[-1] == (reached or SCHEDULER)


async def test_a_host_that_the_scheduler_does_not_know_or_reach_is_an_error(
    dask: Dask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client
    from distributed.comm import core

    monkeypatch.setattr(routes, "STRAIGHT_TIMEOUT", 0.1)

    async def connect(address: str, patience: float) -> Any:
        return await core.connect(address, timeout=patience)  # type: ignore[no-untyped-call]

    async with Client(dask.address, asynchronous=True) as client:  # type: ignore[no-untyped-call]
        ways = Routes(client, "operation", connect, Net().hear)
        with pytest.raises(ConnectionError, match=r"through the scheduler: .*does not know it any"):
            await ways.open("tcp://127.0.0.1:1")
