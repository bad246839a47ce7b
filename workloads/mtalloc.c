/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Allocation from several threads: short-lived lists and trees, some of which survive in a shared
 * table until they are replaced.
 *
 * The work is cut into 64 lanes, dealt out to the threads in turn; each lane is a deterministic
 * sequence of items, whatever thread runs it, so the total work and the checksum are the same for
 * every number of threads.  An item is a list of up to 63 nodes or a binary tree of depth up to 5;
 * every 16th survives in one of the lane's slots.  The slots of all lanes are interleaved in one
 * table, so that the threads write to the same pages (each its own words).
 *
 * Checks: every item when it is made, every survivor when it is replaced and at the end, against
 * sums that the seed alone gives; a lane's checksum is compared with a second computation of it
 * that allocates nothing.
 */
#include "harness.h"

#include <pthread.h>
#include <string.h>

#define LANES 64
#define SURVIVE_EVERY 16

static uint64_t threads = 2, items = 1600000, slots = 512, seed = 1;

struct node {
    struct node *left, *right; /* a list uses `right` only */
    uint64_t value;
};

struct lane {
    uint64_t random, next_slot, checksum;
};

static struct node **table;      /* slots * LANES, in the GC heap; the static is its root */
static uint64_t *expected;       /* the sums of the survivors, outside it */
static struct lane lanes[LANES];

/* What an item is, from its seed alone: size 1..63 as a list, depth 0..5 as a tree. */
static bool is_list(uint64_t item)
{
    return (item & 1) != 0;
}

static uint64_t list_length(uint64_t item)
{
    return 1 + (item >> 1) % 63;
}

static unsigned tree_depth(uint64_t item)
{
    return (unsigned)((item >> 1) % 6);
}

static uint64_t value_of(uint64_t item, uint64_t position)
{
    return wl_mix(item ^ position << 56) & 0xffffffff; /* no address */
}

/* The sum of an item's values, without making it. */
static uint64_t sum_expected(uint64_t item)
{
    uint64_t n = is_list(item) ? list_length(item) : (UINT64_C(2) << tree_depth(item)) - 1;
    uint64_t sum = 0;
    for (uint64_t i = 1; i <= n; i++)
        sum += value_of(item, i);
    return sum;
}

static struct node *make_tree(uint64_t item, unsigned height, uint64_t position)
{
    struct node *n = wl_alloc(sizeof *n);
    n->value = value_of(item, position);
    if (height > 0) {
        n->left = make_tree(item, height - 1, 2 * position);
        n->right = make_tree(item, height - 1, 2 * position + 1);
    }
    return n;
}

static struct node *make_list(uint64_t item)
{
    struct node *head = NULL;
    for (uint64_t i = 1; i <= list_length(item); i++) {
        struct node *n = wl_alloc(sizeof *n);
        n->value = value_of(item, i);
        n->right = head;
        head = n;
    }
    return head;
}

static uint64_t sum(const struct node *n)
{
    uint64_t s = 0;
    for (; n != NULL; n = n->right)
        s += n->value + (n->left != NULL ? sum(n->left) : 0);
    return s;
}

static uint64_t slot_index(unsigned lane, uint64_t slot)
{
    return slot * LANES + lane;
}

static void check_survivor(unsigned lane, uint64_t slot)
{
    uint64_t i = slot_index(lane, slot);
    if (sum(table[i]) != expected[i])
        wl_fail("the survivor in slot %llu of lane %u sums to %llu instead of %llu",
                (unsigned long long)slot, lane, (unsigned long long)sum(table[i]),
                (unsigned long long)expected[i]);
}

static WL_NOINLINE void one_item(unsigned number, struct lane *lane, uint64_t i)
{
    uint64_t item = wl_random(&lane->random);
    struct node *made = is_list(item) ? make_list(item) : make_tree(item, tree_depth(item), 1);
    uint64_t s = sum(made);
    lane->checksum = wl_mix(lane->checksum ^ s);
    if (i % SURVIVE_EVERY != 0)
        return;
    check_survivor(number, lane->next_slot);
    uint64_t at = slot_index(number, lane->next_slot);
    table[at] = made;
    expected[at] = s;
    lane->next_slot = (lane->next_slot + 1) % slots;
}

static uint64_t lane_items(void)
{
    return (items + LANES - 1) / LANES;
}

static uint64_t lane_seed(unsigned lane)
{
    return wl_mix(seed * LANES + lane);
}

static void *worker(void *argument)
{
    unsigned first = *(unsigned *)argument;
    wl_clock_start();
    for (uint64_t i = 0; i < lane_items(); i++)
        for (unsigned l = first; l < LANES; l += (unsigned)threads)
            one_item(l, &lanes[l], i);
    wl_clock_merge();
    return NULL;
}

static void check_lane(unsigned number)
{
    const struct lane *lane = &lanes[number];
    uint64_t random = lane_seed(number), checksum = 0;
    for (uint64_t i = 0; i < lane_items(); i++)
        checksum = wl_mix(checksum ^ sum_expected(wl_random(&random)));
    if (checksum != lane->checksum)
        wl_fail("lane %u (thread %llu) has checksum %#llx instead of %#llx", number,
                number % (unsigned long long)threads, (unsigned long long)lane->checksum,
                (unsigned long long)checksum);
    for (uint64_t slot = 0; slot < slots; slot++)
        check_survivor(number, slot);
}

static void run(void)
{
    pthread_t thread[LANES];
    unsigned first[LANES];
    uint64_t all = 0;

    table = wl_alloc(slots * LANES * sizeof(struct node *));
    for (unsigned l = 0; l < LANES; l++)
        lanes[l].random = lane_seed(l);
    for (unsigned t = 0; t < threads; t++) {
        first[t] = t;
        int error = pthread_create(&thread[t], NULL, worker, &first[t]);
        if (error != 0)
            wl_refused("cannot start thread %u of %llu: %s", t + 1, (unsigned long long)threads,
                       strerror(error));
    }
    for (unsigned t = 0; t < threads; t++)
        pthread_join(thread[t], NULL);
    if (wl_spoil())
        table[slot_index(0, 0)]->value++;
    wl_check_begin();
    for (unsigned l = 0; l < LANES; l++) {
        check_lane(l);
        all = wl_mix(all ^ lanes[l].checksum);
    }
    wl_check_end();
    wl_result_u64("checksum", all & 0xffffffff);
}

static void prepare(double scale)
{
    items = wl_scaled(items, scale, 1);
    slots = wl_scaled(slots, scale, 1);
    expected = wl_shadow(slots * LANES, sizeof *expected);
    wl_param_u64("threads", threads);
    wl_param_u64("items", lane_items() * LANES);
    wl_param_u64("slots", slots * LANES);
    wl_param_u64("seed", seed);
}

static const struct wl_option options[] = {
    {.name = "threads", .kind = WL_U64, .value = &threads, .min = 1, .max = LANES,
     .placeholder = "N", .help = "threads that share the work"},
    {.name = "items", .kind = WL_U64, .value = &items, .min = 1, .max = 1000000000000,
     .placeholder = "N", .help = "lists and trees to make, all threads together"},
    {.name = "slots", .kind = WL_U64, .value = &slots, .min = 1, .max = 1000000,
     .placeholder = "N", .help = "survivors kept by each of the 64 lanes"},
    {.name = "seed", .kind = WL_U64, .value = &seed, .max = UINT64_MAX / LANES - 1,
     .placeholder = "S", .help = "start of the sequences of items"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "mtalloc",
        .summary = "short-lived lists and trees from several threads, some survive",
        .scale_help = "multiply the items and the slots",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
