/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The common half of every workload: options, clocks, the allocation wrappers, the report.
 *
 * A workload describes itself in a `struct wl_workload` and calls wl_main().  The harness parses
 * the arguments, initialises the collector, runs the workload between two clock readings and
 * prints what happened.  It uses only what bdwgc 8.2.2 and 8.3 both export, so that one binary
 * runs with either library.
 *
 * It is no test of the collector by itself: each workload checks its own results (wl_fail).
 * It sets no collector parameter: the environment (GC_ENABLE_INCREMENTAL, GC_MARKERS, ...) does.
 *
 * Exit codes: 0 done and checked; 1 a check failed; 2 bad arguments; 3 the machine refused
 * something (memory, a file that cannot be read).
 */
#ifndef WL_HARNESS_H
#define WL_HARNESS_H

#ifndef GC_THREADS
#error "compile with -DGC_THREADS: pthread_create must register its threads with the collector"
#endif
#include <gc.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__) || defined(__i386__)
#include <x86intrin.h>
#else
#include <time.h>
#endif

/* Work done in a function of its own leaves no dead pointer in its caller's frame, which a
 * conservative collector would take for a live one. */
#define WL_NOINLINE __attribute__((noinline, noclone))
#define WL_NORETURN __attribute__((noreturn))
#define WL_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define WL_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- description of a workload ------------------------------------------------------------- */

enum wl_kind {
    WL_U64,    /* decimal number, min..max; value: uint64_t * */
    WL_FLAG,   /* no argument; value: bool * */
    WL_CHOICE, /* one of `choices`; value: unsigned *, the index chosen */
    WL_TEXT    /* any non-empty text; value: const char ** */
};

struct wl_option {
    const char *name; /* without the dashes */
    enum wl_kind kind;
    void *value; /* holds the default before parsing */
    uint64_t min, max;
    const char *const *choices; /* NULL-terminated */
    const char *placeholder;
    const char *help;
};

struct wl_workload {
    const char *name;
    const char *summary;
    const char *scale_help; /* what --scale multiplies */
    const struct wl_option *options;
    size_t option_count;
    /* Checks combinations of options (wl_usage), derives sizes, makes what must not be timed.
     * Runs before the collector is initialised: no GC allocation. */
    void (*prepare)(double scale);
    /* The timed part, self-checks included (their share is reported: wl_check_begin). */
    void (*run)(void);
};

int wl_main(int argc, char **argv, const struct wl_workload *workload);

/* `n` scaled by `scale`, at least `least`. */
uint64_t wl_scaled(uint64_t n, double scale, uint64_t least);

/* Parses a whole decimal number in min..max; false if `text` is anything else. */
bool wl_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out);

/* Ends the program: a failed check (1), bad arguments (2), a refusal by the machine (3). */
WL_NORETURN void wl_fail(const char *format, ...) WL_PRINTF(1, 2);
WL_NORETURN void wl_usage(const char *format, ...) WL_PRINTF(1, 2);
WL_NORETURN void wl_refused(const char *format, ...) WL_PRINTF(1, 2);

/* Rows of the report.  Keys and texts must live until the end. */
void wl_param_u64(const char *key, uint64_t value);
void wl_param_text(const char *key, const char *value);
void wl_result_u64(const char *key, uint64_t value);

/* True under --spoil: the workload must corrupt one object of its own just before the last check,
 * which has to notice (the test of the tests). */
bool wl_spoil(void);

/* Brackets of self-checking walks: they count in the total, and their share is reported.  Main
 * thread only.  They also stop and restart the allocation clock below. */
void wl_check_begin(void);
void wl_check_end(void);

/* True while this thread is collecting and the others are stopped, anywhere, or about to be. */
extern _Thread_local bool wl_stops_world;

/* malloc memory that holds no GC pointer and is never a root: shadow copies, tables. */
void *wl_shadow(size_t count, size_t size);

