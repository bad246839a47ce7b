/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A mutator that would notice one lost object.
 *
 * Every node knows its id and the ids of those it points to (stress_graph.h), so a node that was
 * freed while it was reachable, or a pointer that was not seen, shows as soon as something else
 * lies there; and new nodes come fast.  What a collector with dirty bits could miss is done all
 * the time: the only pointer to a young node is stored in an old one, or moved from one old node to
 * another, by a store, by memcpy, or by the kernel for read(2).  Around that: objects of a few
 * words up to 200 KB, pointer-free, typed, uncollectable, with finalizers and disappearing links;
 * GC_FREE and GC_REALLOC; a heap that grows and shrinks; collections asked for, whole, in small
 * steps and given up half way; threads that end and hand their graph to the next; forks whose
 * children go on; malloc in between.
 *
 * Each lane of work has a graph, changed by one thread at a time; parcels of fresh nodes go from
 * lane to lane.  What a lane does follows from the seed alone, except for what it finds in parcels.
 */
#define _GNU_SOURCE
#include "stress_graph.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_LANES 16
#define SLOTS 3072
#define TEMPS 64
#define PINNED 32
#define WEAKS 64
#define PARCELS 256
#define GENERATIONS 8 /* threads a lane has, one after the other */
#define CHILD_OPERATIONS 3000
#define LARGEST 200000

static uint64_t threads = 2, operations = 400000, duration_s = 0, seed = 1, pause_us = 0;
static bool late;

/* What a lane owns in the heap: the only root of it all is `lanes[l].graph`. */
struct graph {
    struct node **slots, **temps;
    uintptr_t *weaks; /* pointer-free; GC_HIDE_POINTER, 0 once the target is gone */
};

/* The rest of a lane lies outside the heap and holds no pointer into it that the collector sees. */
struct lane {
    struct graph *graph;
    struct shadow {
        uint64_t slot_id[SLOTS], temp_id[TEMPS], pinned_id[PINNED], weak_id[WEAKS];
        uint32_t weak_slot[WEAKS];
        uintptr_t pinned[PINNED]; /* hidden: uncollectable objects need no root */
        void *noise[16];          /* of malloc */
    } *shadow;
    uint64_t random, next_id, number, done, efaults, forks;
    int pipe[2];
    pid_t child;
};

static struct lane lanes[MAX_LANES];
static pthread_mutex_t parcel_lock = PTHREAD_MUTEX_INITIALIZER;
static struct node **parcels; /* in the heap, old soon, written by all */
static uint64_t parcel_id[PARCELS];
static struct timespec started;

static uint64_t below(struct lane *l, uint64_t bound)
{
    return wl_below(&l->random, bound);
}

/* ---- making and linking -------------------------------------------------------------------- */

static struct node *make(struct lane *l, unsigned level)
{
    uint64_t dice = below(l, 100), id = l->number << 48 | ++l->next_id;
    enum node_kind kind = dice < 60   ? NODE_PLAIN
                          : dice < 72 ? NODE_ATOMIC
                          : dice < 88 ? NODE_TYPED
                          : dice < 94 ? NODE_OFF_PAGE
                                      : NODE_FINALIZED;
    uint64_t size = below(l, 1000), bytes, edges;
    if (kind == NODE_TYPED)
        return node_new(kind, level, node_typed_edges(wl_random(&l->random)),
                        (uint32_t)below(l, 400), id);
    if (size < 900) {
        bytes = below(l, 480);
        edges = below(l, 8);
    } else if (size < 970) {
        bytes = 600 + below(l, 3500); /* up to a page */
        edges = below(l, 150);
    } else if (size < 998) {
        bytes = 4097 + below(l, 20000);
        edges = below(l, bytes / 20);
    } else {
        bytes = 30000 + below(l, LARGEST - 30000);
        edges = below(l, 1000);
    }
    return node_new(kind, level, kind == NODE_ATOMIC ? 0 : (uint32_t)edges, (uint32_t)bytes, id);
}

