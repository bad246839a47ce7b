// SPDX-License-Identifier: GPL-2.0-only
/*
 * The extended page table: four levels, guest-physical to host-physical (SDM
 * 3C, "The Extended Page Table Mechanism"). The CPU walks it at any moment
 * and sets accessed and dirty bits in it; software changes it under mmu_lock.
 *
 * A table's page counts its present entries in page_private; an empty one is
 * taken out. Nothing that was reachable is freed before a flush, and a
 * page of the host that was mapped is not referenced: mmu.c keeps that right.
 * Tables count as page tables of the process from the moment they are in the
 * EPT until they are freed, so that the OOM killer sees whose they are.
 */
#include <linux/gfp.h>
#include <linux/sched.h>

#include "dune.h"

#define EPT_RWX		VMX_EPT_RWX_MASK
#define EPT_LARGE	BIT_ULL(7)
#define EPT_ADDRESS	GENMASK_ULL(51, 12)
/* Write-back whatever the guest's PAT says: it is the process's ordinary memory. */
#define EPT_LEAF	(VMX_EPT_READABLE_MASK | VMX_EPT_EXECUTABLE_MASK | VMX_EPT_IPAT_BIT | \
			 (VMX_EPTP_MT_WB << VMX_EPT_MT_EPTE_SHIFT) | VMX_EPT_ACCESS_BIT)
/* Steps, to leaves and over holes, between looks at whether somebody else wants the CPU or the lock. */
#define BATCH		4096

struct cursor {
	u64 gpa;
	int level;			/* of the leaf that was found */
	struct page *table[EPT_LEVELS + 1];
	u64 *entry[EPT_LEVELS + 1];
};

static int shift_of(int level)
{
	return PAGE_SHIFT + 9 * (level - 1);
}

static u64 *entry_of(struct page *table, u64 gpa, int level)
{
	u64 *entries = page_address(table);

	return &entries[(gpa >> shift_of(level)) & 511];
}

static struct page *table_of(u64 entry)
{
	return pfn_to_page((entry & EPT_ADDRESS) >> PAGE_SHIFT);
}

static bool is_leaf(u64 entry, int level)
{
	return level == 1 || (entry & EPT_LARGE);
}

static void count_entries(struct page *table, long n)
{
	set_page_private(table, page_private(table) + n);
}

/* Fills up the cache; may sleep. */
int dune_ept_topup(struct dune_table_cache *cache)
{
	while (cache->count < ARRAY_SIZE(cache->pages)) {
		struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);

		if (!page)
			return -ENOMEM;
		set_page_private(page, 0);
		cache->pages[cache->count++] = page;
	}
	return 0;
}

static void free_table(struct page *table)
{
	set_page_private(table, 0);
	__free_page(table);
}

void dune_ept_drop(struct dune_table_cache *cache)
{
	while (cache->count)
		free_table(cache->pages[--cache->count]);
}

/* For tables that were in the EPT. */
static void free_linked(struct dune_vm *vm, struct page *table)
{
	mm_dec_nr_ptes(vm->mm);
	free_table(table);
}

static void step_over(struct cursor *c, int level)
{
	c->gpa = ((c->gpa >> shift_of(level)) + 1) << shift_of(level);
}

/*
 * The first leaf at or above c->gpa and below end. False if there is none, or
 * not before *steps comes to BATCH: then c->gpa is still below end.
 */
static bool next_leaf(struct dune_vm *vm, struct cursor *c, u64 end, unsigned int *steps)
{
	while (c->gpa < end && *steps < BATCH) {
		struct page *table = vm->root;
		int level;

		++*steps;
		for (level = EPT_LEVELS; ; level--) {
			u64 *entry = entry_of(table, c->gpa, level);
			u64 value = READ_ONCE(*entry);

			c->table[level] = table;
			c->entry[level] = entry;
			if (!(value & EPT_RWX)) {
				step_over(c, level);
				break;
			}
			if (is_leaf(value, level)) {
				c->level = level;
				return true;
			}
			table = table_of(value);
		}
	}
	return false;
}

