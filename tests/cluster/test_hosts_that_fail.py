"""How a pool gets its hosts where some fail: stopped, unreachable, refused, or replaced."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_streams_and_discovery import LateClient, SilentComm

import workload
from aiomultiprocess import Pool, WorkerLostError, __version__
from aiomultiprocess._cluster import cluster as cluster_module
from aiomultiprocess._cluster.cluster import Cluster
from aiomultiprocess._cluster.connection import Connection, Greeting
from aiomultiprocess._cluster.host import Host
from aiomultiprocess._cluster.messages import DRAIN, FORMAT, LEAVE, IncomingFrames, OutgoingFrames
from aiomultiprocess._cluster.supervisor import ClusterSupervisor, HostChannels
from clusters import Dask

pytest.importorskip("distributed")

HOST = "tcp://host"


class ImitatedClient(LateClient):
    """A client of dask whose workers announce themselves, and then answer as `outcome` does."""

    def __init__(self, *workers: str, outcome: Any) -> None:
        super().__init__()
        self.workers = list(workers)
        self.outcome = outcome

    async def register_plugin(self, plugin: object, name: str) -> dict[str, str]:
        for address in self.workers:
            await self.log_event(name, {"address": address})
        await asyncio.sleep(0)
        await self.outcome()
        return {}

    async def identity(self, n_workers: int) -> dict[str, Any]:
        return {"workers": self.workers}


class ImitatedHost(SilentComm):
    """A stream to a host; of another version, or one that refuses, if that is given."""

    allow_offload = deserialize = False

    def __init__(self, version: str = __version__, **refusal: str) -> None:
        super().__init__()
        self.greeting: dict[str, Any] | None = {
            "version": version,
            "format": FORMAT,
            "python": sys.version_info[:2],
            "threads": 1,
            "name": "it",
            **refusal,
        }

    async def read(self) -> Any:
        greeting, self.greeting = self.greeting, None
        return greeting or await super().read()

    async def write(self, message: object) -> None:
        pass


class FleetingHost(ImitatedHost):
    """A stream to a host that ends right after the greeting."""

    async def read(self) -> Any:
        if self.greeting is None:
            raise OSError("closed")
        return await super().read()


class ClosingHost(SilentComm):
    """A stream to a host that says, once it is told to, that its dask worker closes."""

    allow_offload = deserialize = False

    def __init__(self) -> None:
        super().__init__()
        self.closes, self.left = asyncio.Event(), asyncio.Event()
        self.outbox, self.inbox = OutgoingFrames(), IncomingFrames()
        self.outbox.add(0, DRAIN)

    async def read(self) -> Any:
        await self.closes.wait()
        return self.outbox.take() if self.outbox else await super().read()

    async def write(self, message: Any) -> None:
        if any(frame.kind == LEAVE for frame in self.inbox.take(message)):
            self.left.set()


class Observed(Cluster):
    """A cluster over an imitated client, with what it says of its hosts."""

    def __init__(self, client: ImitatedClient) -> None:
        super().__init__(self, asyncio.get_running_loop(), self)
        self.client = client
        self.hosts: asyncio.Queue[str] = asyncio.Queue()
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: list[Any] = []  # what each connection to a host gives
        self.attempts: list[float] = []  # when a host was tried
        self.usual: Any = ImitatedHost  # makes what the further connections give

    def new_client(self) -> tuple[Any, bool]:
        return self.client, False

    async def _connect(self, address: str, patience: float = 0) -> Any:
        if address == self.client.address:
            return SilentComm()
        self.attempts.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if self.answers else self.usual()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def announce(self, address: str = HOST) -> None:
        self._on_announcement((0.0, {"address": address}))

    def on_host(self, connection: Connection) -> None:
        self.hosts.put_nowait(connection.address)

    async def next_host(self) -> str:
        async with asyncio.timeout(10):
            return await self.hosts.get()

    def before_host_lost(self, connection: Connection) -> None:
        pass

    on_host_lost = on_host_draining = before_host_lost

    def on_no_cluster(self, error: BaseException) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)


async def answer() -> None:
    """All workers answer."""


async def never_answer() -> None:
    await asyncio.Event().wait()


async def fail_to_connect() -> None:
    raise OSError("Timed out trying to connect to tcp://unreached after 30 s")


@pytest.mark.row("H138")
async def test_a_worker_that_never_answers_keeps_no_other_host_from_the_pool() -> None:
    cluster = Observed(ImitatedClient(HOST, outcome=never_answer))
    cluster.start()
    assert await cluster.next_host() == HOST
    begin = time.monotonic()
    await cluster.close()
    assert time.monotonic() - begin < cluster_module.END_TIMEOUT
    assert cluster.client.removed.is_set()


@pytest.mark.row("H139")
async def test_a_worker_that_is_not_reached_is_logged_where_another_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "TIMEOUT", 0.01)
    cluster = Observed(ImitatedClient(HOST, outcome=fail_to_connect))
    cluster.start()
    assert await cluster.next_host() == HOST
    await asyncio.sleep(0.1)
    assert not cluster.broken.done()
    assert "a dask worker cannot be made a host (OSError: Timed out" in caplog.text
    await cluster.close()


@pytest.mark.row("H139")
async def test_a_worker_that_is_not_reached_breaks_a_pool_that_has_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "TIMEOUT", 0.01)
    cluster = Observed(ImitatedClient(outcome=fail_to_connect))
    cluster.start()
    with pytest.raises(RuntimeError, match=r"cluster cannot be used .*tcp://unreached"):
        await asyncio.wait_for(cluster.broken, 10)
    await cluster.close()


@pytest.mark.row("H150")
async def test_a_worker_without_the_package_is_logged_where_another_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Dask(tmp_path) as dask:
        dask.add("bare", preload="bare_worker").add("equipped")
        async with Pool(backend="dask", address=dask.address) as pool:
            assert await pool.map(workload.double, range(100)) == [2 * n for n in range(100)]
            while not caplog.messages:  # noqa: ASYNC110 - a log has no events
                await asyncio.sleep(0.01)
            assert await pool.apply(workload.double, (4,)) == 8
        assert "cannot be a host: install aiomultiprocess" in caplog.text


@pytest.mark.row("H150")
async def test_workers_that_all_lack_the_package_break_a_pool(tmp_path: Path) -> None:
    with Dask(tmp_path) as dask:
        dask.add("one", "two", preload="bare_worker")
        async with Pool(backend="dask", address=dask.address) as pool:
            with pytest.raises(
                RuntimeError, match="cannot be hosts of a pool: install aiomultiprocess"
            ):
                await pool.map(workload.double, range(100))


@pytest.mark.row("H140")
async def test_a_refused_host_is_used_once_its_address_has_a_fit_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Observed(ImitatedClient("tcp://other", outcome=answer))
    cluster.start()
    assert await cluster.next_host() == "tcp://other"
    cluster.answers = [ImitatedHost("0.0.9")]
    cluster.announce()
    while HOST not in caplog.text:  # noqa: ASYNC110 - a log has no events
        await asyncio.sleep(0.001)
    assert caplog.text.count("it has aiomultiprocess 0.0.9") == 1
    cluster.announce()
    assert await cluster.next_host() == HOST
    await cluster.close()


@pytest.mark.row("H141")
async def test_a_host_that_announces_itself_while_the_scheduler_answers_is_not_forgotten() -> None:
    class Scheduler(ImitatedClient):
        """Answers from what it knew before another worker came."""

        async def identity(self, n_workers: int) -> dict[str, Any]:
            cluster.announce()
            return {"workers": []}

    cluster = Observed(Scheduler(HOST, outcome=answer))
    first = ImitatedHost()
    cluster.answers = [first]
    cluster.start()
    assert await cluster.next_host() == HOST
    first.abort()  # the host is lost
    assert await cluster.next_host() == HOST
    await cluster.close()


@pytest.mark.row("H141")
async def test_an_announcement_ends_the_pause_before_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "FIRST_PAUSE", 60.0)
    cluster = Observed(ImitatedClient(HOST, outcome=answer))
    cluster.answers = [OSError("refused")]
    cluster.start()
    while cluster.answers or not cluster._failures:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    cluster.announce()
    assert await cluster.next_host() == HOST
    await cluster.close()


@pytest.mark.row("H152")
async def test_a_host_that_is_refused_first_keeps_no_other_from_the_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Observed(ImitatedClient(HOST, outcome=answer))
    cluster.answers = [ImitatedHost("0.0.9")]
    cluster.start()
    while HOST not in caplog.text:  # noqa: ASYNC110 - a log has no events
        await asyncio.sleep(0.001)
    cluster.announce("tcp://other")
    assert await cluster.next_host() == "tcp://other"
    await asyncio.sleep(cluster_module.HEAR_TIMEOUT + 0.1)
    assert not cluster.broken.done()
    await cluster.close()


@pytest.mark.row("H152")
async def test_a_host_that_is_refused_breaks_a_pool_that_has_no_other() -> None:
    cluster = Observed(ImitatedClient(HOST, outcome=answer))
    cluster.answers = [ImitatedHost("0.0.9")]
    cluster.start()
    with pytest.raises(RuntimeError, match=r"it has aiomultiprocess 0\.0\.9"):
        await cluster.broken
    await cluster.close()


@pytest.mark.row("H153")
async def test_a_host_that_can_start_no_process_keeps_a_pool_from_no_other(tmp_path: Path) -> None:
    with Dask(tmp_path) as dask:
        dask.add("full", preload="full_worker").add("fit")
        async with Pool(backend="dask", address=dask.address) as pool:
            assert await pool.map(workload.double, range(100)) == [2 * n for n in range(100)]


@pytest.mark.row("H153")
async def test_hosts_that_can_start_no_process_break_a_pool_and_say_why(tmp_path: Path) -> None:
    with Dask(tmp_path) as dask:
        dask.add("full", preload="full_worker")
        async with Pool(backend="dask", address=dask.address) as pool:
            with pytest.raises(WorkerLostError, match="could not be started") as caught:
                await pool.apply(workload.two)
            assert "no process is left" in caught.value.__notes__[0]


@pytest.mark.row("H156")
async def test_a_worker_without_the_package_may_join_a_cluster_that_a_pool_uses(
    tmp_path: Path,
) -> None:
    with Dask(tmp_path) as dask:
        dask.add("equipped")
        async with Pool(backend="dask", address=dask.address) as pool:
            assert await pool.apply(workload.two) == 2
            await asyncio.to_thread(dask.add, "bare", preload="bare_worker")
            assert await pool.apply(workload.two) == 2


@pytest.mark.row("H166")
async def test_a_host_that_closes_is_left_though_a_process_could_not_be_sent_to_it() -> None:
    host, loop = ClosingHost(), asyncio.get_running_loop()

    def ignore(connection: Connection) -> None:
        """Nothing follows from it here."""

    connection = Connection(host, Greeting(HOST, 1, "it"), loop, ignore, ignore, ignore)
    channels = HostChannels()
    channels.chosen = connection
    link, end = channels.create()
    link.close()  # as Supervisor.start_worker does for a worker that was refused
    end.release()
    host.closes.set()
    async with asyncio.timeout(10):
        await host.left.wait()
    connection.close()


@pytest.mark.row("H182")
async def test_a_dask_worker_that_can_be_no_host_breaks_a_pool_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Dask(tmp_path) as dask:
        monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", "typo")
        dask.add("unfit")
        monkeypatch.delenv("AIOMULTIPROCESS_BACKEND")
        async with asyncio.timeout(30), Pool(backend="dask", address=dask.address) as pool:
            with pytest.raises(
                ConnectionError, match=r"it cannot be a host now .*unknown backend 'typo'"
            ):
                await pool.apply(workload.two)


async def test_a_dask_worker_that_can_be_no_host_is_logged_where_another_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Dask(tmp_path) as dask:
        dask.add("fit")
        monkeypatch.setenv("AIOMULTIPROCESS_BACKEND", "typo")
        dask.add("unfit")
        monkeypatch.delenv("AIOMULTIPROCESS_BACKEND")
        async with asyncio.timeout(30), Pool(backend="dask", address=dask.address) as pool:
            while "unknown backend 'typo'" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert await pool.map(workload.double, range(100)) == [2 * n for n in range(100)]
            await asyncio.sleep(cluster_module.HEAR_TIMEOUT + 0.1)
            assert await pool.apply(workload.two) == 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts are tried again sooner."""
    monkeypatch.setattr(cluster_module, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(cluster_module, "HEAR_TIMEOUT", 0.1)


@pytest.mark.row("H182")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (lambda: ImitatedHost(refusal="OSError: none"), r"it cannot be a host now \(OSError: none"),
        (FleetingHost, r"its stream ended: closed, before a process there was ready"),
    ],
)
async def test_a_host_that_is_of_no_use_is_tried_less_and_less_and_breaks_a_pool_without_others(
    host: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Observed(ImitatedClient(HOST, outcome=answer))
    cluster.usual = host
    cluster.start()
    with pytest.raises(ConnectionError, match=reason):
        await asyncio.wait_for(cluster.broken, 10)
    assert len(cluster.attempts) >= cluster_module.ATTEMPTS
    assert caplog.text.count("cannot be used") >= cluster_module.ATTEMPTS
    first, second, third = cluster.attempts[:3]
    assert second - first >= 0.05
    assert third - second >= 0.1
    await cluster.close()


@pytest.mark.usefixtures("quick")
async def test_a_host_that_is_of_no_use_keeps_a_pool_from_no_other() -> None:
    cluster = Observed(ImitatedClient("tcp://other", outcome=answer))
    cluster.start()
    assert await cluster.next_host() == "tcp://other"
    cluster.usual = FleetingHost
    cluster.client.workers.append(HOST)
    cluster.announce()
    while len(cluster.attempts) < 6:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)
    assert not cluster.broken.done()
    await cluster.close()


