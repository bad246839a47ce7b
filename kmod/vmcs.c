// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VMCS of a vCPU: its memory, on which CPU it is active, its controls and
 * the host state that never changes or changes with the CPU only.
 *
 * The CPU keeps an active VMCS in its caches: before another CPU uses it, or
 * its page is freed, or VMX is turned off, it is flushed by VMCLEAR on the CPU
 * where it is active (SDM 3C, "Maintaining VMCSs").
 */
#include <linux/idr.h>
#include <linux/smp.h>
#include <linux/slab.h>
#include <asm/desc.h>
#include <asm/msr-index.h>

#include "dune.h"

static DEFINE_PER_CPU(struct list_head, active);	/* vCPUs; interrupts off */
static DEFINE_PER_CPU(struct dune_vcpu *, current_vcpu);
static DEFINE_IDA(vpids);
static void *msr_bitmap;

static u64 vmcs_address(const struct dune_vcpu *vcpu)
{
	return page_to_phys(vcpu->vmcs);
}

static void deactivate(struct dune_vcpu *vcpu)
{
	WARN_ON_ONCE(vmx_vmclear(vmcs_address(vcpu)));
	if (this_cpu_read(current_vcpu) == vcpu)
		this_cpu_write(current_vcpu, NULL);
	list_del(&vcpu->cpu_node);
	vcpu->launched = false;
	WRITE_ONCE(vcpu->cpu, -1);
}

/* Interrupts off; on the CPU that VMX is about to leave. */
void dune_vmcs_clear_cpu(void)
{
	struct dune_vcpu *vcpu, *next;

	list_for_each_entry_safe(vcpu, next, this_cpu_ptr(&active), cpu_node)
		deactivate(vcpu);
}

static void deactivate_here(void *info)
{
	struct dune_vcpu *vcpu = info;

	if (vcpu->cpu == smp_processor_id())
		deactivate(vcpu);
}

static void deactivate_anywhere(struct dune_vcpu *vcpu)
{
	int cpu = READ_ONCE(vcpu->cpu);

	/* If that CPU went offline it did this itself. */
	if (cpu >= 0)
		smp_call_function_single(cpu, deactivate_here, vcpu, 1);
}

/* The base of the task-state segment, from the GDT that TR refers to. */
static u64 host_tr_base(const struct desc_ptr *gdt, u16 tr)
{
	const struct ldttss_desc *desc = (void *)(gdt->address + (tr & ~7));

	return desc->base0 | desc->base1 << 16 | (u64)desc->base2 << 24 | (u64)desc->base3 << 32;
}

static void write_host_cpu_state(struct dune_vcpu *vcpu)
{
	struct desc_ptr gdt, idt;
	u16 tr;

	asm volatile("sgdt %0" : "=m" (gdt));
	asm volatile("sidt %0" : "=m" (idt));
	asm volatile("str %0" : "=rm" (tr));
	vmcs_write(HOST_TR_SELECTOR, tr);
	vmcs_write(HOST_TR_BASE, host_tr_base(&gdt, tr));
	vmcs_write(HOST_GDTR_BASE, gdt.address);
	vmcs_write(HOST_IDTR_BASE, idt.address);
	vmcs_write(HOST_GS_BASE, dune_rdmsr(MSR_GS_BASE));
	vmcs_write(HOST_IA32_SYSENTER_CS, (u32)dune_rdmsr(MSR_IA32_SYSENTER_CS));
	vmcs_write(HOST_IA32_SYSENTER_ESP, dune_rdmsr(MSR_IA32_SYSENTER_ESP));
	vmcs_write(HOST_IA32_SYSENTER_EIP, dune_rdmsr(MSR_IA32_SYSENTER_EIP));
}

/*
 * Makes the VMCS current on this CPU. Preemption is off and stays off as long
 * as it is used; interrupts are on. False if VMX is off here: the CPU is about
 * to go, and so should the caller.
 */
