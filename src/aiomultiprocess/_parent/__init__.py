"""The parent engine: it takes calls, sends tasks to workers, and settles each task once."""
