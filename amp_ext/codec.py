"""The codec of aiomultiprocess in Cython: `encoder`, `decoder`, and what they agree upon, `tags`.

What a payload is, and the invariants CODEC-1 to CODEC-10 which the modules cite, stand in
aiomultiprocess/codec.py, whose encoder and decoder make and take the same bytes.
"""

from .decoder import CorruptFrameError, decode_items, loads
from .encoder import dumps, encode_items

__all__ = ["CorruptFrameError", "decode_items", "dumps", "encode_items", "loads"]
