/* SPDX-License-Identifier: MIT OR Apache-2.0
 * What the files of the harness tell each other.  Not for workloads. */
#ifndef WL_HARNESS_INTERNAL_H
#define WL_HARNESS_INTERNAL_H

#include "harness.h"

struct wl_settings {
    bool json, spoil;
    double scale;
};

/* options.c: fills in the options; prints --help and leaves; leaves with 2 on nonsense. */
void wl_options_parse(int argc, char **argv, const struct wl_workload *w, struct wl_settings *out);

/* measure.c: everything that was measured, after wl_measure_end(). */
struct wl_measured {
    double total_s, user_s, sys_s, check_s;
    uint64_t minor_faults, major_faults, max_rss_bytes;
    uint64_t collections, allocated_bytes, heap_peak_bytes, heap_end_bytes;
    uint64_t pauses, pauses_unlisted; /* beyond the list's capacity: in sum and max only */
    double pause_p50_us, pause_p99_us, pause_max_us, pause_sum_us;
    uint64_t alloc_calls, alloc_over_1ms, alloc_over_5ms;
    double alloc_longest_us;
};

void wl_measure_begin(void);              /* before GC_INIT */
void wl_measure_collector_ready(void);    /* right after it */
void wl_measure_end(struct wl_measured *m);

/* report.c */
void wl_report(const struct wl_workload *w, const struct wl_settings *s,
               const struct wl_measured *m);

#endif
