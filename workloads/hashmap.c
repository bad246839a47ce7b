/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A chained hash map under replacement: 3,000,000 operations over 30,000 keys; 90 % of them
 * allocate a value of 4,000 bytes and store it, as in Dune's evaluation (OSDI 2012, table 6);
 * the others look a key up and check its value.
 *
 * The paper is silent on what the values hold and on the remaining 10 %.  By default a value is
 * allocated as an object that may hold pointers (the collector has to scan its 4,000 bytes, and
 * to track writes to them); --atomic makes values pointer-free.  A key's entry is allocated once,
 * at its first store; later stores only replace the pointer to the value, so old entries come to
 * point to young values all over the table.
 *
 * Every value carries its key and the number of the operation that stored it, in its first, middle
 * and last word; a shadow table outside the GC heap knows which operation that was.
 */
#include "harness.h"

static uint64_t operations = 3000000, keys = 30000, store_percent = 90, value_bytes = 4000;
static uint64_t seed = 1, buckets;
static bool atomic;

struct entry {
    struct entry *next;
    uint64_t key;
    uint64_t *value;
};

static struct entry **table;
static uint64_t *shadow; /* operation + 1 that stored the key's value; 0: none yet */

static struct entry **bucket(uint64_t key)
{
    return &table[wl_mix(key) & (buckets - 1)];
}

static struct entry *find(uint64_t key)
{
    struct entry *e = *bucket(key);
    while (e != NULL && e->key != key)
        e = e->next;
    return e;
}

static uint64_t stamp(uint64_t key, uint64_t operation)
{
    return wl_mix(key << 40 ^ operation);
}

static WL_NOINLINE void store(uint64_t key, uint64_t operation)
{
    uint64_t words = value_bytes / sizeof(uint64_t);
    uint64_t *value = atomic ? wl_alloc_atomic(value_bytes) : wl_alloc(value_bytes);
    /* Small numbers where the collector looks for pointers: none of them is an address. */
    value[0] = key;
    value[words / 2] = operation & 0xffffffff;
    value[words - 1] = stamp(key, operation) & 0xffffffff;

    struct entry *e = find(key);
    if (e == NULL) {
        struct entry **head = bucket(key);
        e = wl_alloc(sizeof *e);
        e->key = key;
        e->next = *head;
        *head = e;
    }
    e->value = value;
    shadow[key] = operation + 1;
}

static WL_NOINLINE void look_up(uint64_t key)
{
    const struct entry *e = find(key);
    if ((e == NULL) != (shadow[key] == 0))
        wl_fail("key %llu is %s", (unsigned long long)key, e == NULL ? "lost" : "there too early");
    if (e == NULL)
        return;
    uint64_t words = value_bytes / sizeof(uint64_t), operation = shadow[key] - 1;
    if (e->value[0] != key || e->value[words / 2] != (operation & 0xffffffff) ||
        e->value[words - 1] != (stamp(key, operation) & 0xffffffff))
        wl_fail("the value of key %llu is not the one that operation %llu stored",
                (unsigned long long)key, (unsigned long long)operation);
}

static void run(void)
{
    uint64_t random = seed, stores = 0, present = 0;

    table = wl_alloc(buckets * sizeof(struct entry *)); /* a static: a root */
    for (uint64_t i = 0; i < operations; i++) {
        uint64_t key = wl_below(&random, keys);
        if (wl_below(&random, 100) < store_percent) {
            store(key, i);
            stores++;
        } else {
            look_up(key);
        }
    }
    if (wl_spoil()) {
        uint64_t key = 0;
        while (key < keys - 1 && shadow[key] == 0)
            key++;
        shadow[key]++;
    }
    wl_check_begin();
    for (uint64_t key = 0; key < keys; key++) {
        look_up(key);
        present += shadow[key] != 0;
    }
    wl_check_end();
    wl_result_u64("stores", stores);
    wl_result_u64("keys_present", present);
}

static void prepare(double scale)
{
    operations = wl_scaled(operations, scale, 1);
    keys = wl_scaled(keys, scale, 1);
    for (buckets = 1; buckets < keys; buckets *= 2)
        ;
    shadow = wl_shadow(keys, sizeof *shadow);
    wl_param_u64("operations", operations);
    wl_param_u64("keys", keys);
    wl_param_u64("store_percent", store_percent);
    wl_param_u64("value_bytes", value_bytes);
    wl_param_text("values", atomic ? "pointer-free" : "may hold pointers");
    wl_param_u64("seed", seed);
}

static const struct wl_option options[] = {
    {.name = "operations", .kind = WL_U64, .value = &operations, .min = 1, .max = 4000000000,
     .placeholder = "N", .help = "operations"},
    {.name = "keys", .kind = WL_U64, .value = &keys, .min = 1, .max = 4000000000,
     .placeholder = "N", .help = "keys, chosen uniformly"},
    {.name = "store-percent", .kind = WL_U64, .value = &store_percent, .max = 100,
     .placeholder = "P", .help = "operations that store a new value, of 100"},
    {.name = "value-bytes", .kind = WL_U64, .value = &value_bytes, .min = 24, .max = 1000000000,
     .placeholder = "N", .help = "bytes of a value"},
    {.name = "atomic", .kind = WL_FLAG, .value = &atomic, .help = "values without pointers"},
    {.name = "seed", .kind = WL_U64, .value = &seed, .max = UINT64_MAX, .placeholder = "S",
     .help = "start of the sequence of keys"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "hashmap",
        .summary = "a hash map whose 4,000-byte values are replaced all the time",
        .scale_help = "multiply operations and keys",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
