/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A large live tree under slow mutation, with garbage allocated in between: what generations are
 * for.  A full collection marks the whole tree each time, although little of it has changed.
 *
 * The tree is a perfect binary tree of 2^(depth+1)-1 nodes, built depth first, so that a subtree
 * lies in few pages.  Its twigs, the subtrees of height 3 (15 nodes), are numbered from left to
 * right.  A mutation replaces one twig by a new one: one pointer store into an old page, 15 old
 * nodes dead, 15 new ones that will live.  After each mutation the program allocates --garbage
 * bytes of small lists that it drops at once.
 *   --pattern scattered  the twig is any one, uniformly: over a collection's time the stores hit
 *                        a large share of the tree's pages;
 *   --pattern clustered  the twigs of one window (--window neighbours, about 190 KB of heap) are
 *                        chosen from for as many mutations as the window has twigs, then the next
 *                        window, chosen uniformly: the same number of stores in few pages.
 *
 * Each node carries its position and its twig's version; a shadow table outside the GC heap knows
 * the version of each twig.  The replaced twig is checked at each mutation, the tree at the end.
 */
#include "harness.h"

#define TWIG_HEIGHT 3

static uint64_t depth = 21, garbage_bytes = 8192, window = 256, seed = 1;
static uint64_t mutations = 150000;
static unsigned pattern;
enum { SCATTERED, CLUSTERED };
static const char *const patterns[] = {"scattered", "clustered", NULL};

struct node {
    struct node *left, *right;
    uint64_t position; /* heap order: the root 1, the children of n are 2n and 2n+1 */
    uint64_t version;  /* of its twig; 0 above the twigs */
};

static struct node *root;
static uint32_t *shadow;
static uint64_t twigs;

static WL_NOINLINE struct node *grow(unsigned height, uint64_t position, uint64_t version)
{
    struct node *n = wl_alloc(sizeof *n);
    n->position = position;
    if (height <= TWIG_HEIGHT)
        n->version = version;
    if (height > 0) {
        n->left = grow(height - 1, 2 * position, version);
        n->right = grow(height - 1, 2 * position + 1, version);
    }
    return n;
}

static uint64_t check_twig(const struct node *n, unsigned height, uint64_t position,
                           uint64_t version)
{
    if (n == NULL)
        wl_fail("node %llu is missing", (unsigned long long)position);
    if (n->position != position || n->version != version)
        wl_fail("node %llu of version %llu holds position %llu, version %llu",
                (unsigned long long)position, (unsigned long long)version,
                (unsigned long long)n->position, (unsigned long long)n->version);
    if (height == 0)
        return 1;
    return 1 + check_twig(n->left, height - 1, 2 * position, version) +
           check_twig(n->right, height - 1, 2 * position + 1, version);
}

static uint64_t check_tree(const struct node *n, unsigned height, uint64_t position)
{
    if (height == TWIG_HEIGHT)
        return check_twig(n, height, position, shadow[position - twigs]);
    if (n == NULL || n->position != position || n->version != 0)
        wl_fail("node %llu is %s", (unsigned long long)position, n == NULL ? "missing" : "wrong");
    return 1 + check_tree(n->left, height - 1, 2 * position) +
           check_tree(n->right, height - 1, 2 * position + 1);
}

/* Twig t hangs at heap position twigs + t: the bits below its leading one are the path to it. */
static WL_NOINLINE void mutate(uint64_t twig)
{
    uint64_t position = twigs + twig;
    struct node **link = &root;
    for (unsigned level = (unsigned)depth - TWIG_HEIGHT; level > 0; level--)
        link = (position >> (level - 1) & 1) != 0 ? &(*link)->right : &(*link)->left;
    check_twig(*link, TWIG_HEIGHT, position, shadow[twig]);
    shadow[twig]++;
    *link = grow(TWIG_HEIGHT, position, shadow[twig]);
}

/* Lists of 32 objects of 16 to 128 bytes, each dropped when the next begins. */
static WL_NOINLINE uint64_t litter(uint64_t *random)
{
    uint64_t bytes = 0, count = 0;
    void **list = NULL;
    while (bytes < garbage_bytes) {
        size_t size = 16 + 16 * wl_below(random, 8);
        void **object = wl_alloc(size);
        object[0] = ++count % 32 != 0 ? list : NULL;
        list = object;
        bytes += size;
    }
    return count;
}

static uint64_t choose(uint64_t mutation, uint64_t *random)
{
    static uint64_t base;
    if (pattern == SCATTERED)
        return wl_below(random, twigs);
    if (mutation % window == 0)
        base = wl_below(random, twigs / window) * window;
    return base + wl_below(random, window);
}

static void run(void)
{
    uint64_t random = seed, garbage = 0;

    root = grow((unsigned)depth, 1, 0);
    for (uint64_t i = 0; i < mutations; i++) {
        mutate(choose(i, &random));
        garbage += litter(&random);
    }
    if (wl_spoil())
        shadow[twigs / 2]++;
    wl_check_begin();
    wl_result_u64("live_nodes", check_tree(root, (unsigned)depth, 1));
    wl_check_end();
    wl_result_u64("garbage_objects", garbage);
}

/* The tree shrinks by whole levels, to the nearest power of two at or below the scale. */
static void prepare(double scale)
{
    mutations = wl_scaled(mutations, scale, 1);
    for (double s = scale; s <= 0.5 && depth > TWIG_HEIGHT + 1; s *= 2)
        depth--;
    twigs = UINT64_C(1) << (depth - TWIG_HEIGHT);
    if (window > twigs)
        window = twigs;
    shadow = wl_shadow(twigs, sizeof *shadow);
    wl_param_u64("depth", depth);
    wl_param_u64("mutations", mutations);
    wl_param_u64("garbage_bytes", garbage_bytes);
    wl_param_text("pattern", patterns[pattern]);
    if (pattern == CLUSTERED)
        wl_param_u64("window", window);
    wl_param_u64("seed", seed);
}

static const struct wl_option options[] = {
    {.name = "depth", .kind = WL_U64, .value = &depth, .min = TWIG_HEIGHT + 1, .max = 28,
     .placeholder = "N", .help = "depth of the tree; 21 is 4.2 million nodes, 200 MB"},
    {.name = "mutations", .kind = WL_U64, .value = &mutations, .min = 1, .max = 1000000000,
     .placeholder = "N", .help = "twigs replaced"},
    {.name = "garbage", .kind = WL_U64, .value = &garbage_bytes, .max = 1000000000,
     .placeholder = "BYTES", .help = "garbage allocated after each mutation"},
    {.name = "pattern", .kind = WL_CHOICE, .value = &pattern, .choices = patterns,
     .placeholder = "scattered|clustered", .help = "where mutations fall"},
    {.name = "window", .kind = WL_U64, .value = &window, .min = 1, .max = 1000000,
     .placeholder = "N", .help = "twigs of a cluster"},
    {.name = "seed", .kind = WL_U64, .value = &seed, .max = UINT64_MAX, .placeholder = "S",
     .help = "start of the sequence of choices"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "tree",
        .summary = "a large live tree under slow mutation, garbage in between",
        .scale_help = "multiply the mutations, and the tree by a power of two",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
