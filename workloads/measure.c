/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Clocks, the collector's events, the kernel's counters.
 *
 * A pause is the time from GC_EVENT_PRE_STOP_WORLD to GC_EVENT_POST_START_WORLD: it includes the
 * time to stop and to resume the threads.  What each version emits (alloc.c, GC_stopped_mark):
 *   8.2.2  PRE_STOP_WORLD POST_STOP_WORLD MARK_START, then
 *          finished:   MARK_END PRE_START_WORLD POST_START_WORLD
 *          abandoned (time limit reached): PRE_START_WORLD POST_START_WORLD, no MARK_END
 *   8.3    the same order in both cases.
 * The pair used here therefore surrounds every stop in both.  EVENT_START, RECLAIM_* and END come
 * outside it, and START and END only for collections that run in one go, so they are of no use
 * for pauses.  Neither version stops the world elsewhere.  Increments of marking made on the
 * mutator's time in incremental mode happen between stops: only the allocation clock sees them.
 *
 * The callback runs with the allocation lock held and, at times, with all other threads stopped
 * anywhere, in malloc too.  It calls nothing but clock_gettime (vDSO) and GC_get_heap_size (reads
 * two words, no lock, in both versions), and writes into memory mapped beforehand, which is
 * neither GC heap nor a root.
 */
#define _GNU_SOURCE
#include "harness_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#define PAUSE_CAPACITY ((size_t)1 << 20) /* 8 MiB of address space, touched as it fills */

_Thread_local struct wl_clock wl_clock;
_Thread_local bool wl_stops_world;
uint64_t wl_epoch;
uint64_t wl_slow = UINT64_MAX;

struct record {
    uint64_t pause_ns[PAUSE_CAPACITY];
    uint64_t stop_ns; /* begin of the running stop, 0 if none */
    uint64_t pauses, pause_sum_ns, pause_max_ns;
    size_t heap_peak_bytes;
};

static struct record *record;
static uint64_t begin_ns, begin_ticks, check_ns, check_since_ns;
static struct rusage begin_usage;
static GC_word begin_gc_no;
static size_t begin_bytes;

static pthread_mutex_t merge_lock = PTHREAD_MUTEX_INITIALIZER;
static struct wl_clock merged;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void sample_heap(void)
{
    size_t heap = GC_get_heap_size();
    if (heap > record->heap_peak_bytes)
        record->heap_peak_bytes = heap;
}

static void GC_CALLBACK on_event(GC_EventType event)
{
    sample_heap();
    if (event == GC_EVENT_PRE_STOP_WORLD) {
        record->stop_ns = now_ns();
        wl_stops_world = true;
    } else if (event == GC_EVENT_POST_START_WORLD && record->stop_ns != 0) {
        uint64_t took = now_ns() - record->stop_ns;
        record->stop_ns = 0;
        wl_stops_world = false;
        if (record->pauses < PAUSE_CAPACITY)
            record->pause_ns[record->pauses] = took;
        record->pauses++;
        record->pause_sum_ns += took;
        if (took > record->pause_max_ns)
            record->pause_max_ns = took;
    }
}

/* Ticks to nanoseconds: from a spin of at least 2 ms, good to a part in a thousand; the report
 * uses the ratio over the whole run, which is better. */
static void calibrate(void)
{
    uint64_t ns, ticks;
#if defined(__x86_64__) || defined(__i386__)
    wl_epoch = __rdtsc();
#else
    wl_epoch = now_ns();
#endif
    begin_ns = now_ns();
    begin_ticks = wl_ticks();
    do {
        ns = now_ns() - begin_ns;
    } while (ns < 2000000);
    ticks = wl_ticks() - begin_ticks;
    wl_slow = (uint64_t)((double)ticks * 1e6 / (double)ns);
}

