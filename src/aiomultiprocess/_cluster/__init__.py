"""Pools over the workers of a dask cluster: the client's side, and the hosts' side."""
