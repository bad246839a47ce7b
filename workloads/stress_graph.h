/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The objects of the stress test: nodes that know who they are and whom they point to, so that a
 * node that was freed while it was in use is noticed by whoever reaches it. */
#ifndef STRESS_GRAPH_H
#define STRESS_GRAPH_H

#include "harness.h"

/* Levels keep the graph from growing without bound: a node that left the table keeps only its
 * edges to lower levels, so what hangs below a slot has at most this depth. */
#define LEVELS 4

enum node_kind { NODE_PLAIN, NODE_OFF_PAGE, NODE_ATOMIC, NODE_TYPED, NODE_FINALIZED, NODE_PINNED };

struct edge {
    struct node *to;
    uint64_t to_id; /* 0 if and only if `to` is NULL */
};

struct node {
    uint64_t id;    /* bit 63 set: no address; the first word, which a free list would overwrite */
    uint64_t check; /* of the id and of what follows */
    uint32_t bytes, edge_count;
    uint32_t kind, level;
    uint64_t finalized; /* set by the finalizer: nobody may reach it then */
    struct edge edges[];
};

/* Fails (wl_fail, or exit code 1 of a forked child) with what was expected where. */
WL_NORETURN void stress_fail(const char *format, ...) WL_PRINTF(1, 2);

/* Set in a forked child, which has no other thread and leaves by _exit. */
extern bool stress_in_child;

/* In a forked child, the last id that its lane gave before the fork. */
extern uint64_t stress_child_after;

/* Makes the descriptors of typed nodes, once the collector is initialised. */
void node_init(void);

/* A new node without edges, of `bytes` or as many as its edges need. */
struct node *node_new(enum node_kind kind, unsigned level, uint32_t edge_count, uint32_t bytes,
                      uint64_t id);

/* How many edges a typed node may have. */
uint32_t node_typed_edges(uint64_t random);

/* Writes what a node of this id holds; the edges excepted. */
void node_fill(struct node *n);

static inline void edge_set(struct node *n, uint32_t at, struct node *to)
{
    n->edges[at].to = to;
    n->edges[at].to_id = to != NULL ? to->id : 0;
}

/* The node is what `id` says, and unchanged. */
void node_check(const struct node *n, uint64_t id);

/* The same, and so is each that it points to; and `depth` levels below, at most `width` of the
 * edges of each. */
void node_check_edges(const struct node *n, uint64_t id, unsigned depth, uint32_t width);

/* Finalizers that ran, and those that were registered. */
extern uint64_t node_finalizers_run, node_finalizers_registered;

#endif
