"""The accelerator of aiomultiprocess: Cython modules over one C11 header, ring.h.

Nothing in here imports aiomultiprocess; aiomultiprocess.backend is the one module that imports this.
"""
