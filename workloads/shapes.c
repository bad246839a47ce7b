/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * How long a full collection takes, by the shape of what is live: a heap is built without any
 * collection, then collected again and again with nothing else happening.  `pauses` are these
 * collections.  Whether objects that refer to each other lie side by side, or anywhere, is
 * what decides: the marker waits for memory, or does not.
 *
 * At the end the heap is walked and every object checked.
 */
#include "harness.h"

enum { LIST, LISTS, TREE, SCATTERED_TREE, RANDOM, LARGE };
static const char *const shape_names[]
    = {"list", "lists", "tree", "scattered-tree", "random", "large", NULL};

#define N_LISTS 4096
#define LARGE_BYTES 4000

static unsigned shape = TREE;
static uint64_t objects = 2000000, collections = 60, seed = 1;

struct node {
    struct node *left, *right; /* a list uses `right` only */
    uint64_t number;
};

/* The root of all there is: an array in the GC heap. */
static struct node **table;

static struct node *new_node(uint64_t number, size_t bytes)
{
    struct node *n = wl_alloc(bytes);
    n->number = wl_mix(number);
    return n;
}

/* Lists of about the same length; the next node goes to any of them. */
static WL_NOINLINE void build_lists(uint64_t n)
{
    for (uint64_t i = 0; i < objects; i++) {
        struct node *node = new_node(i, sizeof *node), **list = &table[wl_below(&seed, n)];
        node->right = *list;
        *list = node;
    }
}

/* A binary tree with the nodes `at`, `2 at`, `2 at + 1`, ...; in the order of a walk. */
static WL_NOINLINE struct node *build_tree(uint64_t at)
{
    struct node *node = new_node(at, sizeof *node);
    if (2 * at <= objects)
        node->left = build_tree(2 * at);
    if (2 * at + 1 <= objects)
        node->right = build_tree(2 * at + 1);
    return node;
}

/* The same tree with each node in the place of any other. */
static WL_NOINLINE struct node *build_scattered_tree(void)
{
    struct node **nodes = wl_alloc(objects * sizeof *nodes);
    for (uint64_t i = 0; i < objects; i++)
        nodes[i] = wl_alloc(sizeof *nodes[i]);
    for (uint64_t i = objects - 1; i > 0; i--) {
        uint64_t other = wl_below(&seed, i + 1);
        struct node *node = nodes[i];
        nodes[i] = nodes[other];
        nodes[other] = node;
    }
    for (uint64_t at = 1; at <= objects; at++) {
        struct node *node = nodes[at - 1];
        node->number = wl_mix(at);
        if (2 * at <= objects)
            node->left = nodes[2 * at - 1];
        if (2 * at + 1 <= objects)
            node->right = nodes[2 * at];
    }
    return nodes[0];
}

static WL_NOINLINE void build_array(size_t bytes)
{
    for (uint64_t i = 0; i < objects; i++)
        table[i] = new_node(i, bytes);
    if (shape == RANDOM)
        for (uint64_t i = 0; i < objects; i++)
            table[i]->left = table[wl_below(&seed, objects)];
}

static uint64_t check_node(const struct node *node, uint64_t number)
{
    if (node->number != wl_mix(number))
        wl_fail("object %llu of shape %s holds %#llx", (unsigned long long)number,
                shape_names[shape], (unsigned long long)node->number);
    return 1;
}

static uint64_t check_tree(const struct node *node, uint64_t at)
{
    return node == NULL ? 0
                        : check_node(node, at) + check_tree(node->left, 2 * at)
                              + check_tree(node->right, 2 * at + 1);
}

/* How many objects there are; the numbers in the lists, which are in any order, are checked by their sum. */
static WL_NOINLINE uint64_t check(uint64_t slots)
{
    uint64_t found = 0, sum = 0, expected = 0;
    switch (shape) {
    case TREE:
    case SCATTERED_TREE:
        return check_tree(table[0], 1);
    case RANDOM:
    case LARGE:
        for (uint64_t i = 0; i < objects; i++)
            found += check_node(table[i], i);
        return found;
    default:
        for (uint64_t i = 0; i < slots; i++)
            for (const struct node *n = table[i]; n != NULL; n = n->right, found++)
                sum += n->number;
        for (uint64_t i = 0; i < objects; i++)
            expected += wl_mix(i);
        if (sum != expected)
            wl_fail("the lists hold %#llx instead of %#llx", (unsigned long long)sum,
                    (unsigned long long)expected);
        return found;
    }
}

static void run(void)
{
    bool is_array = shape == RANDOM || shape == LARGE;
    uint64_t slots = is_array ? objects : shape == LISTS ? N_LISTS : 1;

    GC_set_warn_proc(GC_ignore_warn_proc); /* that the heap grows meanwhile */
    GC_disable();
    table = wl_alloc(slots * sizeof *table);
    switch (shape) {
    case TREE:
        table[0] = build_tree(1);
        break;
    case SCATTERED_TREE:
        table[0] = build_scattered_tree();
        break;
    case RANDOM:
        build_array(sizeof(struct node));
        break;
    case LARGE:
        build_array(LARGE_BYTES);
        break;
    default:
        build_lists(slots);
    }
    GC_enable();
    wl_clock_stop(); /* the collections asked for are no allocations */
    for (uint64_t i = 0; i < collections; i++)
        GC_gcollect();
    if (wl_spoil())
        table[0]->number++;
    wl_check_begin();
    uint64_t found = check(slots);
    wl_check_end();
    if (found != objects)
        wl_fail("%llu objects instead of %llu", (unsigned long long)found,
                (unsigned long long)objects);
    wl_result_u64("objects", found);
}

static void prepare(double scale)
{
    if (shape == LARGE)
        objects = objects / 64 + 1; /* 120 MB, too */
    objects = wl_scaled(objects, scale, N_LISTS);
    wl_param_text("shape", shape_names[shape]);
    wl_param_u64("objects", objects);
    wl_param_u64("collections", collections);
}

static const struct wl_option options[] = {
    {.name = "shape", .kind = WL_CHOICE, .value = &shape, .choices = shape_names,
     .placeholder = "list|lists|tree|scattered-tree|random|large",
     .help = "a list; 4096 lists with mixed nodes; a tree; one in random places; an array of "
             "objects that refer to random ones; one of objects of 4000 bytes"},
    {.name = "objects", .kind = WL_U64, .value = &objects, .min = 1, .max = 100000000,
     .placeholder = "N", .help = "objects that are live (large: a 64th of them)"},
    {.name = "collections", .kind = WL_U64, .value = &collections, .min = 1, .max = 1000000,
     .placeholder = "N", .help = "full collections to make"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "shapes",
        .summary = "full collections of a heap that does not change, by its shape",
        .scale_help = "multiply the number of objects",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
