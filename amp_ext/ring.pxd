"""The ring for other Cython modules: ring.h, the memory of mapping.h, and the classes over them."""

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "mapping.h" nogil:
    int amp_memory_create(uint64_t size, const char **call)
    void *amp_memory_map(int fd, uint64_t *size, const char **call)

cdef extern from "ring.h" nogil:
    const uint32_t AMP_BEGIN
    const uint32_t AMP_END
    const uint32_t AMP_FLAGS
    const uint64_t AMP_MIN_CAPACITY
    const uint64_t AMP_MAX_CAPACITY
    const uint64_t AMP_MAX_ENTRIES

    enum amp_fault:
        AMP_SOUND

    const char *amp_fault_text(amp_fault fault)

    struct amp_cursors:
        pass

    struct amp_control:
        uint64_t generation
        amp_cursors down
        amp_cursors up

    struct amp_map:
        amp_control *control
        uint64_t capacity
        uint64_t entries

    struct amp_producer:
        uint64_t capacity
        uint64_t tail
        uint64_t published
        uint64_t records
        bint within
        amp_fault fault

    struct amp_consumer:
        uint64_t head
        uint64_t released
        amp_fault fault

    struct amp_record:
        const uint8_t *payload
        uint32_t length
        uint32_t flags

    bint amp_capacity_ok(uint64_t capacity)
    uint64_t amp_map_size(uint64_t capacity, uint64_t entries)
    void amp_map_format(void *base, uint64_t capacity, uint64_t entries, uint64_t generation)
    amp_fault amp_map_open(amp_map *map, void *base, uint64_t size)
    uint8_t *amp_down_data(const amp_map *map)
    uint8_t *amp_up_data(const amp_map *map)
    uint8_t *amp_journal(const amp_map *map)
    uint64_t amp_journal_size(uint64_t capacity)
    void amp_mark_started(amp_map *map, uint64_t n)
    uint64_t amp_started(const amp_map *map)
    void amp_turn_begin(amp_map *map, uint64_t origin)
    void amp_turn_end(amp_map *map, uint64_t busy)
    bint amp_turn_load(const amp_map *map, uint64_t *origin, uint64_t *busy)
    void amp_running_store(const amp_map *map, uint64_t at, uint64_t number, uint64_t since)
    void amp_running_clear(const amp_map *map, uint64_t at)
    uint64_t amp_running_load(const amp_map *map, uint64_t at, uint64_t *since)
    uint64_t amp_first_running(const amp_map *map, uint64_t *since)
    void amp_running_keep(const amp_map *map, uint64_t at)
    uint64_t amp_max_payload(uint64_t capacity)
    bint amp_follows(bint within, uint32_t flags)

    amp_fault amp_producer_open(
        amp_producer *p, amp_cursors *shared, uint8_t *data, uint64_t capacity
    )
    uint64_t amp_free(amp_producer *p)
    uint8_t *amp_reserve(amp_producer *p, uint32_t length)
    void amp_commit(amp_producer *p, uint32_t length, uint32_t flags)
    bint amp_publish(amp_producer *p)
    bint amp_want_room(amp_producer *p, uint32_t length)

    amp_fault amp_consumer_open(
        amp_consumer *c, amp_cursors *shared, const uint8_t *data, uint64_t capacity
    )
    bint amp_read(amp_consumer *c, amp_record *record)
    bint amp_release(amp_consumer *c)
    bint amp_sleep(amp_consumer *c)
    void amp_awake(amp_consumer *c)
    bint amp_asleep(const amp_consumer *c)


@cython.final
cdef class Mapping:
    cdef amp_map map
    cdef void *base           # NULL once unmapped
    cdef uint64_t size
    cdef Py_ssize_t exports   # views, and copies with the GIL released, that need the memory
    cdef bint closed
    cdef unsigned int taken   # which ends were handed out
    cdef readonly int fd

    cdef int usable(self) except -1
    cdef int drop_export(self) except -1
    cdef int unmap(self) except -1
    cpdef int mark_started(self, uint64_t n) except -1
    cpdef int begin_turn(self, uint64_t origin) except -1
    cpdef int end_turn(self, uint64_t busy) except -1
    cpdef int mark_time(self, uint64_t first, uint64_t since) except -1
    cdef int check_entry(self, uint64_t at) except -1


@cython.final
cdef class Producer:
    cdef amp_producer ring
    cdef Mapping mapping
    cdef bint busy            # a copy runs with the GIL released
    cdef uint32_t wanted      # payload length that was refused last
    cdef readonly uint64_t published
    cdef readonly uint64_t bells

    cdef int usable(self) except -1
    cdef int sound(self) except -1
    cpdef Py_ssize_t free(self) except -1
    cpdef bint publish(self) except -1
    cpdef bint want_room(self) except -1


@cython.final
cdef class Consumer:
    cdef amp_consumer ring
    cdef amp_record record    # what a view of this object shows: the record read last
    cdef Mapping mapping

    cdef int usable(self) except -1
    cdef int sound(self) except -1
    cpdef bint release(self) except -1
    cpdef bint sleep(self) except -1
    cpdef int awake(self) except -1