/* A random node of the table, with at least one edge; NULL if the dice say so. */
static struct node *some_root(struct lane *l)
{
    for (int tries = 0; tries < 8; tries++) {
        struct node *n = l->graph->slots[below(l, SLOTS)];
        if (n != NULL && n->edge_count > 0)
            return n;
    }
    return NULL;
}

/* The same, or one of those below it. */
static struct node *some_node(struct lane *l)
{
    struct node *n = some_root(l);
    for (uint64_t steps = below(l, 3); n != NULL && steps > 0; steps--) {
        struct node *next = n->edges[below(l, n->edge_count)].to;
        if (next == NULL || next->level >= n->level || next->edge_count == 0)
            break;
        n = next;
    }
    return n;
}

static unsigned some_level(struct lane *l)
{
    return (unsigned)below(l, LEVELS);
}

static void evict(struct lane *l, uint32_t slot)
{
    struct node *n = l->graph->slots[slot];
    if (n == NULL)
        return;
    node_check_edges(n, l->shadow->slot_id[slot], 1, 2);
    for (uint32_t i = 0; i < n->edge_count; i++)
        if (n->edges[i].to != NULL && n->edges[i].to->level >= n->level)
            edge_set(n, i, NULL);
    l->graph->slots[slot] = NULL;
    l->shadow->slot_id[slot] = 0;
}

static WL_NOINLINE void replace_slot(struct lane *l)
{
    uint32_t slot = (uint32_t)below(l, SLOTS);
    evict(l, slot);
    if (below(l, 16) == 0)
        return; /* stays empty for a while */
    struct node *n = make(l, some_level(l));
    for (uint32_t i = 0; i < n->edge_count && i < 6; i++)
        edge_set(n, (uint32_t)below(l, n->edge_count), l->graph->slots[below(l, SLOTS)]);
    l->graph->slots[slot] = n;
    l->shadow->slot_id[slot] = n->id;
}

/* The only pointer to a new node is stored in a node that is old, likely. */
static WL_NOINLINE void hang_new(struct lane *l)
{
    struct node *old = some_node(l);
    if (old == NULL || old->level == 0)
        return;
    edge_set(old, (uint32_t)below(l, old->edge_count),
             make(l, (unsigned)below(l, old->level)));
}

/* An edge, maybe the only one to its target, moves from one node to another. */
static WL_NOINLINE void move_edge(struct lane *l)
{
    struct node *from = some_node(l), *to = some_node(l);
    if (from == NULL || to == NULL)
        return;
    uint32_t i = (uint32_t)below(l, from->edge_count), j = (uint32_t)below(l, to->edge_count);
    struct node *target = from->edges[i].to;
    if (target == NULL || target->level >= to->level)
        return;
    edge_set(from, i, NULL);
    edge_set(to, j, target);
    node_check(target, to->edges[j].to_id);
}

/* How many edges both have from the start on that `to` may hold below it. */
static uint32_t copyable(const struct node *from, uint32_t i, const struct node *to, uint32_t j)
{
    uint32_t n = 0;
    while (i + n < from->edge_count && j + n < to->edge_count
           && (from->edges[i + n].to == NULL || from->edges[i + n].to->level < to->level))
        n++;
    return n;
}

static WL_NOINLINE void copy_edges(struct lane *l, bool by_kernel)
{
    struct node *from = some_node(l), *to = some_node(l);
    static const size_t most = 4096 / sizeof(struct edge); /* a pipe holds it */
    if (from == NULL || to == NULL || from == to)
        return;
    uint32_t i = (uint32_t)below(l, from->edge_count), j = (uint32_t)below(l, to->edge_count);
    size_t n = copyable(from, i, to, j);
    if (n == 0)
        return;
    n = n < most ? n : most;
    size_t bytes = n * sizeof(struct edge);
    if (!by_kernel) {
        memcpy(&to->edges[j], &from->edges[i], bytes);
    } else {
        if (write(l->pipe[1], &from->edges[i], bytes) != (ssize_t)bytes)
            stress_fail("cannot write %zu bytes to a pipe: %s", bytes, strerror(errno));
        ssize_t got = read(l->pipe[0], &to->edges[j], bytes);
        if (got < 0 && errno == EFAULT && GC_incremental_protection_needs() != GC_PROTECTS_NONE) {
            char buffer[4096];
            l->efaults++;
            got = read(l->pipe[0], buffer, bytes);
            memcpy(&to->edges[j], buffer, bytes);
        }
        if (got != (ssize_t)bytes)
            stress_fail("read %zd of %zu bytes of a pipe into an object: %s", got, bytes,
                        strerror(errno));
    }
    /* They have moved: what `from` held is now held by `to` alone, if nobody else has it. */
    for (size_t k = 0; k < n; k++)
        edge_set(from, i + (uint32_t)k, NULL);
}