void wl_measure_begin(void)
{
    void *map = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
    if (map == MAP_FAILED)
        wl_refused("cannot map %zu bytes for the list of pauses", sizeof *record);
    record = map;
    calibrate();
    getrusage(RUSAGE_SELF, &begin_usage);
    begin_ns = now_ns();
    begin_ticks = wl_ticks();
}

void wl_measure_collector_ready(void)
{
    begin_gc_no = GC_get_gc_no();
    begin_bytes = GC_get_total_bytes();
    sample_heap();
    GC_set_on_collection_event(on_event);
}

void wl_check_begin(void)
{
    wl_clock_stop();
    check_since_ns = now_ns();
}

void wl_check_end(void)
{
    check_ns += now_ns() - check_since_ns;
    wl_clock_start();
}

void wl_clock_note_slow(uint64_t ticks)
{
    if ((int64_t)ticks <= 0)
        return;
    wl_clock.over_1ms++;
    if (ticks > 5 * wl_slow)
        wl_clock.over_5ms++;
}

void wl_clock_merge(void)
{
    struct wl_clock *c = &wl_clock;
    wl_clock_stop();
    pthread_mutex_lock(&merge_lock);
    merged.calls += c->calls;
    merged.over_1ms += c->over_1ms;
    merged.over_5ms += c->over_5ms;
    if (c->longest > merged.longest)
        merged.longest = c->longest;
    pthread_mutex_unlock(&merge_lock);
    *c = (struct wl_clock){.last = c->last};
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the smallest value that at least `percent` of all do not exceed. */
static double percentile_us(size_t n, unsigned percent)
{
    if (n == 0)
        return 0.0;
    size_t rank = (n * percent + 99) / 100;
    return (double)record->pause_ns[rank - 1] / 1e3;
}

static double seconds(struct timeval from, struct timeval to)
{
    return (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_usec - from.tv_usec) / 1e6;
}

void wl_measure_end(struct wl_measured *m)
{
    struct rusage usage;
    size_t listed;

    wl_clock_merge();
    uint64_t end_ns = now_ns(), end_ticks = wl_ticks();
    getrusage(RUSAGE_SELF, &usage);
    GC_set_on_collection_event(NULL); /* takes the lock: no callback is running afterwards */
    sample_heap();

    double ns = (double)(end_ns - begin_ns), ticks = (double)(end_ticks - begin_ticks);
    *m = (struct wl_measured){
        .total_s = ns / 1e9,
        .user_s = seconds(begin_usage.ru_utime, usage.ru_utime),
        .sys_s = seconds(begin_usage.ru_stime, usage.ru_stime),
        .check_s = (double)check_ns / 1e9,
        .minor_faults = (uint64_t)(usage.ru_minflt - begin_usage.ru_minflt),
        .major_faults = (uint64_t)(usage.ru_majflt - begin_usage.ru_majflt),
        .max_rss_bytes = (uint64_t)usage.ru_maxrss * 1024,
        .collections = (uint64_t)(GC_get_gc_no() - begin_gc_no),
        .allocated_bytes = GC_get_total_bytes() - begin_bytes,
        .heap_peak_bytes = record->heap_peak_bytes,
        .heap_end_bytes = GC_get_heap_size(),
        .pauses = record->pauses,
        .pause_max_us = (double)record->pause_max_ns / 1e3,
        .pause_sum_us = (double)record->pause_sum_ns / 1e3,
        .alloc_calls = merged.calls,
        .alloc_over_1ms = merged.over_1ms,
        .alloc_over_5ms = merged.over_5ms,
        .alloc_longest_us = ticks > 0 ? (double)merged.longest * (ns / ticks) / 1e3 : 0.0,
    };
    listed = m->pauses < PAUSE_CAPACITY ? m->pauses : PAUSE_CAPACITY;
    m->pauses_unlisted = m->pauses - listed;
    qsort(record->pause_ns, listed, sizeof record->pause_ns[0], by_size);
    m->pause_p50_us = percentile_us(listed, 50);
    m->pause_p99_us = percentile_us(listed, 99);
}
