/* libFuzzer target for ring.h: a mapping of arbitrary bytes, and a peer that changes any of them
 * between any two operations. run.sh builds and runs it, with AddressSanitizer and UBSan.
 *
 * The input is a byte of options, the words of the control page, the bytes of both rings, and then
 * a script of operations for a producer and a consumer (of the same ring, or of one ring each, as a
 * side has them). AddressSanitizer poisons the memory that no code may touch, so it reports a stray
 * access even inside the mapping. The target also checks these:
 *
 *   - Every payload lies in its ring, and before the tail that was loaded.
 *   - The private cursors keep RING-2.
 *   - A record is where the last one ended or, after padding, at position 0. (So amp_read's loop
 *     has two turns at most, RING-6.)
 *   - A ring with a fault does nothing any more.
 *   - The table of running items lies in the mapping, whatever the control page says of its size.
 *
 * With the option HONEST the mapping is fresh and the peer changes nothing. Then there must be no
 * fault, and the consumer must read what the producer wrote.
 */
#include "../ring.h"

#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>

/* Options. The lowest two bits choose the capacity. */
#define FORMATTED 0x04u /* magic, version and capacity are right */
#define HONEST 0x08u
#define TWO_RINGS 0x10u
#define UP 0x20u

#define ENTRIES 3u /* of the table of running items, in a mapping that is formatted */

#define must(holds) ((holds) ? (void)0 : violated(#holds, __LINE__))

static void violated(const char *what, int line)
{
    fprintf(stderr, "ring_fuzz: line %d: %s\n", line, what);
    abort();
}

/* ---- the input ----------------------------------------------------------------------------- */

struct input {
    const uint8_t *at;
    size_t left;
};

/* The input continues with zeros behind its end, so that a truncated input is one, too. */
static void take(struct input *input, void *to, size_t size)
{
    size_t taken = size < input->left ? size : input->left;
    memset(to, 0, size);
    if (taken > 0)
        memcpy(to, input->at, taken);
    input->at += taken;
    input->left -= taken;
}

static uint8_t take_byte(struct input *input)
{
    uint8_t byte;
    take(input, &byte, 1);
    return byte;
}

static uint64_t take_word(struct input *input)
{
    uint64_t word;
    take(input, &word, 8);
    return word;
}

/* ---- the mapping --------------------------------------------------------------------------- */

static void fill_cursors(struct amp_cursors *cursors, struct input *input)
{
    atomic_store(&cursors->tail, take_word(input));
    atomic_store(&cursors->head, take_word(input));
    atomic_store(&cursors->sleeping, (uint32_t)take_word(input));
    atomic_store(&cursors->waiting, (uint32_t)take_word(input));
}

static void fill_map(struct amp_control *control, uint64_t capacity, uint8_t options,
                     struct input *input)
{
    atomic_store(&control->magic, take_word(input));
    atomic_store(&control->version, take_word(input));
    atomic_store(&control->capacity, take_word(input));
    atomic_store(&control->entries, take_word(input));
    atomic_store(&control->started, take_word(input));
    fill_cursors(&control->down, input);
    fill_cursors(&control->up, input);
    take(input, (uint8_t *)control + AMP_CONTROL_SIZE, 2 * capacity);
    if (options & HONEST)
        memset(control, 0, amp_map_size(capacity, ENTRIES));
    if (options & (FORMATTED | HONEST))
        amp_map_format(control, capacity, ENTRIES, 1);
}

/* ---- a script: actions over one mapping ----------------------------------------------------- */

struct script {
    struct amp_map map;
    struct amp_producer p;
    struct amp_consumer c;
    struct input input;
    uint64_t written, read; /* bytes of payload; HONEST: each has the value of its index */
    bool honest;
};

static void check_producer(const struct amp_producer *p)
{
    must(p->fault || (p->tail - p->head <= p->capacity && p->published - p->head <= p->capacity));
    must((p->tail & 7) == 0 || p->fault);
}

