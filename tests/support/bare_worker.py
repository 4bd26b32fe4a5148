"""A preload of a dask worker: its environment lacks this package."""

import sys

sys.modules["aiomultiprocess"] = None  # type: ignore[assignment]