bool dune_vmcs_load(struct dune_vcpu *vcpu)
{
	int cpu = smp_processor_id();
	unsigned long flags;
	bool on;

	if (likely(this_cpu_read(current_vcpu) == vcpu))
		return true;
	if (READ_ONCE(vcpu->cpu) != cpu)
		deactivate_anywhere(vcpu);

	local_irq_save(flags);
	on = dune_vmx_on();
	if (unlikely(!on))
		goto out;
	if (vcpu->cpu != cpu) {
		WARN_ON_ONCE(vmx_vmclear(vmcs_address(vcpu)));
		list_add(&vcpu->cpu_node, this_cpu_ptr(&active));
		vcpu->cpu = cpu;
		vcpu->flushed_gen = 0;	/* stale entries of an earlier stay */
		WARN_ON_ONCE(vmx_vmptrld(vmcs_address(vcpu)));
		write_host_cpu_state(vcpu);
		dune_count(DUNE_STAT_MIGRATIONS);
	} else {
		WARN_ON_ONCE(vmx_vmptrld(vmcs_address(vcpu)));
	}
	this_cpu_write(current_vcpu, vcpu);
out:
	local_irq_restore(flags);
	return on;
}

/*
 * The same, for calls that only read and write fields, until dune_vmcs_end.
 * Interrupts are off meanwhile, for a reboot turns VMX off in one.
 */
bool dune_vmcs_begin(struct dune_vcpu *vcpu)
{
	preempt_disable();
	if (dune_vmcs_load(vcpu)) {
		local_irq_disable();
		if (likely(dune_vmx_on()))
			return true;
		local_irq_enable();
	}
	preempt_enable();
	return false;
}

void dune_vmcs_end(void)
{
	local_irq_enable();
	preempt_enable();
}

int dune_vmcs_alloc(struct dune_vcpu *vcpu)
{
	int id;

	vcpu->vmcs = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!vcpu->vmcs)
		return -ENOMEM;
	*(u32 *)page_address(vcpu->vmcs) = dune_caps.revision;
	vcpu->cpu = -1;
	if (dune_caps.vpid) {
		/* With none left it goes without: entries and exits flush. */
		id = ida_alloc_range(&vpids, 1, U16_MAX, GFP_KERNEL);
		vcpu->vpid = id < 0 ? 0 : id;
	}
	return 0;
}

void dune_vmcs_free(struct dune_vcpu *vcpu)
{
	if (!vcpu->vmcs)
		return;
	preempt_disable();
	deactivate_anywhere(vcpu);
	preempt_enable();
	__free_page(vcpu->vmcs);
	vcpu->vmcs = NULL;
	if (vcpu->vpid)
		ida_free(&vpids, vcpu->vpid);
}

static void write_controls(struct dune_vcpu *vcpu)
{
	const struct dune_vmx_caps *c = &dune_caps;
	u32 cpu2 = c->cpu2;

	if (!vcpu->vpid)
		cpu2 &= ~SECONDARY_EXEC_ENABLE_VPID;
	if (vcpu->pml) {
		cpu2 |= SECONDARY_EXEC_ENABLE_PML;
		vmcs_write(PML_ADDRESS, page_to_phys(vcpu->pml));
		vmcs_write(GUEST_PML_INDEX, 511);
	}
	vmcs_write(PIN_BASED_VM_EXEC_CONTROL, c->pin);
	vmcs_write(CPU_BASED_VM_EXEC_CONTROL, c->cpu);
	vmcs_write(SECONDARY_VM_EXEC_CONTROL, cpu2);
	vmcs_write(VM_EXIT_CONTROLS, c->exit);
	vmcs_write(VM_ENTRY_CONTROLS, c->entry);
	if (cpu2 & SECONDARY_EXEC_ENABLE_VPID)
		vmcs_write(VIRTUAL_PROCESSOR_ID, vcpu->vpid);
	if (cpu2 & SECONDARY_EXEC_ENCLS_EXITING)
		vmcs_write(ENCLS_EXITING_BITMAP, ~0ULL);
	vmcs_write(EPT_POINTER, vcpu->vm->eptp);
	vmcs_write(MSR_BITMAP, __pa(msr_bitmap));
	vmcs_write(CR0_GUEST_HOST_MASK, ~0ULL);
	vmcs_write(CR4_GUEST_HOST_MASK, ~0ULL);
	vmcs_write(CR3_TARGET_COUNT, 0);
	vmcs_write(PAGE_FAULT_ERROR_CODE_MASK, 0);
	vmcs_write(PAGE_FAULT_ERROR_CODE_MATCH, 0);
	vmcs_write(VM_EXIT_MSR_STORE_COUNT, 0);
	vmcs_write(VM_EXIT_MSR_LOAD_COUNT, 0);
	vmcs_write(VM_ENTRY_MSR_LOAD_COUNT, 0);
	vmcs_write(VM_ENTRY_INTR_INFO_FIELD, 0);
	vmcs_write(TSC_OFFSET, 0);
}