/* ---- the allocation clock ------------------------------------------------------------------ *
 *
 * What a mutator sees: the longest time an allocation call took.  Reading the time stamp counter
 * twice a call would cost 20 ns on calls of 40, so small allocations are timed in batches: one
 * reading every WL_BATCH calls, the difference to the previous reading is the time of the batch.
 * A batch normally lasts about a microsecond, so a pause of milliseconds shows to within that.
 * Calls of WL_SINGLY bytes or more cost more themselves and are timed each.  Around long work
 * that does not allocate, a workload calls wl_clock_stop() and wl_clock_start(), so that this
 * work is not taken for an allocation.  Being descheduled counts: the mutator waited for it.
 *
 * Ticks are relative to the start of the program: an absolute counter in a register or in
 * thread-local storage could pass for a heap address.
 */
#define WL_BATCH 16
#define WL_SINGLY 512

struct wl_clock {
    uint64_t last;    /* reading that opened the running batch */
    uint64_t longest; /* ticks */
    uint64_t calls;   /* in closed batches */
    uint64_t over_1ms, over_5ms;
    uint32_t pending; /* calls in the running batch */
};
extern _Thread_local struct wl_clock wl_clock;
extern uint64_t wl_epoch;    /* ticks at the start of the program */
extern uint64_t wl_slow;     /* ticks in about 1 ms */

static inline uint64_t wl_ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __rdtsc() - wl_epoch;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - wl_epoch;
#endif
}

void wl_clock_note_slow(uint64_t ticks);

/* Opens a batch without closing one: nothing that came before counts. */
static inline void wl_clock_start(void)
{
#ifndef WL_NO_ALLOC_CLOCK
    wl_clock.last = wl_ticks();
#endif
}

/* Closes the running batch and opens the next. */
static inline void wl_clock_stop(void)
{
#ifndef WL_NO_ALLOC_CLOCK
    struct wl_clock *c = &wl_clock;
    uint64_t now = wl_ticks(), took = now - c->last;
    c->last = now;
    c->calls += c->pending;
    /* A counter that went backwards between two CPUs reads as a huge number: left out. */
    if (c->pending != 0 && took > c->longest && (int64_t)took > 0)
        c->longest = took;
    if (__builtin_expect(c->pending != 0 && took > wl_slow, 0))
        wl_clock_note_slow(took);
    c->pending = 0;
#endif
}

/* Each thread but the main one calls this last; adds its clock to the report. */
void wl_clock_merge(void);

WL_NORETURN void wl_out_of_memory(size_t bytes);

static inline void wl_alloc_before(size_t bytes)
{
    if (bytes >= WL_SINGLY)
        wl_clock_stop();
}

static inline void *wl_alloc_after(void *object, size_t bytes)
{
    if (__builtin_expect(object == NULL, 0))
        wl_out_of_memory(bytes);
    if (++wl_clock.pending == WL_BATCH || bytes >= WL_SINGLY)
        wl_clock_stop();
    return object;
}

/* Zeroed object that may hold pointers. */
static inline void *wl_alloc(size_t bytes)
{
    wl_alloc_before(bytes);
    return wl_alloc_after(GC_MALLOC(bytes), bytes);
}

/* Object without pointers, contents undefined. */
static inline void *wl_alloc_atomic(size_t bytes)
{
    wl_alloc_before(bytes);
    return wl_alloc_after(GC_MALLOC_ATOMIC(bytes), bytes);
}

/* ---- deterministic numbers ----------------------------------------------------------------- */

/* One step of a bijective 64-bit mixer (multiply and shift); a good hash of a counter. */
static inline uint64_t wl_mix(uint64_t x)
{
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ (x >> 32);
}

/* Next number of the sequence that started with *state. */
static inline uint64_t wl_random(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    return wl_mix(*state);
}

/* Uniform enough in 0..bound-1 for bound < 2^32. */
static inline uint64_t wl_below(uint64_t *state, uint64_t bound)
{
    return ((wl_random(state) >> 32) * bound) >> 32;
}

#endif
