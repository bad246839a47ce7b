/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * GCBench with malloc: the trees of gcbench.c, each freed by hand.  No collector is in it.
 *
 * It is a program that computes and allocates and does little else, to compare what runs it: `trees`
 * natively with `barchan run --dune -- trees` (benches/guest-mode.md).  Usage: trees [ROUNDS].
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { STRETCH_DEPTH = 18, LONG_DEPTH = 16, MIN_DEPTH = 4, MAX_DEPTH = 16, DOUBLES = 500000 };

struct node {
    struct node *left, *right;
    uint32_t height, position;
    uint64_t unused[4]; /* 56 bytes, as in gcbench.c */
};

static uint64_t tree_size(int depth)
{
    return (UINT64_C(2) << depth) - 1;
}

static void *need(void *memory)
{
    if (memory == NULL) {
        fputs("trees: no memory\n", stderr);
        exit(1);
    }
    return memory;
}

static struct node *new_node(int height, uint32_t position)
{
    struct node *n = need(calloc(1, sizeof *n));
    n->height = (uint32_t)height;
    n->position = position;
    return n;
}

static void populate(struct node *n)
{
    if (n->height == 0)
        return;
    n->left = new_node((int)n->height - 1, 2 * n->position);
    n->right = new_node((int)n->height - 1, 2 * n->position + 1);
    populate(n->left);
    populate(n->right);
}

static struct node *top_down(int depth)
{
    struct node *root = new_node(depth, 1);
    populate(root);
    return root;
}

static struct node *bottom_up(int height, uint32_t position)
{
    struct node *n, *left = NULL, *right = NULL;
    if (height > 0) {
        left = bottom_up(height - 1, 2 * position);
        right = bottom_up(height - 1, 2 * position + 1);
    }
    n = new_node(height, position);
    n->left = left;
    n->right = right;
    return n;
}

/* Frees a tree; how many nodes it had, each of them where it belongs. */
static uint64_t free_tree(struct node *n, int height, uint32_t position)
{
    uint64_t found = 1;
    if (n == NULL || n->height != (uint32_t)height || n->position != position) {
        fputs("trees: check failed\n", stderr);
        exit(1);
    }
    if (height > 0) {
        found += free_tree(n->left, height - 1, 2 * position);
        found += free_tree(n->right, height - 1, 2 * position + 1);
    }
    free(n);
    return found;
}

static uint64_t run(void)
{
    uint64_t nodes = free_tree(bottom_up(STRETCH_DEPTH, 1), STRETCH_DEPTH, 1);
    struct node *tree = top_down(LONG_DEPTH);
    double *array = need(malloc(DOUBLES * sizeof *array));
    for (int i = 0; i < DOUBLES; i++)
        array[i] = 1.0 / (i + 1);
    for (int depth = MIN_DEPTH; depth <= MAX_DEPTH; depth += 2) {
        uint64_t rounds = 2 * tree_size(STRETCH_DEPTH) / tree_size(depth);
        for (uint64_t i = 0; i < rounds; i++) {
            nodes += free_tree(top_down(depth), depth, 1);
            nodes += free_tree(bottom_up(depth, 1), depth, 1);
        }
    }
    for (int i = 0; i < DOUBLES; i++)
        if (array[i] != 1.0 / (i + 1)) {
            fputs("trees: check failed\n", stderr);
            exit(1);
        }
    free(array);
    return nodes + free_tree(tree, LONG_DEPTH, 1);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    uint64_t nodes = 0;
    for (int i = 0; i < rounds; i++)
        nodes += run();
    printf("%llu nodes\n", (unsigned long long)nodes);
    return 0;
}
