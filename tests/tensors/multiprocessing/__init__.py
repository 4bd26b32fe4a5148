"""As `torch.multiprocessing`."""
