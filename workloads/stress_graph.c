/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Nodes of the stress test: made, filled and checked.  See stress_graph.h. */
#include "stress_graph.h"

#include <gc/gc_typed.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NO_ADDRESS (UINT64_C(1) << 63)
#define STRIDE 1024 /* bytes between two words of the filling */
#define TYPED_SHORT 8 /* edges that fit in a descriptor of one word */
#define TYPED_LONG 60 /* a descriptor that needs a mark procedure */

bool stress_in_child;
uint64_t stress_child_after;
uint64_t node_finalizers_run, node_finalizers_registered;
static GC_descr typed_short[TYPED_SHORT + 1], typed_long;

void stress_fail(const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!stress_in_child)
        wl_fail("%s", text);
    char line[460];
    int len = snprintf(line, sizeof line, "stress: check failed: %s (in a forked child)\n", text);
    if (write(STDERR_FILENO, line, (size_t)len) != len)
        _exit(4);
    _exit(1);
}

static GC_descr descriptor(uint32_t edge_count)
{
    GC_word bits[8] = {0};
    size_t word = offsetof(struct node, edges) / sizeof(GC_word);
    for (uint32_t i = 0; i < edge_count; i++, word += sizeof(struct edge) / sizeof(GC_word))
        GC_set_bit(bits, word + offsetof(struct edge, to) / sizeof(GC_word));
    return GC_make_descriptor(bits, word);
}

void node_init(void)
{
    for (uint32_t i = 0; i <= TYPED_SHORT; i++)
        typed_short[i] = descriptor(i);
    typed_long = descriptor(TYPED_LONG);
}

uint32_t node_typed_edges(uint64_t random)
{
    return random % 8 == 0 ? TYPED_LONG : 1 + (uint32_t)(random % TYPED_SHORT);
}

static uint64_t word_of(uint64_t id, uint64_t position)
{
    return wl_mix(id ^ position << 40) | NO_ADDRESS;
}

static uint64_t header_check(const struct node *n)
{
    return wl_mix(n->id ^ wl_mix((uint64_t)n->bytes << 32 | n->edge_count)
                  ^ ((uint64_t)n->kind << 8 | n->level)) | NO_ADDRESS;
}

static uint64_t *word_at(const struct node *n, size_t offset)
{
    return (uint64_t *)(void *)((char *)(uintptr_t)n + offset);
}

static size_t edges_end(const struct node *n)
{
    return sizeof *n + n->edge_count * sizeof(struct edge);
}

void node_fill(struct node *n)
{
    for (size_t at = edges_end(n); at < n->bytes; at += STRIDE)
        *word_at(n, at) = word_of(n->id, at);
    *word_at(n, n->bytes - sizeof(uint64_t)) = word_of(n->id, 1);
    n->check = header_check(n);
}

static void lost(const struct node *n, uint64_t id, const char *what)
{
    stress_fail("object %#llx at %p is lost: %s (its words: %#llx %#llx %#llx %#llx)",
                (unsigned long long)id, (const void *)n, what, (unsigned long long)n->id,
                (unsigned long long)n->check, (unsigned long long)*word_at(n, 16),
                (unsigned long long)*word_at(n, 24));
}

static void check_words(const struct node *n, uint64_t id)
{
    if (n->id != id)
        lost(n, id, "another id");
    if (n->check != header_check(n))
        lost(n, id, "its header changed");
    if (*word_at(n, n->bytes - sizeof(uint64_t)) != word_of(n->id, 1))
        lost(n, id, "its last word changed");
}

void node_check(const struct node *n, uint64_t id)
{
    check_words(n, id);
    if (__atomic_load_n(&n->finalized, __ATOMIC_RELAXED) != 0)
        lost(n, id, "it was finalized");
}

/* Whether no thread can have been in the middle of a change to the node's edges when its process was
 * forked.  The other threads' stacks are not in the child, so there the collector finalizes what only
 * they held, an edge of it half set maybe. */
static bool is_whole(const struct node *n)
{
    uint64_t id = n->id & ~NO_ADDRESS;
    return !stress_in_child || (id >> 48 == stress_child_after >> 48 && id > stress_child_after);
}

/* Runs when nobody can reach the node; what it points to is still there (no order is kept), but may
 * have been finalized before. */
static void GC_CALLBACK finalize(void *object, void *data)
{
    struct node *n = object;
    (void)data;
    node_check(n, n->id);
    uint32_t edges = is_whole(n) ? n->edge_count : 0;
    for (uint32_t i = 0; i < edges; i++)
        if (n->edges[i].to != NULL)
            check_words(n->edges[i].to, n->edges[i].to_id);
    __atomic_store_n(&n->finalized, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&node_finalizers_run, 1, __ATOMIC_RELAXED);
}

static void *allocate(enum node_kind kind, uint32_t edge_count, size_t bytes)
{
    void *p;
    switch (kind) {
    case NODE_OFF_PAGE:
        p = GC_MALLOC_IGNORE_OFF_PAGE(bytes);
        break;
    case NODE_ATOMIC:
        p = wl_alloc_atomic(bytes);
        memset(p, 0, sizeof(struct node));
        return p;
    case NODE_TYPED:
        p = GC_MALLOC_EXPLICITLY_TYPED(
            bytes, edge_count == TYPED_LONG ? typed_long : typed_short[edge_count]);
        break;
    case NODE_PINNED:
        p = GC_MALLOC_UNCOLLECTABLE(bytes);
        break;
    default:
        return wl_alloc(bytes);
    }
    if (p == NULL)
        wl_out_of_memory(bytes);
    return p;
}

struct node *node_new(enum node_kind kind, unsigned level, uint32_t edge_count, uint32_t bytes,
                      uint64_t id)
{
    uint32_t least = (uint32_t)(sizeof(struct node) + edge_count * sizeof(struct edge)
                                + sizeof(uint64_t));
    bytes = (bytes > least ? bytes : least) & ~7u;
    struct node *n = allocate(kind, edge_count, bytes);
    if (n->id != 0 || n->check != 0 || n->finalized != 0 || (edge_count > 0 && n->edges[0].to != NULL))
        stress_fail("a new object of %u bytes at %p is not zero (kind %d)", bytes, (void *)n,
                    (int)kind);
    n->id = id | NO_ADDRESS;
    n->bytes = bytes;
    n->edge_count = edge_count;
    n->kind = kind;
    n->level = level;
    node_fill(n);
    if (kind == NODE_FINALIZED) {
        GC_REGISTER_FINALIZER_NO_ORDER(n, finalize, NULL, NULL, NULL);
        __atomic_fetch_add(&node_finalizers_registered, 1, __ATOMIC_RELAXED);
    }
    return n;
}

void node_check_edges(const struct node *n, uint64_t id, unsigned depth, uint32_t width)
{
    node_check(n, id);
    for (size_t at = edges_end(n); at + 2 * sizeof(uint64_t) <= n->bytes; at += STRIDE)
        if (*word_at(n, at) != word_of(n->id, at))
            lost(n, id, "its filling changed");
    for (uint32_t i = 0; i < n->edge_count; i++) {
        const struct edge *e = &n->edges[i];
        if ((e->to == NULL) != (e->to_id == 0))
            lost(n, id, "an edge is half there");
        if (e->to == NULL)
            continue;
        node_check(e->to, e->to_id);
        if (depth > 0 && e->to->level < n->level && width > 0) {
            width--;
            node_check_edges(e->to, e->to_id, depth - 1, 4);
        }
    }
}