/* Takes out the leaf, and the tables that are empty then. */
static void zap_leaf(struct cursor *c, struct list_head *tables)
{
	int level = c->level;

	WRITE_ONCE(*c->entry[level], 0);
	count_entries(c->table[level], -1);
	while (level < EPT_LEVELS && !page_private(c->table[level])) {
		list_add(&c->table[level]->lru, tables);
		level++;
		WRITE_ONCE(*c->entry[level], 0);
		count_entries(c->table[level], -1);
	}
}

/* spin_needbreak, and so cond_resched_lock, sees who waits in fully preemptible kernels only. */
static bool is_wanted(struct dune_vm *vm)
{
	return need_resched() || spin_is_contended(&vm->mmu_lock);
}

/* Nothing may be left to flush. */
static void give_way(struct dune_vm *vm)
{
	spin_unlock(&vm->mmu_lock);
	cond_resched();
	cpu_relax();
	spin_lock(&vm->mmu_lock);
}

/* One flush for all that was taken out; then its tables can be freed. */
void dune_ept_finish(struct dune_vm *vm, struct dune_sweep *sweep)
{
	struct page *table, *next;

	if (!sweep->zapped)
		return;
	dune_mmu_flush(vm);
	list_for_each_entry_safe(table, next, &sweep->tables, lru) {
		list_del(&table->lru);
		free_linked(vm, table);
	}
	dune_count_by(DUNE_STAT_ZAPPED, sweep->zapped);
	sweep->zapped = 0;
}

/*
 * Takes out [gpa, end) and what large pages stick out of it; dune_ept_finish
 * is owed before the lock is dropped. With may_sleep this drops it on the way,
 * all flushed by then: the caller has seen to it that nothing is mapped there
 * meanwhile.
 */
void dune_ept_gather(struct dune_vm *vm, u64 gpa, u64 end, bool may_sleep,
		     struct dune_sweep *sweep)
{
	struct cursor c = { .gpa = gpa };

	for (;;) {
		while (next_leaf(vm, &c, end, &sweep->steps)) {
			zap_leaf(&c, &sweep->tables);
			step_over(&c, c.level);
			sweep->zapped++;
		}
		if (c.gpa >= end)
			return;
		sweep->steps = 0;
		if (may_sleep && is_wanted(vm)) {
			dune_ept_finish(vm, sweep);
			give_way(vm);
		}
	}
}

/* The same for one range, and flushed. */
void dune_ept_zap(struct dune_vm *vm, u64 gpa, u64 end, bool may_sleep)
{
	DUNE_SWEEP(sweep);

	dune_ept_gather(vm, gpa, end, may_sleep, &sweep);
	dune_ept_finish(vm, &sweep);
}

/*
 * For a caller that may not sleep: takes out [gpa, end) and all else that its
 * root entries hold, 512 GiB each, in as many steps, however much is mapped.
 * (What is missing then comes back by faults.) dune_ept_finish is owed as
 * above; the tables stay for dune_ept_free_detached.
 */
void dune_ept_detach(struct dune_vm *vm, u64 gpa, u64 end, struct dune_sweep *sweep)
{
	struct cursor c = { .gpa = gpa };

	for (; c.gpa < end; step_over(&c, EPT_LEVELS)) {
		u64 *entry = entry_of(vm->root, c.gpa, EPT_LEVELS);
		u64 value = READ_ONCE(*entry);

		if (!(value & EPT_RWX))
			continue;
		WRITE_ONCE(*entry, 0);
		count_entries(vm->root, -1);
		list_add(&table_of(value)->lru, &vm->detached);
		sweep->zapped++;
	}
}

static void free_subtree(struct dune_vm *vm, struct page *table, int level)
{
	u64 *entries = page_address(table);
	int i;

	for (i = 0; level > 1 && i < 512; i++)
		if ((entries[i] & EPT_RWX) && !is_leaf(entries[i], level))
			free_subtree(vm, table_of(entries[i]), level - 1);
	free_linked(vm, table);
	cond_resched();
}

/* Without the lock: it may sleep. */
void dune_ept_free_detached(struct dune_vm *vm)
{
	struct page *table, *next;
	LIST_HEAD(tables);

	/* Whoever put something there has flushed before the lock was free again. */
	spin_lock(&vm->mmu_lock);
	list_splice_init(&vm->detached, &tables);
	spin_unlock(&vm->mmu_lock);
	list_for_each_entry_safe(table, next, &tables, lru) {
		list_del(&table->lru);
		free_subtree(vm, table, EPT_LEVELS - 1);
	}
}

