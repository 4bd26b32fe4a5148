"""amp_ext.watchdog: a native thread that ends a worker after its parent died."""

def start(fd: int, parent_pid: int, grace: float) -> None:
    """Once `fd` is readable, send this process SIGTERM and end it after `grace` seconds.

    `fd` is a pidfd of the parent, or a pipe whose other end only the parent has; it must stay open.
    The thread needs no GIL. ValueError for a bad argument, OSError if the system refuses a thread.
    """
