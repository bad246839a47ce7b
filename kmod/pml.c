// SPDX-License-Identifier: GPL-2.0-only
/*
 * The page-modification log: the CPU writes the address of every page whose
 * EPT dirty bit it sets into a page of 512 entries, downwards, and exits when
 * that is full (SDM 3C, "Page-Modification Logging"). Every exit empties it
 * into the ring that user space reads, so whoever has made a vCPU exit finds
 * everything in the ring.
 */
#include "dune.h"

#define LOG_ENTRIES	512

/* Whether whatever the next entry logs will fit. The tail is user space's word. */
bool dune_pml_room(struct dune_vcpu *vcpu)
{
	u32 used = vcpu->ring_head - READ_ONCE(vcpu->ring->tail);

	return used <= vcpu->ring_entries && vcpu->ring_entries - used >= LOG_ENTRIES;
}

void dune_pml_drain(struct dune_vcpu *vcpu)
{
	const u64 *log = page_address(vcpu->pml);
	u16 index = vmcs_read(GUEST_PML_INDEX);
	int i, count;

	if (index == LOG_ENTRIES - 1)
		return;
	/* The next entry to be used; below the first one it has wrapped. */
	count = index < LOG_ENTRIES ? LOG_ENTRIES - 1 - index : LOG_ENTRIES;
	for (i = LOG_ENTRIES - 1; i >= LOG_ENTRIES - count; i--)
		vcpu->ring_gpas[vcpu->ring_head++ & (vcpu->ring_entries - 1)] = log[i] & PAGE_MASK;
	smp_store_release(&vcpu->ring->head, vcpu->ring_head);
	vmcs_write(GUEST_PML_INDEX, LOG_ENTRIES - 1);
	dune_count_by(DUNE_STAT_PML_DRAINED, count);
}
