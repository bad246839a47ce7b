/* SPDX-License-Identifier: MIT OR Apache-2.0
 * The report: one line of JSON, or a summary for people.  Runs after the clocks have stopped. */
#define _GNU_SOURCE
#include "harness_internal.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

extern char **environ;

struct row {
    const char *key, *text; /* text NULL: the number */
    uint64_t number;
};
struct rows {
    struct row row[24];
    size_t count;
};
static struct rows params, results;

static void add(struct rows *rows, struct row row)
{
    if (rows->count == WL_COUNT(rows->row))
        wl_refused("more than %zu rows in the report: enlarge it", WL_COUNT(rows->row));
    rows->row[rows->count++] = row;
}

void wl_param_u64(const char *key, uint64_t value)
{
    add(&params, (struct row){.key = key, .number = value});
}

void wl_param_text(const char *key, const char *value)
{
    add(&params, (struct row){.key = key, .text = value});
}

void wl_result_u64(const char *key, uint64_t value)
{
    add(&results, (struct row){.key = key, .number = value});
}

/* GC_get_actual_vdb came with 8.3: looked up by name, so that the binary loads with 8.2.2. */
static bool actual_vdb(unsigned *bits)
{
    void *symbol = dlsym(RTLD_DEFAULT, "GC_get_actual_vdb");
    unsigned(GC_CALL * get)(void);
    if (symbol == NULL)
        return false;
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from object to function pointer */
    *bits = get();
    return true;
}

static const char *vdb_name(unsigned bits)
{
    static char unknown[16];
    switch (bits) {
    case 0x00: return "none";
    case 0x01: return "mprotect";
    case 0x02: return "manual";
    case 0x04: return "default";
    case 0x08: return "gww";
    case 0x20: return "proc";
    case 0x40: return "soft";
    case 0x80: return "uffdwp";
    case 0x100: return "pagemap-scan";
    }
    snprintf(unknown, sizeof unknown, "0x%x", bits);
    return unknown;
}

/* The file the collector was loaded from: tells a forgotten LD_LIBRARY_PATH. */
static const char *library_file(void)
{
    Dl_info info;
    void *symbol = dlsym(RTLD_DEFAULT, "GC_malloc");
    if (symbol == NULL || dladdr(symbol, &info) == 0 || info.dli_fname == NULL)
        return "unknown";
    return info.dli_fname;
}

