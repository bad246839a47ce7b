/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The objects of the module and what its files offer each other.
 *
 *   main.c   the device and its two calls        mmu.c    windows, faults, notifiers
 *   vmx.c    VMX operation on every CPU          ept.c    the extended page table
 *   vmcs.c   controls, fixed and host state      pml.c    the ring of dirty pages
 *   state.c  the guest's state from and to user  stats.c  counters
 *   enter.c  one entry and exit                  vm.c     the VM descriptor
 *   vcpu.c   the vCPU descriptor, exits
 *
 * Locks, outermost first: vcpu->lock, vm->lock, mm->mmap_lock, vm->mmu_lock.
 */
#ifndef DUNE_H
#define DUNE_H

#include <linux/io.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/spinlock.h>
#include <linux/dune.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>
#include <asm/trapnr.h>

#include "vmx.h"

#define DUNE_CR0_GUEST	(X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | \
			 X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG)
#define DUNE_EFER_GUEST	(EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)

/* VMs of a process: each makes every change of its page table, and every fork, dearer. */
#define DUNE_VMS_MAX	64

#define EPT_LEVELS	4
#define EPT_BITS	48

/* Tables for one new mapping: the levels below the root. */
struct dune_table_cache {
	struct page *pages[EPT_LEVELS - 1];
	int count;
};

/* What is taken out of the EPT, until it is flushed: dune_ept_finish. */
struct dune_sweep {
	struct list_head tables;
	u64 zapped;			/* leaves, and what was detached */
	unsigned int steps;		/* since the last look at who wants the lock */
};
#define DUNE_SWEEP(name)	struct dune_sweep name = { .tables = LIST_HEAD_INIT((name).tables) }

struct dune_vm {
	struct kref kref;
	struct list_head node;		/* in the list of all; vm.c */
	struct mm_struct *mm;		/* the one process; held by the notifier */
	struct mmu_notifier notifier;
	u64 features;			/* DUNE_FEATURE_* in use */
	u64 xcr0;
	int max_level;			/* of EPT leaves: 1 is 4 KiB, 3 is 1 GiB */
	u64 eptp;
	atomic64_t flush_gen;		/* grows with every flush that vCPUs owe */

	spinlock_t mmu_lock;		/* all below, and every EPT entry */
	struct page *root;
	struct list_head detached;	/* parts of the EPT that are out of it, not freed yet */
	bool dead;			/* the address space is gone */
	int invalidations;		/* that are under way, all within: */
	unsigned long inv_start, inv_end;
	struct dune_window windows[DUNE_WINDOWS_MAX];
	int windows_used;		/* places; a free one has size 0 */
	struct list_head vcpus;
	int vcpu_count;
	cpumask_var_t kick_mask;
};

struct dune_vcpu {
	struct dune_vm *vm;
	struct list_head vm_node;
	struct mutex lock;		/* one user at a time; others get EBUSY */

	struct dune_run *run;		/* shared with user space; so is the ring */
	struct dune_ring *ring;
	u64 *ring_gpas;
	u32 ring_entries;
	u32 ring_head;
	unsigned long shared_bytes;

	struct page *vmcs;
	struct page *pml;
	void *xsave;
	u16 vpid;
	bool launched;
	bool has_run_state;		/* SET_STATE was called */
	int cpu;			/* where the VMCS is active, or -1 */
	struct list_head cpu_node;	/* in that CPU's list */
	int guest_cpu;			/* where it is in guest mode, or -1 */
	u64 flushed_gen;

	/* What the VMCS holds, to spare writes. */
	u64 rip, rsp, rflags, fs_base, gs_base;
	u64 host_cr3, host_cr4, host_fs_base, host_perf;
	u32 exceptions;

	/* The guest's where the CPU has no VMCS field. */
	u64 star, lstar, fmask, kernel_gs_base;

	/* The last exit. */
	u32 exit_reason;
	u32 exit_bytes;
	u32 event_info, event_error;
	u64 qualification, gpa, gva;
	/* An event whose delivery the exit interrupted: to be delivered again. */
	u32 redeliver, redeliver_error, redeliver_bytes;

	/* Faults in a row that ended without a page, all at one address. */
	u64 fruitless_gpa;
	int fruitless;

	struct dune_table_cache tables;
};