/* ---- other ways to hold an object ---------------------------------------------------------- */

/* Objects that nobody else points to, for GC_FREE and GC_REALLOC. */
static WL_NOINLINE void temp(struct lane *l)
{
    uint32_t t = (uint32_t)below(l, TEMPS);
    struct node *n = l->graph->temps[t];
    uint64_t dice = below(l, 8), size = below(l, 100) < 90 ? below(l, 900) : below(l, 60000);
    if (n == NULL) {
        n = node_new(dice < 6 ? NODE_PLAIN : NODE_ATOMIC, LEVELS, dice < 6 ? 4 : 0, (uint32_t)size,
                     l->number << 48 | ++l->next_id);
        l->graph->temps[t] = n;
        l->shadow->temp_id[t] = n->id;
        return;
    }
    node_check_edges(n, l->shadow->temp_id[t], 0, 0);
    if (dice < 4) {
        l->graph->temps[t] = NULL;
        l->shadow->temp_id[t] = 0;
        GC_FREE(n);
    } else if (dice < 6) {
        uint32_t least = (uint32_t)(sizeof *n + n->edge_count * sizeof(struct edge) + 8);
        uint32_t bytes = (uint32_t)(size > least ? size : least) & ~7u;
        n = GC_REALLOC(n, bytes);
        if (n == NULL)
            wl_out_of_memory(bytes);
        l->graph->temps[t] = n;
        n->bytes = bytes;
        node_fill(n);
    } else if (n->edge_count > 0) {
        edge_set(n, (uint32_t)below(l, n->edge_count), make(l, some_level(l)));
    }
}

static WL_NOINLINE void pinned(struct lane *l)
{
    uint32_t p = (uint32_t)below(l, PINNED);
    struct shadow *s = l->shadow;
    struct node *n = s->pinned[p] != 0 ? GC_REVEAL_POINTER(s->pinned[p]) : NULL;
    uint64_t dice = below(l, 8);
    if (n == NULL) {
        n = node_new(NODE_PINNED, LEVELS, 6, (uint32_t)(dice < 7 ? below(l, 700) : below(l, 30000)),
                     l->number << 48 | ++l->next_id);
        s->pinned[p] = GC_HIDE_POINTER(n);
        s->pinned_id[p] = n->id;
    } else if (dice < 2) {
        node_check_edges(n, s->pinned_id[p], 0, 0);
        s->pinned[p] = 0;
        GC_FREE(n);
    } else {
        node_check_edges(n, s->pinned_id[p], 0, 0);
        edge_set(n, (uint32_t)below(l, n->edge_count), make(l, some_level(l)));
    }
}

/* The target of a disappearing link, or NULL: asked under the collector's lock. */
static void *GC_CALLBACK reveal(void *cell)
{
    uintptr_t hidden = *(uintptr_t *)cell;
    return hidden != 0 ? GC_REVEAL_POINTER(hidden) : NULL;
}

static void check_weak(struct lane *l, uint32_t w)
{
    struct shadow *s = l->shadow;
    if (s->weak_id[w] == 0)
        return;
    struct node *n = GC_call_with_alloc_lock(reveal, &l->graph->weaks[w]);
    if (n != NULL)
        node_check(n, s->weak_id[w]);
    else if (s->slot_id[s->weak_slot[w]] == s->weak_id[w])
        stress_fail("the link to object %#llx, which is in the table, disappeared",
                    (unsigned long long)s->weak_id[w]);
}