/* Removes what is at the cursor's entry, a leaf or a table of leaves. */
static void clear_for_mapping(struct dune_vm *vm, u64 gpa, int level)
{
	u64 start = (gpa >> shift_of(level)) << shift_of(level);

	dune_ept_zap(vm, start, start + (1ULL << shift_of(level)), false);
}

/*
 * Maps 1 << 9 * (level - 1) pages from pfn at gpa. The cache holds enough
 * tables. A mapping that is there already only gets what it lacks.
 */
void dune_ept_map(struct dune_vm *vm, struct dune_table_cache *cache, u64 gpa,
		  int level, u64 pfn, bool writable)
{
	u64 leaf = pfn << PAGE_SHIFT | EPT_LEAF;
	struct page *table = vm->root;
	u64 *entry, old;
	int l;

	if (level > 1)
		leaf |= EPT_LARGE;
	if (writable)
		leaf |= VMX_EPT_WRITABLE_MASK;
again:
	for (l = EPT_LEVELS; l > level; l--) {
		entry = entry_of(table, gpa, l);
		old = READ_ONCE(*entry);
		if (old & EPT_RWX && is_leaf(old, l)) {
			/* Larger than what the host, or the window, has there now. */
			clear_for_mapping(vm, gpa, l);
			table = vm->root;
			goto again;
		}
		if (!(old & EPT_RWX)) {
			struct page *new = cache->pages[--cache->count];

			WRITE_ONCE(*entry, page_to_phys(new) | EPT_RWX);
			count_entries(table, 1);
			mm_inc_nr_ptes(vm->mm);
			table = new;
		} else {
			table = table_of(old);
		}
	}
	entry = entry_of(table, gpa, level);
	old = READ_ONCE(*entry);
	if (old & EPT_RWX) {
		if (is_leaf(old, level) && !((old ^ leaf) & EPT_ADDRESS)) {
			/* The same page: more rights need no flush, fewer do not come here. */
			if (writable && !(old & VMX_EPT_WRITABLE_MASK))
				WRITE_ONCE(*entry, leaf);
			return;
		}
		clear_for_mapping(vm, gpa, level);
		table = vm->root;
		goto again;
	}
	WRITE_ONCE(*entry, leaf);
	count_entries(table, 1);
	dune_count(DUNE_STAT_FAULTS);
	if (level > 1)
		dune_count(DUNE_STAT_FAULTS_LARGE);
}

/*
 * Whether a dirty bit was set: then a flush is owed, before anybody relies on
 * it. May drop the lock on the way, and flushes before it does.
 */
bool dune_ept_clear_dirty(struct dune_vm *vm, u64 gpa, u64 end)
{
	struct cursor c = { .gpa = gpa };
	unsigned int steps = 0;
	bool any = false;

	for (;;) {
		while (next_leaf(vm, &c, end, &steps)) {
			if (READ_ONCE(*c.entry[c.level]) & VMX_EPT_DIRTY_BIT) {
				/* The CPU sets bits in this entry at the same time. */
				clear_bit(ilog2(VMX_EPT_DIRTY_BIT),
					  (unsigned long *)c.entry[c.level]);
				any = true;
			}
			step_over(&c, c.level);
		}
		if (c.gpa >= end)
			return any;
		steps = 0;
		if (is_wanted(vm)) {
			dune_mmu_flush(vm);
			give_way(vm);
		}
	}
}

/*
 * Whether the guest used any of it since the accessed bits were cleared. A
 * hint: it ends after BATCH steps, which *steps counts over several calls.
 */
bool dune_ept_young(struct dune_vm *vm, u64 gpa, u64 end, bool clear, unsigned int *steps)
{
	struct cursor c = { .gpa = gpa };
	bool young = false;

	while (next_leaf(vm, &c, end, steps)) {
		if (READ_ONCE(*c.entry[c.level]) & VMX_EPT_ACCESS_BIT) {
			young = true;
			if (!clear)
				break;
			clear_bit(ilog2(VMX_EPT_ACCESS_BIT), (unsigned long *)c.entry[c.level]);
		}
		step_over(&c, c.level);
	}
	return young;
}