/* vmcs.c */
int dune_vmcs_alloc(struct dune_vcpu *vcpu);
void dune_vmcs_free(struct dune_vcpu *vcpu);
int dune_vmcs_setup(struct dune_vcpu *vcpu);
bool dune_vmcs_load(struct dune_vcpu *vcpu);
bool dune_vmcs_begin(struct dune_vcpu *vcpu);
void dune_vmcs_end(void);
void dune_vmcs_clear_cpu(void);
void dune_vmcs_cpu_init(int cpu);
int dune_vmcs_init(void);
void dune_vmcs_exit(void);

/* state.c */
int dune_state_set(struct dune_vcpu *vcpu, const struct dune_state *state);
int dune_state_get(struct dune_vcpu *vcpu, struct dune_state *state);
int dune_xsave_set(struct dune_vcpu *vcpu, const struct dune_buffer *buffer);
int dune_xsave_get(struct dune_vcpu *vcpu, const struct dune_buffer *buffer);
void dune_xsave_reset(void *xsave);
u32 dune_xsave_bytes(u64 xcr0);

/* enter.c */
int dune_enter(struct dune_vcpu *vcpu);
void dune_enter_cpu_init(void);
void dune_fpu_probe(void);
asmlinkage int dune_vmenter(struct dune_regs *regs, bool launched);
asmlinkage void dune_vmexit(void);

/* vcpu.c */
int dune_vcpu_create(struct dune_vm *vm, const struct dune_vcpu_config *config);

/* vm.c */
int dune_vm_create(const struct dune_vm_config *config);
void dune_vm_put(struct dune_vm *vm);
static inline bool dune_vm_is_ours(const struct dune_vm *vm)
{
	return vm->mm == current->mm;
}

/* mmu.c */
int dune_mmu_init(struct dune_vm *vm);
void dune_mmu_destroy(struct dune_vm *vm);
int dune_mmu_map_window(struct dune_vm *vm, const struct dune_window *window);
int dune_mmu_unmap_window(struct dune_vm *vm, const struct dune_window *window);
int dune_mmu_clear_dirty(struct dune_vm *vm, const struct dune_range *range);
int dune_mmu_fault(struct dune_vcpu *vcpu, u64 gpa, bool write);
void dune_mmu_flush(struct dune_vm *vm);

/* ept.c: all under vm->mmu_lock but dune_ept_topup, dune_ept_drop and dune_ept_free_detached */
int dune_ept_topup(struct dune_table_cache *cache);
void dune_ept_drop(struct dune_table_cache *cache);
void dune_ept_map(struct dune_vm *vm, struct dune_table_cache *cache, u64 gpa,
		  int level, u64 pfn, bool writable);
void dune_ept_gather(struct dune_vm *vm, u64 gpa, u64 end, bool may_sleep,
		     struct dune_sweep *sweep);
void dune_ept_detach(struct dune_vm *vm, u64 gpa, u64 end, struct dune_sweep *sweep);
void dune_ept_finish(struct dune_vm *vm, struct dune_sweep *sweep);
void dune_ept_zap(struct dune_vm *vm, u64 gpa, u64 end, bool may_sleep);
void dune_ept_free_detached(struct dune_vm *vm);
bool dune_ept_clear_dirty(struct dune_vm *vm, u64 gpa, u64 end);
bool dune_ept_young(struct dune_vm *vm, u64 gpa, u64 end, bool clear, unsigned int *steps);

/* pml.c: with vcpu->lock; dune_pml_drain with the VMCS current, interrupts off */
bool dune_pml_room(struct dune_vcpu *vcpu);
void dune_pml_drain(struct dune_vcpu *vcpu);

/* stats.c */
enum dune_stat {
	DUNE_STAT_ENTRIES,
	DUNE_STAT_EXITS_USER,
	DUNE_STAT_INTERRUPTS,
	DUNE_STAT_NMIS,
	DUNE_STAT_FAULTS,
	DUNE_STAT_FAULTS_LARGE,
	DUNE_STAT_FAULTS_RETRIED,
	DUNE_STAT_INVALIDATIONS,
	DUNE_STAT_ZAPPED,
	DUNE_STAT_SHOOTDOWNS,
	DUNE_STAT_FLUSHES,
	DUNE_STAT_KICKS,
	DUNE_STAT_MIGRATIONS,
	DUNE_STAT_PML_DRAINED,
	DUNE_STAT_PML_FULL,
	DUNE_STATS
};

DECLARE_PER_CPU(u64 [DUNE_STATS], dune_stats);
#define dune_count(stat)	this_cpu_inc(dune_stats[stat])
#define dune_count_by(stat, n)	this_cpu_add(dune_stats[stat], n)

void dune_stats_init(void);
void dune_stats_exit(void);

#endif /* DUNE_H */
