// SPDX-License-Identifier: GPL-2.0-only
/*
 * The extended page table: four levels, guest-physical to host-physical (SDM
 * 3C, "The Extended Page Table Mechanism"). The CPU walks it at any moment
 * and sets accessed and dirty bits in it; software changes it under mmu_lock.
 *
 * A table's page counts its present entries in page_private; an empty one is
 * taken out. Nothing that was reachable is freed before a flush, and a
 * page of the host that was mapped is not referenced: mmu.c keeps that right.
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
/* Entries between looks at whether somebody else wants the CPU or the lock. */
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

/* The first leaf at or above c->gpa and below end. */
static bool next_leaf(struct dune_vm *vm, struct cursor *c, u64 end)
{
	while (c->gpa < end) {
		struct page *table = vm->root;
		int level;

		for (level = EPT_LEVELS; ; level--) {
			u64 *entry = entry_of(table, c->gpa, level);
			u64 value = READ_ONCE(*entry);

			c->table[level] = table;
			c->entry[level] = entry;
			if (!(value & EPT_RWX)) {
				c->gpa = ((c->gpa >> shift_of(level)) + 1) << shift_of(level);
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

static void flush_and_free(struct dune_vm *vm, struct list_head *tables)
{
	struct page *table, *next;

	dune_mmu_flush(vm);
	list_for_each_entry_safe(table, next, tables, lru) {
		list_del(&table->lru);
		free_table(table);
	}
}

/*
 * Unmaps [gpa, end) and what large pages stick out of it. With may_sleep the
 * lock may be dropped on the way: the caller has seen to it that nothing is
 * mapped there meanwhile.
 */
void dune_ept_zap(struct dune_vm *vm, u64 gpa, u64 end, bool may_sleep)
{
	struct cursor c = { .gpa = gpa };
	LIST_HEAD(tables);
	u64 zapped = 0;

	while (next_leaf(vm, &c, end)) {
		zap_leaf(&c, &tables);
		c.gpa = ((c.gpa >> shift_of(c.level)) + 1) << shift_of(c.level);
		if (++zapped % BATCH == 0 && may_sleep &&
		    (need_resched() || spin_needbreak(&vm->mmu_lock))) {
			flush_and_free(vm, &tables);
			cond_resched_lock(&vm->mmu_lock);
		}
	}
	if (zapped)
		flush_and_free(vm, &tables);
	dune_count_by(DUNE_STAT_ZAPPED, zapped);
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
	bool any = false;
	u64 seen = 0;

	while (next_leaf(vm, &c, end)) {
		if (READ_ONCE(*c.entry[c.level]) & VMX_EPT_DIRTY_BIT) {
			/* The CPU sets bits in this entry at the same time. */
			clear_bit(ilog2(VMX_EPT_DIRTY_BIT), (unsigned long *)c.entry[c.level]);
			any = true;
		}
		c.gpa = ((c.gpa >> shift_of(c.level)) + 1) << shift_of(c.level);
		if (++seen % BATCH == 0 &&
		    (need_resched() || spin_needbreak(&vm->mmu_lock))) {
			dune_mmu_flush(vm);
			cond_resched_lock(&vm->mmu_lock);
		}
	}
	return any;
}

/* Whether the guest used any of it since the accessed bits were cleared. */
bool dune_ept_young(struct dune_vm *vm, u64 gpa, u64 end, bool clear)
{
	struct cursor c = { .gpa = gpa };
	bool young = false;

	while (next_leaf(vm, &c, end)) {
		if (READ_ONCE(*c.entry[c.level]) & VMX_EPT_ACCESS_BIT) {
			young = true;
			if (!clear)
				break;
			clear_bit(ilog2(VMX_EPT_ACCESS_BIT), (unsigned long *)c.entry[c.level]);
		}
		c.gpa = ((c.gpa >> shift_of(c.level)) + 1) << shift_of(c.level);
	}
	return young;
}