static void check_consumer(const struct amp_consumer *c)
{
    must(c->fault || (c->tail - c->released <= c->capacity && c->tail - c->head <= c->capacity));
    must(((c->head | c->released) & 7) == 0 || c->fault);
    must((c->tail & 7) == 0 || c->fault);
}

static void write_record(struct script *script)
{
    struct amp_producer *p = &script->p;
    uint8_t choice = take_byte(&script->input);
    uint32_t flags = choice & AMP_FLAGS;
    uint32_t length = choice < 0xf0 ? choice >> 2 : (uint32_t)take_word(&script->input);
    if (script->honest && !amp_follows(p->within, flags))
        flags ^= AMP_BEGIN;
    uint64_t free = amp_free(p);
    uint8_t *to = amp_reserve(p, length);
    must(to == NULL || (to > p->data && to + length <= p->data + p->capacity));
    must(to != NULL || free == 0 || length > free || p->fault);
    if (to == NULL)
        return;
    for (uint32_t i = 0; i < length; i++)
        to[i] = (uint8_t)script->written++;
    amp_commit(p, length, flags);
}

static void read_record(struct script *script)
{
    struct amp_consumer *c = &script->c;
    struct amp_record record;
    uint64_t head = c->head;
    if (!amp_read(c, &record)) {
        must(c->head == head || c->fault); /* RING-6: a record follows padding */
        return;
    }
    const uint8_t *at = record.payload - AMP_HEADER_SIZE;
    must(at == c->data || at == c->data + (head & (c->capacity - 1))); /* RING-6 */
    must(record.payload > c->data && record.payload + record.length <= c->data + c->capacity);
    must(record.length <= amp_max_payload(c->capacity)); /* RING-7 */
    must(c->head - head <= c->capacity && c->tail - c->head <= c->capacity);
    for (uint32_t i = 0; i < record.length; i++) {
        uint8_t byte = *(const volatile uint8_t *)(record.payload + i);
        must(!script->honest || byte == (uint8_t)script->read);
        script->read++;
    }
}

/* A header with a length of less than twice the capacity, and a type that exists. */
static uint64_t plausible_header(uint64_t value, uint64_t capacity)
{
    uint64_t type = value >> 63 ? AMP_PADDING : AMP_DATA | (value >> 60 & AMP_FLAGS);
    return type << 32 | (value & (2 * capacity - 1));
}

/* The peer: sets a word of a ring's cursors or bytes to any value, or changes it by a little. */
static void poke(struct script *script, struct amp_cursors *cursors, uint8_t *data)
{
    uint8_t where = take_byte(&script->input);
    uint64_t value = take_word(&script->input), capacity = script->map.capacity;
    switch (where & 7) {
    case 0: atomic_store(&cursors->tail, value); break;
    case 1: atomic_store(&cursors->head, value); break;
    case 2: atomic_store(&cursors->sleeping, (uint32_t)value); break;
    case 3: atomic_store(&cursors->waiting, (uint32_t)value); break;
    case 4: atomic_fetch_add(&cursors->tail, 8 * (where >> 3)); break;
    case 5: atomic_fetch_add(&cursors->head, 8 * (where >> 3)); break;
    case 6: /* where the consumer reads next, if it reads this ring */
        value = plausible_header(value, capacity);
        memcpy(data + (script->c.head & (capacity - 1) & ~UINT64_C(7)), &value, 8);
        break;
    case 7: memcpy(data + (where >> 3) * UINT64_C(8) % capacity, &value, 8); break;
    }
}

/* An end with a fault returns nothing, and changes nothing in the mapping. */
static void check_poisoned(struct script *script)
{
    struct amp_producer *p = &script->p;
    struct amp_consumer *c = &script->c;
    struct amp_record record;
    if (p->fault)
        must(amp_free(p) == 0 && amp_reserve(p, 0) == NULL && !amp_publish(p)
             && !amp_want_room(p, 0));
    if (c->fault)
        must(!amp_read(c, &record) && !amp_release(c) && !amp_sleep(c));
}

