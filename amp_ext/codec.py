"""The codec of aiomultiprocess in Cython: `encoder`, `decoder`, and the `tags` that they share.

aiomultiprocess/_pure/codec.py defines the format of a payload, and the rules CODEC-1 to CODEC-12.
The encoder and decoder there do the same in Python, byte for byte.
"""

from .decoder import (
    CorruptFrameError,
    contain_interrupts,
    decode_items,
    loads,
    receive_references,
)
from .encoder import dumps, encode_items, register, register_references

__all__ = [
    "CorruptFrameError",
    "contain_interrupts",
    "decode_items",
    "dumps",
    "encode_items",
    "loads",
    "receive_references",
    "register",
    "register_references",
]
