/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Linked lists of growing length, one after the other: list i has 10i+1 nodes, i = 0, 1, ...
 * below 10,000, as in Dune's evaluation (OSDI 2012, table 6).
 *
 * A node takes 32 bytes of the collector's heap.  The paper gives no layout, but its 15,257 MB
 * of allocation is what these 499,960,000 nodes come to at 32 bytes each, in MiB.
 * The list is appended to at its tail: each store of a link goes to the node made just before.
 * A finished list is summed and then dropped; --keep keeps the last K of them alive.
 */
#include "harness.h"

static uint64_t lists = 10000, step = 10, keep = 1;

struct node {
    struct node *next;
    uint64_t value;
    uint64_t list; /* which list it belongs to */
};

static WL_NOINLINE struct node *build(uint64_t list)
{
    struct node *head = wl_alloc(sizeof *head), *tail = head;
    head->value = wl_mix(list << 32);
    head->list = list;
    for (uint64_t i = 1; i <= step * list; i++) {
        struct node *n = wl_alloc(sizeof *n);
        n->value = wl_mix(list << 32 | i);
        n->list = list;
        tail->next = n;
        tail = n;
    }
    return head;
}

static WL_NOINLINE uint64_t check(const struct node *n, uint64_t list)
{
    uint64_t count = 0;
    for (; n != NULL; n = n->next) {
        if (n->list != list || n->value != wl_mix(list << 32 | count))
            wl_fail("node %llu of list %llu holds list %llu, value %#llx",
                    (unsigned long long)count, (unsigned long long)list,
                    (unsigned long long)n->list, (unsigned long long)n->value);
        count++;
    }
    if (count != step * list + 1)
        wl_fail("list %llu has %llu nodes instead of %llu", (unsigned long long)list,
                (unsigned long long)count, (unsigned long long)(step * list + 1));
    return count;
}

static void run(void)
{
    struct node **kept = wl_alloc(keep * sizeof(struct node *));
    uint64_t nodes = 0;

    for (uint64_t i = 0; i < lists; i++) {
        struct node **slot = &kept[i % keep];
        *slot = NULL; /* the list that was there is garbage from here on */
        *slot = build(i);
        if (wl_spoil() && i == lists - 1)
            (*slot)->value++;
        wl_check_begin();
        nodes += check(*slot, i);
        wl_check_end();
    }
    /* The kept ones once more: they lived through the building of the later ones. */
    wl_check_begin();
    for (uint64_t i = lists - (lists < keep ? lists : keep); i < lists; i++)
        check(kept[i % keep], i);
    wl_check_end();
    wl_result_u64("nodes", nodes);
}

static void prepare(double scale)
{
    lists = wl_scaled(lists, scale, 1);
    wl_param_u64("lists", lists);
    wl_param_u64("step", step);
    wl_param_u64("keep", keep);
}

static const struct wl_option options[] = {
    {.name = "lists", .kind = WL_U64, .value = &lists, .min = 1, .max = 1000000,
     .placeholder = "N", .help = "lists to build, one after the other"},
    {.name = "step", .kind = WL_U64, .value = &step, .min = 1, .max = 1000000,
     .placeholder = "N", .help = "list i has N*i+1 nodes"},
    {.name = "keep", .kind = WL_U64, .value = &keep, .min = 1, .max = 1000000,
     .placeholder = "K", .help = "finished lists to keep alive"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "list",
        .summary = "linked lists of growing length, built, summed and dropped",
        .scale_help = "multiply the number of lists (the nodes go with its square)",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