static void act(struct script *script, uint8_t what)
{
    struct amp_producer *p = &script->p;
    struct amp_consumer *c = &script->c;
    switch (what % 12) {
    case 0: case 1: case 2: write_record(script); break;
    case 3: amp_publish(p); break;
    case 4: /* amp_want_room requires that all is published */
        amp_publish(p);
        amp_want_room(p, take_byte(&script->input));
        break;
    case 5: case 6: read_record(script); break;
    case 7: amp_release(c); break;
    case 8: amp_sleep(c); break;
    case 9: amp_awake(c); break;
    case 10: poke(script, p->shared, p->data); break;
    case 11: poke(script, c->shared, (uint8_t *)(uintptr_t)c->data); break;
    }
}

static void run(struct script *script)
{
    while (script->input.left > 0) {
        uint8_t what = take_byte(&script->input);
        if (script->honest && what % 12 >= 10)
            continue;
        act(script, what);
        check_producer(&script->p);
        check_consumer(&script->c);
        check_poisoned(script);
        must(!script->honest || (!script->p.fault && !script->c.fault));
    }
}

/* The parent reads every entry: AddressSanitizer reports one that is outside the memory. */
static void read_table(const struct amp_map *map)
{
    uint64_t since;
    must(map->entries <= AMP_MAX_ENTRIES);
    uint64_t origin, busy;
    must(amp_turn_load(map, &origin, &busy)); /* RING-12: no worker changes them */
    for (uint64_t at = 0; at < map->entries; at++) {
        amp_running_store(map, at, at + 1, at);
        must(amp_running_load(map, at, &since) == at + 1 && since == at);
        amp_running_clear(map, at);
        must(amp_running_load(map, at, &since) == 0);
    }
    if (map->entries > 1)
        amp_running_keep(map, map->entries - 1);
    if (map->entries > 0)
        must(amp_first_running(map, &since) == 0);
}

static void open_ends(struct script *script, uint8_t options)
{
    struct amp_control *control = script->map.control;
    uint64_t capacity = script->map.capacity;
    struct amp_cursors *cursors[2] = {&control->down, &control->up};
    uint8_t *data[2] = {amp_down_data(&script->map), amp_up_data(&script->map)};
    int out = options & UP ? 1 : 0, in = options & TWO_RINGS ? 1 - out : out;
    amp_producer_open(&script->p, cursors[out], data[out], capacity);
    amp_consumer_open(&script->c, cursors[in], data[in], capacity);
    if (in == out)
        ASAN_POISON_MEMORY_REGION(data[1 - in], capacity);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct script script = {.input = {bytes, size}};
    uint8_t options = take_byte(&script.input);
    uint64_t capacity = AMP_MIN_CAPACITY << (options & 3);
    uint64_t map_size = amp_map_size(capacity, ENTRIES);
    struct amp_control *control = aligned_alloc(AMP_LINE, map_size);
    must(control != NULL);
    memset(control, 0, map_size);
    fill_map(control, capacity, options, &script.input);
    ASAN_POISON_MEMORY_REGION(control + 1, AMP_CONTROL_SIZE - sizeof *control);
    if (amp_map_open(&script.map, control, map_size) == AMP_SOUND) {
        /* may be less than there is: the memory may be rounded up */
        must(amp_map_size(script.map.capacity, script.map.entries) <= map_size);
        must((script.map.capacity & (script.map.capacity - 1)) == 0); /* RING-1 */
        script.honest = (options & HONEST) && !(options & TWO_RINGS);
        read_table(&script.map);
        open_ends(&script, options);
        run(&script);
    }
    ASAN_UNPOISON_MEMORY_REGION(control, map_size);
    free(control);
    return 0;
}
