"""Pauses garbage collection while the codec uses borrowed pointers, or fills a container.

On CPython 3.11 an allocation may start a collection, which runs finalizers and `gc.callbacks`. Such
code could change the container being encoded, or look at one that is not filled yet. From 3.12 on a
collection starts only between two instructions of Python code, and so never in the codec. The GIL
is held from `pause` to `resume`: no other thread can notice the pause, or miss a collection.

Only a function that makes or visits a container calls `pause`, and the pause lasts until `resume`:
a pause costs some nanoseconds, and plain values allocate nothing that the collector counts.
"""

cdef extern from *:
    """
    #include <Python.h>
    #if PY_VERSION_HEX < 0x030C0000
    #define amp_pause_collector() PyGC_Disable()
    #define amp_resume_collector(enabled) do { if (enabled) PyGC_Enable(); } while (0)
    #else
    #define amp_pause_collector() 0
    #define amp_resume_collector(enabled) (void)(enabled)
    #endif
    """
    bint amp_pause_collector() noexcept
    void amp_resume_collector(bint enabled) noexcept

cdef struct Pause:
    bint lasts
    bint collects  # whether the collector was enabled before: `resume` restores that


cdef inline void pause(Pause *pause) noexcept:
    """Collect no garbage until `resume`."""
    if not pause.lasts:
        pause.collects = amp_pause_collector()
        pause.lasts = True


cdef inline void resume(Pause *pause) noexcept:
    if pause.lasts:
        pause.lasts = False
        amp_resume_collector(pause.collects)
