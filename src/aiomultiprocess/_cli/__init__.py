"""The commands of `python -m aiomultiprocess`."""
