/* SPDX-License-Identifier: MIT OR Apache-2.0
 * The order of things in every workload, and its ways out.  See harness.h. */
#define _GNU_SOURCE
#include "harness_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static const struct wl_workload *running;
static struct wl_settings settings = {.scale = 1.0};

static WL_NORETURN void leave(int code, const char *what, const char *format, va_list args)
{
    fprintf(stderr, "%s: %s", running != NULL ? running->name : "workload", what);
    vfprintf(stderr, format, args);
    if (code == 2)
        fprintf(stderr, "\nTry --help.");
    fputc('\n', stderr);
    exit(code);
}

void wl_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    leave(1, "check failed: ", format, args);
}

void wl_usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    leave(2, "", format, args);
}

void wl_refused(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    leave(3, "", format, args);
}

void wl_out_of_memory(size_t bytes)
{
    wl_refused("the collector has no %zu bytes to give (heap %zu bytes); use a smaller --scale",
               bytes, GC_get_heap_size());
}

bool wl_spoil(void)
{
    return settings.spoil;
}

void *wl_shadow(size_t count, size_t size)
{
    void *p = calloc(count, size);
    if (p == NULL)
        wl_refused("no memory for a shadow table of %zu x %zu bytes; use a smaller --scale", count,
                   size);
    return p;
}

uint64_t wl_scaled(uint64_t n, double scale, uint64_t least)
{
    uint64_t scaled = (uint64_t)((double)n * scale + 0.5);
    return scaled < least ? least : scaled;
}

/* A single-threaded program never starts the marker threads by itself, in neither version. */
static void start_markers_if_asked(void)
{
    const char *markers = getenv("GC_MARKERS");
    if (markers != NULL && strtol(markers, NULL, 10) > 1)
        GC_start_mark_threads();
}

int wl_main(int argc, char **argv, const struct wl_workload *w)
{
    struct wl_measured measured;

    running = w;
    wl_options_parse(argc, argv, w, &settings);
    w->prepare(settings.scale);
    wl_measure_begin();
    GC_INIT();
    start_markers_if_asked();
    wl_measure_collector_ready();
    wl_clock_start();
    w->run();
    wl_measure_end(&measured);
    wl_report(w, &settings, &measured);
    if (fflush(stdout) != 0 || ferror(stdout))
        wl_refused("cannot write the report to standard output");
    return 0;
}
