"""The table of all that is compared. The orchestrator and the reports read it; a runner finds its
adapter by it.
"""

from dataclasses import dataclass

NUMPY = "numpy>=2"  # some workloads echo its arrays
OLD = "0.9.1"


@dataclass(frozen=True)
class Entry:
    """One peer or limit."""

    title: str
    #: Module and class of its adapter.
    adapter: str
    #: What pip installs into its environment; None: it runs in ours, where this library is.
    requirements: tuple[str, ...] | None = (NUMPY,)
    #: The distribution whose version is shown; None: Python's.
    distribution: str | None = None
    #: Whether it runs the coroutines, or their synchronous twins.
    coroutines: bool = False
    limit: bool = False
    #: The oldest Python that has it.
    since: tuple[int, int] = (3, 11)
    #: Environments that hold the same share one.
    environment: str = "stdlib"


PEERS = {
    "shm": Entry("aiomultiprocess, shm", "adapters.Shm", None, "aiomultiprocess", coroutines=True),
    "pipe": Entry(
        "aiomultiprocess, pipe", "adapters.Pipe", None, "aiomultiprocess", coroutines=True
    ),
    "old": Entry(
        f"aiomultiprocess {OLD}",
        "adapters.Aiomultiprocess",
        (f"aiomultiprocess=={OLD}", NUMPY),
        "aiomultiprocess",
        coroutines=True,
        environment=f"aiomultiprocess-{OLD}",
    ),
    "multiprocessing": Entry("multiprocessing.Pool", "adapters.MultiprocessingPool"),
    "executor": Entry("ProcessPoolExecutor", "adapters.Executor"),
    "run_in_executor": Entry("run_in_executor", "adapters.RunInExecutor"),
    "interpreters": Entry("InterpreterPoolExecutor", "adapters.Interpreters", since=(3, 14)),
    "mpire": Entry("mpire", "adapters.Mpire", ("mpire", NUMPY), "mpire", environment="mpire"),
    "joblib": Entry("joblib", "adapters.Joblib", ("joblib", NUMPY), "joblib", environment="joblib"),
    "loky": Entry("loky", "adapters.Loky", ("loky", NUMPY), "loky", environment="loky"),
    "ray": Entry("ray", "adapters.Ray", ("ray", NUMPY), "ray", environment="ray"),
    "dask": Entry(
        "dask",
        "adapters.Dask",
        ("distributed", NUMPY),
        "distributed",
        coroutines=True,
        environment="dask",
    ),
    "one_process": Entry(
        "one process, no transport", "limits.OneProcess", coroutines=True, limit=True
    ),
    "ping_pong": Entry("eventfd ping-pong", "limits.PingPong", limit=True),
    "memcpy": Entry("memcpy", "limits.Memcpy", limit=True),
    "fresh_copy": Entry("copy in fresh memory", "limits.FreshCopy", limit=True),
}