/* Bytes of 0x80 and above pass as they are: UTF-8 in, UTF-8 out. */
static void json_text(const char *s)
{
    putchar('"');
    for (; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void json_rows(const char *name, const struct rows *rows)
{
    printf(",\"%s\":{", name);
    for (size_t i = 0; i < rows->count; i++) {
        const struct row *r = &rows->row[i];
        printf("%s\"%s\":", i == 0 ? "" : ",", r->key);
        if (r->text != NULL)
            json_text(r->text);
        else
            printf("%" PRIu64, r->number);
    }
    putchar('}');
}

static void json_environment(void)
{
    const char *separator = "";
    printf(",\"env\":{");
    for (char **e = environ; *e != NULL; e++) {
        const char *equals = strchr(*e, '=');
        if (equals == NULL || (strncmp(*e, "GC_", 3) != 0 && strncmp(*e, "BARCHAN_", 8) != 0))
            continue;
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(equals - *e), *e);
        printf("%s", separator);
        json_text(name);
        putchar(':');
        json_text(equals + 1);
        separator = ",";
    }
    putchar('}');
}

static void version_text(char *out, size_t size)
{
    unsigned v = (unsigned)GC_get_version();
    snprintf(out, size, "%u.%u.%u", v >> 16, (v >> 8) & 0xff, v & 0xff);
}

static void json(const struct wl_workload *w, const struct wl_settings *s,
                 const struct wl_measured *m)
{
    char version[32];
    unsigned vdb;

    version_text(version, sizeof version);
    printf("{\"workload\":\"%s\",\"ok\":true,\"scale\":%.9g", w->name, s->scale);
    json_rows("params", &params);
    json_rows("results", &results);
    printf(",\"gc_version\":\"%s\",\"gc_library\":", version);
    json_text(library_file());
    printf(",\"incremental\":%s,\"parallel\":%d", GC_is_incremental_mode() ? "true" : "false",
           GC_get_parallel());
    if (actual_vdb(&vdb))
        printf(",\"vdb\":\"%s\",\"vdb_bits\":%u", vdb_name(vdb), vdb);
    else
        printf(",\"vdb\":null,\"vdb_bits\":null");
    json_environment();
    printf(",\"total_s\":%.6f,\"user_s\":%.6f,\"sys_s\":%.6f,\"check_s\":%.6f", m->total_s,
           m->user_s, m->sys_s, m->check_s);
    printf(",\"pause_us\":{\"count\":%" PRIu64, m->pauses);
    if (m->pauses > 0)
        printf(",\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f", m->pause_p50_us, m->pause_p99_us,
               m->pause_max_us);
    else
        printf(",\"p50\":null,\"p99\":null,\"max\":null");
    printf(",\"sum\":%.1f,\"unlisted\":%" PRIu64 "}", m->pause_sum_us, m->pauses_unlisted);
    printf(",\"alloc\":{\"calls\":%" PRIu64 ",\"longest_us\":%.1f,\"over_1ms\":%" PRIu64
           ",\"over_5ms\":%" PRIu64 "}",
           m->alloc_calls, m->alloc_longest_us, m->alloc_over_1ms, m->alloc_over_5ms);
    printf(",\"collections\":%" PRIu64 ",\"allocated_bytes\":%" PRIu64
           ",\"heap_peak_bytes\":%" PRIu64 ",\"heap_end_bytes\":%" PRIu64
           ",\"max_rss_bytes\":%" PRIu64 ",\"minor_faults\":%" PRIu64
           ",\"major_faults\":%" PRIu64 "}\n",
           m->collections, m->allocated_bytes, m->heap_peak_bytes, m->heap_end_bytes,
           m->max_rss_bytes, m->minor_faults, m->major_faults);
}

static void summary_rows(const char *title, const struct rows *rows)
{
    printf("  %-12s", title);
    for (size_t i = 0; i < rows->count; i++) {
        const struct row *r = &rows->row[i];
        printf("%s%s=", i == 0 ? "" : ", ", r->key);
        if (r->text != NULL)
            printf("%s", r->text);
        else
            printf("%" PRIu64, r->number);
    }
    putchar('\n');
}

static double mb(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

static void summary(const struct wl_workload *w, const struct wl_measured *m)
{
    char version[32];
    unsigned vdb;

    version_text(version, sizeof version);
    printf("%s: ok\n", w->name);
    summary_rows("parameters", &params);
    summary_rows("results", &results);
    printf("  collector   %s from %s; %s, %s marking, dirty bits: %s\n", version, library_file(),
           GC_is_incremental_mode() ? "incremental" : "full",
           GC_get_parallel() ? "parallel" : "serial",
           actual_vdb(&vdb) ? vdb_name(vdb) : "not told by this version");
    printf("  time        %.3f s (user %.3f, system %.3f; self-checks %.3f of it)\n", m->total_s,
           m->user_s, m->sys_s, m->check_s);
    printf("  collections %" PRIu64 ", %.1f MB allocated\n", m->collections,
           mb(m->allocated_bytes));
    printf("  pauses      %" PRIu64, m->pauses);
    if (m->pauses > 0)
        printf("; us: p50 %.0f, p99 %.0f, max %.0f, sum %.0f", m->pause_p50_us, m->pause_p99_us,
               m->pause_max_us, m->pause_sum_us);
    printf("\n  allocation  longest %.0f us; %" PRIu64 " over 1 ms, %" PRIu64 " over 5 ms, of %"
           PRIu64 " calls\n",
           m->alloc_longest_us, m->alloc_over_1ms, m->alloc_over_5ms, m->alloc_calls);
    printf("  memory      heap peak %.1f MB, at the end %.1f MB; largest resident %.1f MB\n",
           mb(m->heap_peak_bytes), mb(m->heap_end_bytes), mb(m->max_rss_bytes));
    printf("  page faults %" PRIu64 " minor, %" PRIu64 " major\n", m->minor_faults,
           m->major_faults);
}

void wl_report(const struct wl_workload *w, const struct wl_settings *s,
               const struct wl_measured *m)
{
    if (s->json)
        json(w, s, m);
    else
        summary(w, m);
}
