"""The worker engine: what runs in each process of a pool."""
