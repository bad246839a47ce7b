/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The object that `barchan run` preloads: notes what the collector of an unmodified program does.
 *
 * Each process that has libgc.so.1 gets a record of its own, a file <pid> in the directory that
 * BARCHAN_SUMMARY_DIR names, mapped shared and kept up to date at every event.  Nothing has to
 * happen at the end: a program that crashes, calls _exit or is killed leaves its record behind,
 * and `barchan run` reads it (src/run/record.rs mirrors `struct record` below, which is checked
 * by its magic, version and size).
 *
 * The program's own event callback keeps working: GC_set_on_collection_event and its getter are
 * interposed, and the callback is called after the clock has been read.
 *
 * Callbacks run with the collector's lock held and, at times, with all other threads stopped
 * anywhere, in malloc too.  So they allocate nothing, take no lock and call only clock_gettime
 * (vDSO), getpid, getters of the collector that read a few words, and, every 2,000 pauses, bare system
 * calls that make the record longer.  The getters are GC_get_heap_size, GC_get_gc_no, GC_get_actual_vdb, GC_is_incremental_mode and the patched collector's
 * GC_get_barchan_stats.  In a forked child the first event opens a new record with bare system
 * calls.
 *
 * A mapped page that its file system has no place for is a SIGBUS in the program.  So the space is
 * reserved before it is used: without any there is no record, and without more the list of pauses
 * ends.
 *
 * It is no profiler: a program that loads libgc later with dlopen is not noted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define PAUSES ((size_t)1 << 20)
#define RESERVED_AT_ONCE 16384 /* bytes of a record */

/* bdwgc's GC_EventType: GC_EVENT_START is 0, and so on. */
enum { EVENT_PRE_STOP_WORLD = 6, EVENT_POST_START_WORLD = 9 };

/* The patched collector's view of its dirty bits; older programs pass a smaller size. */
struct barchan_stats {
    size_t size;
    unsigned long tracker, scans, scan_us, pages_scanned, pages_dirty, pages_armed, pages_disarmed,
        arm_runs, arm_us;
    char source_name[32];
    unsigned long faults, fault_ns, full_preferred;
};

struct record {
    char magic[8]; /* "BARCHAN" */
    uint32_t version, size_bytes;
    uint64_t pid;
    uint64_t begin_ns, last_ns; /* CLOCK_MONOTONIC: first and last event or exit */
    uint64_t stop_ns;           /* begin of the running stop of the world, 0 if none */
    uint64_t collections, heap_peak_bytes;
    uint64_t pauses, listed, pause_sum_ns, pause_max_ns;
    uint64_t vdb, incremental;  /* vdb UINT64_MAX: the collector does not tell */
    uint64_t gc_version;
    uint64_t has_stats, scans, scan_us, pages_scanned, pages_dirty, pages_armed, pages_disarmed,
        arm_runs, arm_us, faults, fault_ns, full_preferred;
    char source_name[32];
    char program[64];
    char library[1024]; /* the file with the collector, as the loader names it */
    uint64_t pause_ns[]; /* the first of them, as many as are listed; the file grows with them */
};
#define RECORD_BYTES (sizeof(struct record) + PAUSES * sizeof(uint64_t))

typedef void (*event_fn)(int);

static struct record *record;
static pid_t owner;
static unsigned long earlier; /* collections before this process was forked off */
static char directory[4096];
static char path[sizeof directory + 32]; /* of the record */
static size_t reserved;                  /* bytes of it that may be written to */
static char library[sizeof ((struct record *)0)->library];
static _Atomic(event_fn) programs_own;

static struct {
    void (*set_on_event)(event_fn);
    size_t (*heap_size)(void);
    unsigned long (*gc_no)(void);
    unsigned (*version)(void);
    unsigned (*actual_vdb)(void);
    int (*is_incremental)(void);
    int (*stats)(struct barchan_stats *, size_t);
} gc;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Appends a decimal number and its NUL; no stdio, since this may run in a stopped world. */
static void append_number(char *path, size_t length, unsigned long n)
{
    char digits[24];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + n % 10);
        n /= 10;
    } while (n != 0);
    while (count > 0)
        path[length++] = digits[--count];
    path[length] = '\0';
}

/* Writes zeros behind what is reserved; a write, unlike a store to a mapping, can fail. */
static int reserve_more(int fd)
{
    static const char zeros[RESERVED_AT_ONCE];
    struct rlimit limit;
    /* Beyond the limit a write is a SIGXFSZ. */
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur < reserved + sizeof zeros)
        return 0;
    if (pwrite(fd, zeros, sizeof zeros, (off_t)reserved) != (ssize_t)sizeof zeros)
        return 0;
    reserved += sizeof zeros;
    return 1;
}