static WL_NOINLINE void weak(struct lane *l)
{
    uint32_t w = (uint32_t)below(l, WEAKS), slot = (uint32_t)below(l, SLOTS);
    struct node *n = l->graph->slots[slot];
    void **cell = (void **)&l->graph->weaks[w];
    check_weak(l, w);
    if (n == NULL || n->kind == NODE_FINALIZED)
        return; /* a link goes before the finalizer runs, and is not restored if that keeps it */
    GC_unregister_disappearing_link(cell);
    l->graph->weaks[w] = GC_HIDE_POINTER(n);
    if (GC_GENERAL_REGISTER_DISAPPEARING_LINK(cell, n) != GC_SUCCESS)
        stress_fail("cannot register a disappearing link");
    l->shadow->weak_id[w] = n->id;
    l->shadow->weak_slot[w] = slot;
}

/* A parcel changes hands: its receiver hangs it into its own graph. */
static WL_NOINLINE void parcel(struct lane *l)
{
    uint32_t p = (uint32_t)below(l, PARCELS), slot = (uint32_t)below(l, SLOTS);
    struct node *n = make(l, 1);
    for (uint32_t i = 0; i < n->edge_count && i < 5; i++)
        edge_set(n, i, make(l, 0));
    if (stress_in_child)
        return; /* another thread may have held the lock */
    pthread_mutex_lock(&parcel_lock);
    struct node *received = parcels[p];
    uint64_t id = parcel_id[p];
    parcels[p] = n;
    parcel_id[p] = n->id;
    pthread_mutex_unlock(&parcel_lock);
    if (received == NULL)
        return;
    node_check_edges(received, id, 1, 8);
    evict(l, slot);
    l->graph->slots[slot] = received;
    l->shadow->slot_id[slot] = id;
}

/* ---- checks, collections, forks ------------------------------------------------------------ */

static void check_some(struct lane *l)
{
    uint32_t slot = (uint32_t)below(l, SLOTS);
    if (l->graph->slots[slot] != NULL)
        node_check_edges(l->graph->slots[slot], l->shadow->slot_id[slot], LEVELS, 16);
    check_weak(l, (uint32_t)below(l, WEAKS));
}

static void check_all(struct lane *l)
{
    for (uint32_t i = 0; i < SLOTS; i++)
        if (l->graph->slots[i] != NULL)
            node_check_edges(l->graph->slots[i], l->shadow->slot_id[i], 2, 32);
    for (uint32_t i = 0; i < TEMPS; i++)
        if (l->graph->temps[i] != NULL)
            node_check_edges(l->graph->temps[i], l->shadow->temp_id[i], 1, 8);
    for (uint32_t i = 0; i < PINNED; i++)
        if (l->shadow->pinned[i] != 0)
            node_check_edges(GC_REVEAL_POINTER(l->shadow->pinned[i]), l->shadow->pinned_id[i], 1, 8);
    for (uint32_t i = 0; i < WEAKS; i++)
        check_weak(l, i);
}

static _Thread_local unsigned patience;

static int GC_CALLBACK stop_soon(void)
{
    return patience == 0 || --patience == 0;
}

/* The heap grows by some megabytes, which are dropped again. */
static WL_NOINLINE void pulse(struct lane *l)
{
    struct node *all = NULL;
    for (uint64_t n = 50 + below(l, 150); n > 0; n--) {
        struct node *big = node_new(NODE_PLAIN, LEVELS, 1, 20000 + (uint32_t)below(l, 100000),
                                    l->number << 48 | ++l->next_id);
        edge_set(big, 0, all);
        all = big;
    }
    for (; all != NULL; all = all->edges[0].to)
        node_check_edges(all, all->id, 0, 0);
}

static WL_NOINLINE void garbage(struct lane *l)
{
    for (int i = 0; i < 60; i++)
        (void)make(l, 0);
}

static void noise(struct lane *l)
{
    void **p = &l->shadow->noise[below(l, WL_COUNT(l->shadow->noise))];
    free(*p);
    *p = malloc(1 + below(l, below(l, 50) == 0 ? 300000 : 2000));
}

