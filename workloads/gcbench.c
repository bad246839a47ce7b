/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * GCBench, after the well-known benchmark of Ellis, Kovac and Boehm: binary trees of growing
 * depth, most short-lived, beside a long-lived tree and a long-lived array of doubles.
 *
 * Own code; the shape and the parameters are the published ones: a stretch tree of depth 18, a
 * long-lived tree of depth 16, 500,000 doubles, and for each depth 4, 6, ... 16 as many trees as
 * hold about twice the nodes of the stretch tree, first built from the root down (old nodes come
 * to point to younger ones), then from the leaves up (they do not).
 *
 * The default node of 56 bytes takes 64 of the collector's heap; with it the run allocates 940 MiB,
 * Dune's paper says 938 (table 6) and gives no layout.  24 is the classic node (two pointers, two
 * ints), which takes 32.
 *
 * Checks: each temporary tree along one path to a leaf, chosen by a seeded generator; the
 * long-lived data and the stretch tree completely.
 */
#include "harness.h"

static uint64_t stretch_depth = 18, long_depth = 16, array_length = 500000;
static uint64_t min_depth = 4, max_depth = 16, node_bytes = 56;
static uint64_t tree_work; /* nodes to build for each depth and direction */

struct node {
    struct node *left, *right;
    uint32_t height;   /* 0 in a leaf */
    uint32_t position; /* heap order: the root 1, the children of n are 2n and 2n+1 */
    /* zeroes up to node_bytes */
};

static uint64_t tree_size(uint64_t depth)
{
    return (UINT64_C(2) << depth) - 1;
}

static struct node *new_node(uint32_t height, uint32_t position)
{
    struct node *n = wl_alloc(node_bytes);
    n->height = height;
    n->position = position;
    return n;
}

/* Root first: every pointer store goes to the older node. */
static void populate(struct node *n)
{
    if (n->height == 0)
        return;
    n->left = new_node(n->height - 1, 2 * n->position);
    n->right = new_node(n->height - 1, 2 * n->position + 1);
    populate(n->left);
    populate(n->right);
}

static struct node *top_down(uint32_t depth)
{
    struct node *root = new_node(depth, 1);
    populate(root);
    return root;
}

static struct node *bottom_up(uint32_t height, uint32_t position)
{
    if (height == 0)
        return new_node(0, position);
    struct node *left = bottom_up(height - 1, 2 * position);
    struct node *right = bottom_up(height - 1, 2 * position + 1);
    struct node *n = new_node(height, position);
    n->left = left;
    n->right = right;
    return n;
}

static void check_node(const struct node *n, uint32_t height, uint32_t position)
{
    if (n == NULL)
        wl_fail("node %u of height %u is missing", position, height);
    if (n->height != height || n->position != position)
        wl_fail("node %u of height %u holds position %u, height %u", position, height, n->position,
                n->height);
    if (height == 0 && (n->left != NULL || n->right != NULL))
        wl_fail("leaf %u has children", position);
}

static uint64_t check_tree(const struct node *n, uint32_t height, uint32_t position)
{
    check_node(n, height, position);
    if (height == 0)
        return 1;
    return 1 + check_tree(n->left, height - 1, 2 * position) +
           check_tree(n->right, height - 1, 2 * position + 1);
}

static void check_path(const struct node *n, uint32_t depth, uint64_t bits)
{
    uint32_t position = 1;
    for (uint32_t height = depth;; height--, bits >>= 1) {
        check_node(n, height, position);
        if (height == 0)
            return;
        position = 2 * position + (bits & 1);
        n = (bits & 1) != 0 ? n->right : n->left;
    }
}

static WL_NOINLINE void stretch(void)
{
    struct node *root = bottom_up((uint32_t)stretch_depth, 1);
    wl_check_begin();
    uint64_t found = check_tree(root, (uint32_t)stretch_depth, 1);
    wl_check_end();
    if (found != tree_size(stretch_depth))
        wl_fail("the stretch tree has %llu nodes", (unsigned long long)found);
}