/* A record for this process; NULL if the directory has gone (the run is over) or is full. */
static struct record *open_record(void)
{
    size_t length = strlen(directory);
    memcpy(path, directory, length);
    path[length++] = '/';
    append_number(path, length, (unsigned long)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return NULL;
    void *map = MAP_FAILED;
    reserved = 0;
    if (reserve_more(fd))
        map = mmap(NULL, RECORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return NULL;
    struct record *r = map;
    earlier = gc.gc_no != NULL ? gc.gc_no() : 0;
    r->version = 3;
    r->size_bytes = sizeof *r;
    r->pid = (uint64_t)getpid();
    r->begin_ns = r->last_ns = now_ns();
    r->vdb = UINT64_MAX;
    r->gc_version = gc.version != NULL ? gc.version() : 0;
    memcpy(r->program, program_invocation_short_name,
           strnlen(program_invocation_short_name, sizeof r->program - 1));
    strcpy(r->library, library);
    memcpy(r->magic, "BARCHAN", 8);
    return r;
}

/* Appends a pause to the list, unless the list has ended. */
static void list_pause(struct record *r, uint64_t took)
{
    size_t end = sizeof *r + (r->listed + 1) * sizeof took;
    if (r->listed < r->pauses || r->listed >= PAUSES)
        return;
    if (end > reserved) {
        int fd = open(path, O_RDWR | O_CLOEXEC), more = fd >= 0 && reserve_more(fd);
        if (fd >= 0)
            close(fd);
        if (!more)
            return;
    }
    r->pause_ns[r->listed++] = took;
}

static void note_state(struct record *r)
{
    uint64_t heap = gc.heap_size != NULL ? gc.heap_size() : 0;
    if (heap > r->heap_peak_bytes)
        r->heap_peak_bytes = heap;
    if (gc.gc_no != NULL)
        r->collections = gc.gc_no() - earlier;
    if (gc.actual_vdb != NULL)
        r->vdb = gc.actual_vdb();
    if (gc.is_incremental != NULL)
        r->incremental = (uint64_t)(gc.is_incremental() != 0);
    if (gc.stats != NULL) {
        struct barchan_stats s = {.size = sizeof s};
        gc.stats(&s, sizeof s);
        if (s.source_name[0] != '\0') { /* it is tracking */
            r->scans = s.scans;
            r->scan_us = s.scan_us;
            r->pages_scanned = s.pages_scanned;
            r->pages_dirty = s.pages_dirty;
            r->pages_armed = s.pages_armed;
            r->pages_disarmed = s.pages_disarmed;
            r->arm_runs = s.arm_runs;
            r->arm_us = s.arm_us;
            r->faults = s.faults;
            r->fault_ns = s.fault_ns;
            r->full_preferred = s.full_preferred;
            memcpy(r->source_name, s.source_name, sizeof r->source_name - 1);
            r->has_stats = 1;
        }
    }
}

/* The record of this very process, also right after a fork of whatever kind. */
static struct record *own_record(void)
{
    if (getpid() != owner) {
        owner = getpid();
        record = open_record();
    }
    return record;
}

static void on_event(int event)
{
    struct record *r;
    if (event == EVENT_PRE_STOP_WORLD) {
        r = own_record();
        if (r != NULL)
            r->stop_ns = now_ns();
    } else if (event == EVENT_POST_START_WORLD && getpid() == owner && (r = record) != NULL
               && r->stop_ns != 0) {
        uint64_t now = now_ns(), took = now - r->stop_ns;
        r->stop_ns = 0;
        r->last_ns = now;
        list_pause(r, took);
        r->pauses++;
        r->pause_sum_ns += took;
        if (took > r->pause_max_ns)
            r->pause_max_ns = took;
        note_state(r);
    }
    event_fn own = atomic_load_explicit(&programs_own, memory_order_acquire);
    if (own != NULL)
        own(event);
}

/* ISO C has no conversion between object and function pointers; POSIX gives both one size. */
static void find(void *slot, const char *name)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    memcpy(slot, &symbol, sizeof symbol);
}

/* Which file it is: a program that names its library itself (DT_RPATH) has another one than
 * LD_LIBRARY_PATH says.  An absolute path, for the program may have been started elsewhere. */
static void note_library(void)
{
    Dl_info info;
    void *symbol = dlsym(RTLD_NEXT, "GC_set_on_collection_event");
    char *path;
    if (dladdr(symbol, &info) == 0 || info.dli_fname == NULL)
        return;
    path = realpath(info.dli_fname, NULL);
    if (path != NULL && strlen(path) < sizeof library)
        strcpy(library, path);
    free(path);
}

__attribute__((constructor)) static void start(void)
{
    const char *dir = getenv("BARCHAN_SUMMARY_DIR");
    if (dir == NULL || strlen(dir) >= sizeof directory)
        return;
    strcpy(directory, dir);
    find(&gc.set_on_event, "GC_set_on_collection_event");
    if (gc.set_on_event == NULL)
        return; /* no libgc in this process, or an ancient one */
    note_library();
    find(&gc.heap_size, "GC_get_heap_size");
    find(&gc.gc_no, "GC_get_gc_no");
    find(&gc.version, "GC_get_version");
    find(&gc.actual_vdb, "GC_get_actual_vdb");
    find(&gc.is_incremental, "GC_is_incremental_mode");
    find(&gc.stats, "GC_get_barchan_stats");
    if (own_record() != NULL)
        gc.set_on_event(on_event);
}

/* A normal exit also notes what happened after the last collection. */
__attribute__((destructor)) static void finish(void)
{
    if (record == NULL || getpid() != owner)
        return;
    record->last_ns = now_ns();
    note_state(record);
}

/* What the program calls.  The collector's setter takes its lock: when it returns, no call of the
 * previous callback is running any more, and that promise is kept. */
EXPORT void GC_set_on_collection_event(event_fn fn)
{
    if (gc.set_on_event == NULL)
        find(&gc.set_on_event, "GC_set_on_collection_event");
    if (record == NULL) {
        if (gc.set_on_event != NULL)
            gc.set_on_event(fn);
        return;
    }
    atomic_store_explicit(&programs_own, fn, memory_order_release);
    gc.set_on_event(on_event);
}

EXPORT event_fn GC_get_on_collection_event(void)
{
    if (record != NULL)
        return atomic_load_explicit(&programs_own, memory_order_acquire);
    event_fn (*get)(void);
    find(&get, "GC_get_on_collection_event");
    return get != NULL ? get() : NULL;
}
