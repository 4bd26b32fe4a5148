"""The accelerator of aiomultiprocess: Cython modules over one C11 header, ring.h.

Nothing in here imports aiomultiprocess; there, aiomultiprocess._accel alone imports this.
"""
