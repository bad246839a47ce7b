// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counters of all VMs since load: /sys/kernel/debug/dune/stats.
 */
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "dune.h"

DEFINE_PER_CPU(u64 [DUNE_STATS], dune_stats);
static struct dentry *directory;

static const char *const names[DUNE_STATS] = {
	[DUNE_STAT_ENTRIES] = "entries",
	[DUNE_STAT_EXITS_USER] = "exits_to_user",
	[DUNE_STAT_INTERRUPTS] = "external_interrupts",
	[DUNE_STAT_NMIS] = "nmi_exits",
	[DUNE_STAT_FAULTS] = "faults_mapped",
	[DUNE_STAT_FAULTS_LARGE] = "faults_mapped_large",
	[DUNE_STAT_FAULTS_RETRIED] = "faults_retried",
	[DUNE_STAT_INVALIDATIONS] = "invalidations",
	[DUNE_STAT_ZAPPED] = "pages_zapped",
	[DUNE_STAT_SHOOTDOWNS] = "shootdowns",
	[DUNE_STAT_FLUSHES] = "tlb_flushes",
	[DUNE_STAT_KICKS] = "kicks",
	[DUNE_STAT_MIGRATIONS] = "vmcs_loads",
	[DUNE_STAT_PML_DRAINED] = "pml_pages",
	[DUNE_STAT_PML_FULL] = "pml_full_exits",
};

static int stats_show(struct seq_file *file, void *unused)
{
	int i, cpu;

	for (i = 0; i < DUNE_STATS; i++) {
		u64 sum = 0;

		for_each_possible_cpu(cpu)
			sum += per_cpu(dune_stats[i], cpu);
		seq_printf(file, "%s %llu\n", names[i], sum);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(stats);

void dune_stats_init(void)
{
	directory = debugfs_create_dir("dune", NULL);
	debugfs_create_file("stats", 0444, directory, NULL, &stats_fops);
}

void dune_stats_exit(void)
{
	debugfs_remove(directory);
}