@pytest.mark.usefixtures("quick")
async def test_a_pool_that_had_a_process_waits_for_hosts_that_come_and_go() -> None:
    class Ready(Observed):
        """A cluster of which the first host has a process that is ready."""

        def on_host(self, connection: Connection) -> None:
            connection.was_ready = len(self.attempts) == 1
            super().on_host(connection)

    cluster = Ready(ImitatedClient(HOST, outcome=answer))
    cluster.usual = FleetingHost
    cluster.start()
    while len(cluster.attempts) < 5:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)
    assert not cluster.broken.done()
    cluster.usual = ImitatedHost
    while await cluster.next_host():
        if len(cluster.connections):
            break
    await cluster.close()


class Places(ClusterSupervisor):
    """A supervisor of which only the places of the processes that it starts are asked for."""

    def __init__(self) -> None:
        loop, queue = asyncio.get_running_loop(), SimpleNamespace(workers=[], dispatch_all=int)
        super().__init__(loop, None, HostChannels(), {1: queue}, self)
        self.started: list[tuple[int, Any]] = []

    def wants_workers(self) -> bool:
        return True

    def on_worker_gone(self) -> None:
        pass

    def start_worker(self, place: int, qid: Any) -> None:
        self.started.append((place, self._places[place]))


@pytest.mark.row("H183")
async def test_a_host_that_takes_the_place_of_a_lost_one_gets_one_process_there() -> None:
    supervisor = Places()
    supervisor._pause = 0.01
    lost, other = (
        cast("Connection", SimpleNamespace(lost=False, draining=False, greeting=greeting))
        for greeting in (Greeting("tcp://lost", 1, ""), Greeting("tcp://other", 1, ""))
    )
    supervisor.on_host(lost)
    supervisor._replace_later(0, cast("Any", 1))  # its process could not be started
    lost.lost = True
    supervisor.on_host_lost(lost)
    supervisor.on_host(other)
    await asyncio.sleep(0.05)
    assert supervisor.started == [(0, lost), (0, other)]
    assert supervisor._next_try is None
    supervisor._replace_later(0, cast("Any", 1))  # nor could that of the other
    while len(supervisor.started) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert supervisor.started[2] == (0, other)


async def test_a_host_that_cannot_report_an_exit_ends_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **fields: object) -> None:
        raise MemoryError

    comm: Any = SilentComm()
    host = Host(comm, asyncio.get_running_loop())
    monkeypatch.setattr(host._stream, "send", refuse)
    link = SimpleNamespace(started=1)
    process: Any = SimpleNamespace(exitcode=-9, link=link, intact=True, journal=b"results")
    host._processes[3] = process
    host._on_exit(3, process)
    assert comm.closed()