static WL_NOINLINE void one_tree(uint32_t depth, bool down, uint64_t bits)
{
    check_path(down ? top_down(depth) : bottom_up(depth, 1), depth, bits);
}

static WL_NOINLINE uint64_t temporary_trees(uint32_t depth, uint64_t *random)
{
    uint64_t rounds = tree_work / tree_size(depth);
    if (rounds == 0)
        rounds = 1;
    for (int down = 1; down >= 0; down--)
        for (uint64_t i = 0; i < rounds; i++)
            one_tree(depth, down != 0, wl_random(random));
    return 2 * rounds;
}

static WL_NOINLINE void check_long_lived(struct node *tree, const double *array)
{
    if (wl_spoil())
        tree->right->left->position++;
    wl_check_begin();
    uint64_t found = check_tree(tree, (uint32_t)long_depth, 1);
    if (found != tree_size(long_depth))
        wl_fail("the long-lived tree has %llu nodes", (unsigned long long)found);
    for (uint64_t i = 0; i < array_length; i++)
        if (array[i] != 1.0 / (double)(i + 1))
            wl_fail("element %llu of the long-lived array is %g", (unsigned long long)i, array[i]);
    wl_check_end();
    wl_result_u64("long_lived_nodes", found);
}

static void run(void)
{
    uint64_t random = 1, trees = 0;

    stretch();
    struct node *tree = top_down((uint32_t)long_depth);
    double *array = wl_alloc_atomic(array_length * sizeof *array);
    for (uint64_t i = 0; i < array_length; i++)
        array[i] = 1.0 / (double)(i + 1);
    for (uint64_t depth = min_depth; depth <= max_depth; depth += 2)
        trees += temporary_trees((uint32_t)depth, &random);
    check_long_lived(tree, array);
    GC_reachable_here(tree);
    GC_reachable_here(array);
    wl_result_u64("temporary_trees", trees);
}

static void prepare(double scale)
{
    if (min_depth > max_depth)
        wl_usage("--min-depth %llu is above --max-depth %llu", (unsigned long long)min_depth,
                 (unsigned long long)max_depth);
    tree_work = wl_scaled(2 * tree_size(stretch_depth), scale, 1);
    array_length = wl_scaled(array_length, scale, 1);
    wl_param_u64("stretch_depth", stretch_depth);
    wl_param_u64("long_lived_depth", long_depth);
    wl_param_u64("array_doubles", array_length);
    wl_param_u64("min_depth", min_depth);
    wl_param_u64("max_depth", max_depth);
    wl_param_u64("node_bytes", node_bytes);
    wl_param_u64("nodes_per_depth", tree_work);
}

static const struct wl_option options[] = {
    {.name = "stretch-depth", .kind = WL_U64, .value = &stretch_depth, .max = 26,
     .placeholder = "N", .help = "depth of the tree built and dropped at the start"},
    {.name = "long-depth", .kind = WL_U64, .value = &long_depth, .min = 2, .max = 26,
     .placeholder = "N", .help = "depth of the long-lived tree"},
    {.name = "array", .kind = WL_U64, .value = &array_length, .min = 1, .max = 1000000000,
     .placeholder = "N", .help = "doubles in the long-lived array"},
    {.name = "min-depth", .kind = WL_U64, .value = &min_depth, .max = 26, .placeholder = "N",
     .help = "smallest temporary trees"},
    {.name = "max-depth", .kind = WL_U64, .value = &max_depth, .max = 26, .placeholder = "N",
     .help = "largest temporary trees, in steps of 2"},
    {.name = "node-bytes", .kind = WL_U64, .value = &node_bytes, .min = sizeof(struct node),
     .max = 4096, .placeholder = "N", .help = "bytes asked for a node"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "gcbench",
        .summary = "short-lived binary trees beside long-lived data",
        .scale_help = "multiply the number of temporary trees and the array",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