static void reap(struct lane *l)
{
    int status;
    if (l->child == 0)
        return;
    while (waitpid(l->child, &status, 0) < 0)
        if (errno != EINTR)
            stress_fail("cannot wait for child %d: %s", (int)l->child, strerror(errno));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        stress_fail("a forked child ended with status %#x", (unsigned)status);
    l->child = 0;
}

static void operate(struct lane *l);

static void fork_one(struct lane *l)
{
    if (stress_in_child)
        return;
    reap(l);
    pid_t pid = fork();
    if (pid < 0)
        wl_refused("cannot fork: %s", strerror(errno));
    if (pid > 0) {
        l->child = pid;
        l->forks++;
        return;
    }
    stress_in_child = true;
    stress_child_after = l->number << 48 | l->next_id;
    alarm(300); /* a child that hangs ends by SIGALRM, which its parent reports */
    if (pipe(l->pipe) != 0)
        stress_fail("cannot make a pipe: %s", strerror(errno));
    check_all(l);
    for (int i = 0; i < CHILD_OPERATIONS; i++)
        operate(l);
    check_all(l);
    GC_gcollect();
    check_all(l);
    _exit(0);
}

static void rare(struct lane *l)
{
    uint64_t dice = below(l, 1000);
    if (dice < 600) {
        (void)GC_collect_a_little();
    } else if (dice < 620) {
        GC_gcollect();
    } else if (dice < 660) {
        patience = (unsigned)below(l, 40);
        (void)GC_try_to_collect(stop_soon);
    } else if (dice < 664) {
        GC_gcollect_and_unmap();
    } else if (dice < 680) {
        pulse(l);
    } else if (dice < 690) {
        fork_one(l);
    } else if (dice < 720) {
        check_all(l);
    } else if (dice < 760) {
        (void)GC_invoke_finalizers();
    } else {
        garbage(l);
    }
}

static void operate(struct lane *l)
{
    uint64_t dice = below(l, 100);
    if (dice < 14)
        replace_slot(l);
    else if (dice < 42)
        hang_new(l);
    else if (dice < 60)
        move_edge(l);
    else if (dice < 66)
        copy_edges(l, false);
    else if (dice < 72)
        copy_edges(l, true);
    else if (dice < 78)
        temp(l);
    else if (dice < 82)
        pinned(l);
    else if (dice < 86)
        weak(l);
    else if (dice < 89)
        parcel(l);
    else if (dice < 95)
        check_some(l);
    else if (dice < 98)
        noise(l);
    else
        rare(l);
}

/* ---- the run ------------------------------------------------------------------------------- */

static double elapsed_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - started.tv_sec) + (double)(now.tv_nsec - started.tv_nsec) / 1e9;
}

static uint64_t generation; /* written between threads only */

static bool is_done(const struct lane *l, uint64_t operation)
{
    double share = (double)(generation + 1) / GENERATIONS;
    if (duration_s == 0)
        return l->done >= (uint64_t)((double)operations * share);
    return (operation & 63) == 0 && elapsed_s() >= (double)duration_s * share;
}

static void *work(void *argument)
{
    struct lane *l = argument;
    wl_clock_start();
    for (uint64_t i = 1; !is_done(l, i); i++) {
        operate(l);
        l->done++;
    }
    check_all(l);
    wl_clock_merge();
    return NULL;
}

static WL_NOINLINE void lane_begin(struct lane *l, uint64_t number)
{
    struct graph *g = wl_alloc(sizeof *g);
    l->number = number + 1;
    l->random = wl_mix(seed * MAX_LANES + number);
    l->graph = g;
    g->slots = wl_alloc(SLOTS * sizeof *g->slots);
    g->temps = wl_alloc(TEMPS * sizeof *g->temps);
    g->weaks = wl_alloc_atomic(WEAKS * sizeof *g->weaks);
    memset(g->weaks, 0, WEAKS * sizeof *g->weaks);
    if (pipe(l->pipe) != 0)
        wl_refused("cannot make a pipe: %s", strerror(errno));
}