static void write_host_state(void)
{
	vmcs_write(HOST_CR0, read_cr0());
	vmcs_write(HOST_CS_SELECTOR, __KERNEL_CS);
	vmcs_write(HOST_SS_SELECTOR, __KERNEL_DS);
	vmcs_write(HOST_DS_SELECTOR, 0);
	vmcs_write(HOST_ES_SELECTOR, 0);
	vmcs_write(HOST_FS_SELECTOR, 0);
	vmcs_write(HOST_GS_SELECTOR, 0);
	vmcs_write(HOST_IA32_EFER, dune_rdmsr(MSR_EFER));
	vmcs_write(HOST_RIP, (unsigned long)dune_vmexit);
}

static void write_fixed_guest_state(void)
{
	vmcs_write(VMCS_LINK_POINTER, ~0ULL);
	vmcs_write(GUEST_IA32_DEBUGCTL, 0);
	vmcs_write(GUEST_DR7, 0x400);
	vmcs_write(GUEST_SYSENTER_CS, 0);
	vmcs_write(GUEST_SYSENTER_ESP, 0);
	vmcs_write(GUEST_SYSENTER_EIP, 0);
	vmcs_write(GUEST_ACTIVITY_STATE, 0);
	vmcs_write(GUEST_INTERRUPTIBILITY_INFO, 0);
	vmcs_write(GUEST_PENDING_DBG_EXCEPTIONS, 0);
	if (dune_caps.entry & VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL)
		vmcs_write(GUEST_IA32_PERF_GLOBAL_CTRL, 0);	/* no counter, no PEBS in the guest */
}

/* Everything that stays as it is for the life of the vCPU. */
int dune_vmcs_setup(struct dune_vcpu *vcpu)
{
	if (!dune_vmcs_begin(vcpu))
		return -EAGAIN;
	write_controls(vcpu);
	write_host_state();
	write_fixed_guest_state();
	/* dune_enter writes these when they differ. */
	vcpu->host_cr3 = vcpu->host_cr4 = ~0ULL;
	vmcs_write(HOST_FS_BASE, 0);
	if (dune_caps.exit & VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL)
		vmcs_write(HOST_IA32_PERF_GLOBAL_CTRL, 0);
	vmcs_write(GUEST_FS_BASE, 0);
	vmcs_write(GUEST_GS_BASE, 0);
	vmcs_write(GUEST_RIP, 0);
	vmcs_write(GUEST_RSP, 0);
	vmcs_write(GUEST_RFLAGS, X86_EFLAGS_FIXED);
	vcpu->rflags = X86_EFLAGS_FIXED;
	vcpu->exceptions = 0;
	vmcs_write(EXCEPTION_BITMAP, 0);
	dune_vmcs_end();
	return 0;
}

void dune_vmcs_cpu_init(int cpu)
{
	INIT_LIST_HEAD(&per_cpu(active, cpu));
}

static void allow_msr(u32 msr)
{
	/* SDM 3C, "MSR-Bitmap Address": reads and writes of the high MSRs. */
	clear_bit((msr & 0x1fff) + 1024 * 8, msr_bitmap);
	clear_bit((msr & 0x1fff) + 3072 * 8, msr_bitmap);
}

int dune_vmcs_init(void)
{
	BUILD_BUG_ON(offsetof(struct dune_regs, rbx) != 8 ||
		     offsetof(struct dune_regs, rcx) != 16 ||
		     offsetof(struct dune_regs, rdx) != 24 ||
		     offsetof(struct dune_regs, rsi) != 32 ||
		     offsetof(struct dune_regs, rdi) != 40 ||
		     offsetof(struct dune_regs, rbp) != 56 ||
		     offsetof(struct dune_regs, r15) != 120);	/* entry.S */
	BUILD_BUG_ON(HOST_RSP != 0x6c14);
	msr_bitmap = (void *)__get_free_page(GFP_KERNEL);
	if (!msr_bitmap)
		return -ENOMEM;
	memset(msr_bitmap, 0xff, PAGE_SIZE);
	/* These three are the guest's own; dune_enter and the VMCS switch them. */
	allow_msr(MSR_FS_BASE);
	allow_msr(MSR_GS_BASE);
	allow_msr(MSR_KERNEL_GS_BASE);
	return 0;
}

void dune_vmcs_exit(void)
{
	free_page((unsigned long)msr_bitmap);
	ida_destroy(&vpids);
}
