"""What stands in a job's list at the place of a result that is not there (job.py)."""

from __future__ import annotations

from typing import Any

PENDING: Any = type("Pending", (), {"__repr__": lambda self: "<pending>"})()
FAILED: Any = type("Failed", (), {"__repr__": lambda self: "<failed>"})()
DROPPED: Any = type("Dropped", (), {"__repr__": lambda self: "<dropped>"})()  # it was read (JOB-2)