/* Frees a node of the table behind its back and takes its place. */
static WL_NOINLINE void spoil(struct lane *l)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        struct node *n = l->graph->slots[slot];
        if (n != NULL && n->kind == NODE_PLAIN && n->bytes < 2000) {
            uint32_t bytes = n->bytes;
            GC_FREE(n);
            (void)node_new(NODE_PLAIN, 0, 0, bytes, 1);
            return;
        }
    }
}

static void run(void)
{
    pthread_t thread[MAX_LANES];
    uint64_t efaults = 0, forks = 0, done = 0;

    clock_gettime(CLOCK_MONOTONIC, &started);
    if (pause_us > 0) { /* the variable GC_PAUSE_TIME_TARGET has whole milliseconds */
        struct GC_timeval_s limit = {pause_us / 1000, pause_us % 1000 * 1000};
        GC_set_time_limit_tv(limit);
    }
    node_init();
    parcels = wl_alloc(PARCELS * sizeof *parcels);
    for (uint64_t i = 0; i < threads; i++)
        lane_begin(&lanes[i], i);
    for (generation = 0; generation < GENERATIONS; generation++) {
        if (late && generation == 1)
            GC_enable_incremental();
        for (uint64_t i = 1; i < threads; i++) {
            int error = pthread_create(&thread[i], NULL, work, &lanes[i]);
            if (error != 0)
                wl_refused("cannot start a thread: %s", strerror(error));
        }
        (void)work(&lanes[0]);
        for (uint64_t i = 1; i < threads; i++)
            pthread_join(thread[i], NULL);
    }
    if (wl_spoil())
        spoil(&lanes[0]);
    wl_check_begin();
    for (uint64_t i = 0; i < threads; i++) {
        struct lane *l = &lanes[i];
        check_all(l);
        reap(l);
        efaults += l->efaults;
        forks += l->forks;
        done += l->done;
    }
    if (__atomic_load_n(&node_finalizers_run, __ATOMIC_RELAXED) > node_finalizers_registered)
        wl_fail("%llu finalizers ran, of %llu", (unsigned long long)node_finalizers_run,
                (unsigned long long)node_finalizers_registered);
    wl_check_end();
    wl_result_u64("operations", done);
    if (duration_s > 0) { /* what depends on the interleaving is no result of the other sort of run */
        wl_result_u64("forks", forks);
        wl_result_u64("efaults", efaults);
    }
}

static void prepare(double scale)
{
    operations = wl_scaled(operations, scale, 1);
    for (uint64_t i = 0; i < threads; i++)
        lanes[i].shadow = wl_shadow(1, sizeof *lanes[i].shadow);
    GC_set_handle_fork(1);
    wl_param_u64("threads", threads);
    wl_param_u64(duration_s > 0 ? "seconds" : "operations", duration_s > 0 ? duration_s : operations);
    wl_param_u64("seed", seed);
    if (pause_us > 0)
        wl_param_u64("pause_us", pause_us);
}

static const struct wl_option options[] = {
    {.name = "threads", .kind = WL_U64, .value = &threads, .min = 1, .max = MAX_LANES,
     .placeholder = "N", .help = "lanes of work, each with a thread"},
    {.name = "operations", .kind = WL_U64, .value = &operations, .min = 1, .max = 1000000000000,
     .placeholder = "N", .help = "operations of each lane"},
    {.name = "seconds", .kind = WL_U64, .value = &duration_s, .max = 1000000, .placeholder = "N",
     .help = "run so long instead (0: as many operations as said)"},
    {.name = "seed", .kind = WL_U64, .value = &seed, .max = UINT64_MAX / MAX_LANES - 1,
     .placeholder = "S", .help = "start of the sequences of operations"},
    {.name = "pause-us", .kind = WL_U64, .value = &pause_us, .max = 1000000, .placeholder = "N",
     .help = "limit of a pause, in microseconds (0: GC_PAUSE_TIME_TARGET's)"},
    {.name = "late", .kind = WL_FLAG, .value = &late,
     .help = "call GC_enable_incremental after an eighth of the run"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "stress",
        .summary = "a graph that changes in every way there is and notices a lost object",
        .scale_help = "multiply the operations",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
