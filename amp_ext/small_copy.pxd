"""Copies short text inline: a call would take longer than the copy."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    SMALL = 64  # copy_small takes fewer bytes than this


cdef inline uint64_t copy_small(uint8_t *to, const uint8_t *data, Py_ssize_t size) noexcept:
    """Copy text; returns all words of the copy combined by OR, which tells whether it is ASCII.

    The last bytes are copied as one word, which may overlap the word before it. If another process
    writes meanwhile, the result covers both readings of the bytes that overlap.
    """
    cdef uint64_t seen = 0, eight
    cdef uint32_t four, last_four
    cdef uint16_t two, last_two
    cdef Py_ssize_t at = 0
    if size >= 8:
        while at + 8 < size:
            memcpy(&eight, data + at, 8)
            memcpy(to + at, &eight, 8)
            seen |= eight
            at += 8
        memcpy(&eight, data + size - 8, 8)
        memcpy(to + size - 8, &eight, 8)
        return seen | eight
    if size >= 4:
        memcpy(&four, data, 4)
        memcpy(&last_four, data + size - 4, 4)
        memcpy(to, &four, 4)
        memcpy(to + size - 4, &last_four, 4)
        return four | last_four
    if size >= 2:
        memcpy(&two, data, 2)
        memcpy(&last_two, data + size - 2, 2)
        memcpy(to, &two, 2)
        memcpy(to + size - 2, &last_two, 2)
        return two | last_two
    if size == 1:
        to[0] = data[0]
        return to[0]
    return 0
