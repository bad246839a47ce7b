/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The instructions of VMX (SDM 3C, chapter 31, "VMX Instruction Reference"),
 * and what the CPUs of this machine can do with them (vmx.c).
 *
 * All but dune_vmx_get/put need VMX operation on this CPU, so interrupts or
 * preemption off; vmcs_* act on the CPU's current VMCS.
 */
#ifndef DUNE_VMX_H
#define DUNE_VMX_H

#include <linux/types.h>
#include <asm/asm.h>
#include <asm/vmx.h>

/* What was found at load, the same on every CPU. */
struct dune_vmx_caps {
	u32 revision;
	u32 pin, cpu, cpu2, exit, entry;	/* VMCS controls */
	u64 cr0_fixed0, cr0_fixed1;
	u64 cr4_fixed0, cr4_fixed1;
	u64 cr4_guest;		/* CR4 bits a guest may set */
	u64 features;		/* DUNE_FEATURE_* */
	u64 xcr0;		/* XSAVE components a guest may have */
	u32 xsave_bytes;
	u32 mxcsr_mask;
	u32 gpa_bits;
	bool vpid;
	bool flush_l1d;		/* L1TF: flush the L1 data cache at entry */
};

extern struct dune_vmx_caps dune_caps;

int dune_vmx_probe(void);
int dune_vmx_get(void);
void dune_vmx_put(void);
int dune_vmx_init(void);
void dune_vmx_exit(void);
bool dune_vmx_on(void);

/* CF or ZF after a VMX instruction means that it failed. */
static inline bool vmx_vmclear(u64 pa)
{
	bool failed;

	asm volatile("vmclear %1" : "=@ccna" (failed) : "m" (pa) : "memory");
	return failed;
}

static inline bool vmx_vmptrld(u64 pa)
{
	bool failed;

	asm volatile("vmptrld %1" : "=@ccna" (failed) : "m" (pa) : "memory");
	return failed;
}

static inline bool vmx_invept(u64 type, u64 eptp)
{
	struct {
		u64 eptp, zero;
	} operand = { eptp, 0 };
	bool failed;

	asm volatile("invept %1, %2"
		     : "=@ccna" (failed) : "m" (operand), "r" (type) : "memory");
	return failed;
}

#define VMX_INVEPT_CONTEXT	1
#define VMX_INVEPT_GLOBAL	2

void dune_vmwrite_failed(unsigned long field, u64 value);

static __always_inline u64 vmcs_read(unsigned long field)
{
	u64 value;

	asm volatile("vmread %1, %0" : "=r" (value) : "r" (field) : "cc");
	return value;
}

static __always_inline void vmcs_write(unsigned long field, u64 value)
{
	bool failed;

	asm volatile("vmwrite %2, %1" : "=@ccna" (failed) : "r" (field), "rm" (value));
	if (unlikely(failed))
		dune_vmwrite_failed(field, value);
}

static __always_inline u64 dune_rdmsr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a" (low), "=d" (high) : "c" (msr));
	return low | (u64)high << 32;
}

/* The caller has made sure that the CPU takes the value. */
static __always_inline void dune_wrmsr(u32 msr, u64 value)
{
	asm volatile("wrmsr" : : "c" (msr), "a" ((u32)value), "d" ((u32)(value >> 32)) : "memory");
}

#endif /* DUNE_VMX_H */
