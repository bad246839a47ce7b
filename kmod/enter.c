// SPDX-License-Identifier: GPL-2.0-only
/*
 * One entry into the guest and the exit from it.
 *
 * Interrupts are off from the last look at pending work until the host's
 * state is whole again: whatever the exit was, code outside of this file
 * never sees a guest value in the CPU. An external interrupt ends guest mode
 * without being acknowledged and is taken when interrupts come on again.
 *
 * The guest's FPU state is loaded within kernel_fpu_begin/end, so the
 * process's own is safe in its task, and nobody else uses the FPU meanwhile.
 */
#include <linux/hw_breakpoint.h>
#include <linux/sched/signal.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/fsgsbase.h>
#include <asm/msr-index.h>

#include "compat.h"
#include "dune.h"

#define RFLAGS_GUEST	(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | \
			 X86_EFLAGS_SF | X86_EFLAGS_TF | X86_EFLAGS_IF | X86_EFLAGS_DF | \
			 X86_EFLAGS_OF | X86_EFLAGS_IOPL | X86_EFLAGS_NT | X86_EFLAGS_RF | \
			 X86_EFLAGS_AC | X86_EFLAGS_ID)
/*
 * Exceptions that always exit: #MC belongs to the host, and a guest whose
 * #DB or #AC handler raises the same again would never leave the CPU.
 */
#define EXCEPTIONS_HOST	(BIT(X86_TRAP_DB) | BIT(X86_TRAP_AC) | BIT(X86_TRAP_MC))
#define THREAD_WORK	(_TIF_SIGPENDING | _TIF_NOTIFY_SIGNAL | _TIF_NOTIFY_RESUME)

/* What SYSCALL uses: constant, and the same for all of a CPU's tasks. */
struct host_msrs {
	u64 star, lstar, fmask;
};

/* What an exit does not bring back. */
struct host_state {
	struct desc_ptr gdt;
	u64 kernel_gs_base, debugctl;
	u16 ds, es, fs, gs, ldt;
};

static DEFINE_PER_CPU(struct host_msrs, host_msrs);
static u64 host_xcr0;

void dune_enter_cpu_init(void)
{
	struct host_msrs *host = this_cpu_ptr(&host_msrs);

	host->star = dune_rdmsr(MSR_STAR);
	host->lstar = dune_rdmsr(MSR_LSTAR);
	host->fmask = dune_rdmsr(MSR_SYSCALL_MASK);
}

/* Once, at load. */
void dune_fpu_probe(void)
{
	static u8 image[512] __aligned(16);

	host_xcr0 = boot_cpu_has(X86_FEATURE_XSAVE) ? xgetbv(0) : 0;
	kernel_fpu_begin();
	asm volatile("fxsave64 %0" : "+m" (image));
	kernel_fpu_end();
	dune_caps.mxcsr_mask = *(u32 *)(image + 28) ?: 0xffbf;
}

/* False if the CPU found fault with the image. */
static bool load_fpu(const void *image, u64 xcr0)
{
	if (unlikely(!xcr0)) {
		asm goto("1: fxrstor64 %0\n\t"
			 _ASM_EXTABLE(1b, %l[failed])
			 : : "m" (*(const u8 (*)[512])image) : : failed);
		return true;
	}
	asm goto("1: xrstor64 %0\n\t"
		 _ASM_EXTABLE(1b, %l[failed])
		 : : "m" (*(const u8 (*)[PAGE_SIZE])image), "a" ((u32)xcr0),
		   "d" ((u32)(xcr0 >> 32)) : : failed);
	return true;
failed:
	return false;
}

static void save_fpu(void *image, u64 xcr0)
{
	if (unlikely(!xcr0))
		asm volatile("fxsave64 %0" : "+m" (*(u8 (*)[512])image));
	else
		asm volatile("xsave64 %0"
			     : "+m" (*(u8 (*)[PAGE_SIZE])image)
			     : "a" ((u32)xcr0), "d" ((u32)(xcr0 >> 32)));
}

static u64 user_fs_base(void)
{
	return boot_cpu_has(X86_FEATURE_FSGSBASE) ? rdfsbase() : dune_rdmsr(MSR_FS_BASE);
}

static void write_if_new(unsigned long field, u64 *cached, u64 value)
{
	if (*cached != value) {
		vmcs_write(field, value);
		*cached = value;
	}
}

/* The host's side of the VMCS that may have changed since the last entry. */
static void refresh_host_fields(struct dune_vcpu *vcpu)
{
	write_if_new(HOST_CR3, &vcpu->host_cr3, __read_cr3());
	write_if_new(HOST_CR4, &vcpu->host_cr4, __read_cr4());
	write_if_new(HOST_FS_BASE, &vcpu->host_fs_base, user_fs_base());
	if (dune_caps.exit & VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL)
		write_if_new(HOST_IA32_PERF_GLOBAL_CTRL, &vcpu->host_perf,
			     dune_rdmsr(MSR_CORE_PERF_GLOBAL_CTRL));
}

static void save_host(struct host_state *host)
{
	asm volatile("sgdt %0" : "=m" (host->gdt));
	asm volatile("sldt %0" : "=rm" (host->ldt));
	savesegment(ds, host->ds);
	savesegment(es, host->es);
	savesegment(fs, host->fs);
	savesegment(gs, host->gs);
	host->kernel_gs_base = dune_rdmsr(MSR_KERNEL_GS_BASE);
	host->debugctl = dune_rdmsr(MSR_IA32_DEBUGCTLMSR);
}

/*
 * An exit leaves the GDT's and the TSS's limit, DR7, DEBUGCTL, the LDT and the
 * data segments at fixed values (SDM 3C, "Loading Host State").
 */
static void restore_host(const struct host_state *host, u64 fs_base)
{
	asm volatile("lgdt %0" : : "m" (host->gdt));
	invalidate_tss_limit();
	if (unlikely(host->ldt))
		asm volatile("lldt %0" : : "rm" (host->ldt));
	if (unlikely(host->ds | host->es | host->fs | host->gs)) {
		loadsegment(ds, host->ds);
		loadsegment(es, host->es);
		if (host->fs) {
			loadsegment(fs, host->fs);
			dune_wrmsr(MSR_FS_BASE, fs_base);
		}
		if (host->gs)
			load_gs_index(host->gs);
	}
	dune_wrmsr(MSR_KERNEL_GS_BASE, host->kernel_gs_base);
	if (unlikely(host->debugctl))
		dune_wrmsr(MSR_IA32_DEBUGCTLMSR, host->debugctl);
	if (unlikely(hw_breakpoint_active()))
		hw_breakpoint_restore();
}

static void switch_msr(u32 msr, u64 from, u64 to)
{
	if (from != to)
		dune_wrmsr(msr, to);
}

static void load_guest(struct dune_vcpu *vcpu)
{
	const struct host_msrs *host = this_cpu_ptr(&host_msrs);
	u64 cr2;

	switch_msr(MSR_STAR, host->star, vcpu->star);
	switch_msr(MSR_LSTAR, host->lstar, vcpu->lstar);
	switch_msr(MSR_SYSCALL_MASK, host->fmask, vcpu->fmask);
	dune_wrmsr(MSR_KERNEL_GS_BASE, vcpu->kernel_gs_base);
	cr2 = READ_ONCE(vcpu->run->cr2);
	if (native_read_cr2() != cr2)
		native_write_cr2(cr2);
	if (vcpu->vm->xcr0 != host_xcr0)
		xsetbv(0, vcpu->vm->xcr0);
	if (dune_caps.flush_l1d)
		dune_wrmsr(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
}

static void unload_guest(struct dune_vcpu *vcpu)
{
	const struct host_msrs *host = this_cpu_ptr(&host_msrs);

	if (vcpu->vm->xcr0 != host_xcr0)
		xsetbv(0, host_xcr0);
	WRITE_ONCE(vcpu->run->cr2, native_read_cr2());
	vcpu->kernel_gs_base = dune_rdmsr(MSR_KERNEL_GS_BASE);
	switch_msr(MSR_STAR, vcpu->star, host->star);
	switch_msr(MSR_LSTAR, vcpu->lstar, host->lstar);
	switch_msr(MSR_SYSCALL_MASK, vcpu->fmask, host->fmask);
}

/* What user space wants done first; -EINVAL if it may not. */
static int take_requests(struct dune_vcpu *vcpu, u32 *inject, u32 *error)
{
	u32 flags = READ_ONCE(vcpu->run->flags);

	*inject = READ_ONCE(vcpu->run->inject);
	*error = READ_ONCE(vcpu->run->inject_error);
	if (flags & ~DUNE_RUN_FORGET_EVENT)
		return -EINVAL;
	if (*inject &&
	    ((*inject & ~(DUNE_EVENT_VALID | DUNE_EVENT_HAS_ERROR | DUNE_EVENT_EXCEPTION | 31)) ||
	     !(*inject & DUNE_EVENT_VALID) || (*inject & 0x700) != DUNE_EVENT_EXCEPTION ||
	     (*inject & 31) == X86_TRAP_NMI))
		return -EINVAL;
	if (flags) {
		vcpu->redeliver = 0;
		WRITE_ONCE(vcpu->run->flags, 0);
	}
	return 0;
}

static void write_event(struct dune_vcpu *vcpu, u32 inject, u32 inject_error)
{
	u32 info = inject ?: vcpu->redeliver;

	if (likely(!info))
		return;
	vmcs_write(VM_ENTRY_INTR_INFO_FIELD, info);
	vmcs_write(VM_ENTRY_EXCEPTION_ERROR_CODE, inject ? inject_error : vcpu->redeliver_error);
	vmcs_write(VM_ENTRY_INSTRUCTION_LEN, inject ? 0 : vcpu->redeliver_bytes);
	if (inject)
		vmcs_write(GUEST_INTERRUPTIBILITY_INFO, 0);
}

static void write_registers(struct dune_vcpu *vcpu)
{
	const struct dune_run *run = vcpu->run;
	u32 exceptions = READ_ONCE(run->exceptions) | EXCEPTIONS_HOST;

	write_if_new(GUEST_RIP, &vcpu->rip, READ_ONCE(run->regs.rip));
	write_if_new(GUEST_RSP, &vcpu->rsp, READ_ONCE(run->regs.rsp));
	write_if_new(GUEST_RFLAGS, &vcpu->rflags,
		     (READ_ONCE(run->regs.rflags) & RFLAGS_GUEST) | X86_EFLAGS_FIXED);
	write_if_new(GUEST_FS_BASE, &vcpu->fs_base, READ_ONCE(run->fs_base));
	write_if_new(GUEST_GS_BASE, &vcpu->gs_base, READ_ONCE(run->gs_base));
	if (vcpu->exceptions != exceptions) {
		vmcs_write(EXCEPTION_BITMAP, exceptions);
		vcpu->exceptions = exceptions;
	}
}

static void read_exit(struct dune_vcpu *vcpu)
{
	struct dune_run *run = vcpu->run;
	u32 vectoring;

	vcpu->exit_reason = vmcs_read(VM_EXIT_REASON);
	/* A refused entry writes this and the qualification; what was to be delivered still is. */
	if (unlikely(vcpu->exit_reason & VMX_EXIT_REASONS_FAILED_VMENTRY)) {
		vcpu->qualification = vmcs_read(EXIT_QUALIFICATION);
		vcpu->exit_bytes = 0;
		vmcs_write(VM_ENTRY_INTR_INFO_FIELD, 0);
		return;
	}
	/* From here on the basic reason only: the bits above say what else was the case. */
	vcpu->exit_reason &= 0xffff;
	vcpu->rip = vmcs_read(GUEST_RIP);
	vcpu->rsp = vmcs_read(GUEST_RSP);
	vcpu->rflags = vmcs_read(GUEST_RFLAGS);
	vcpu->fs_base = vmcs_read(GUEST_FS_BASE);
	vcpu->gs_base = vmcs_read(GUEST_GS_BASE);
	WRITE_ONCE(run->regs.rip, vcpu->rip);
	WRITE_ONCE(run->regs.rsp, vcpu->rsp);
	WRITE_ONCE(run->regs.rflags, vcpu->rflags);
	WRITE_ONCE(run->fs_base, vcpu->fs_base);
	WRITE_ONCE(run->gs_base, vcpu->gs_base);

	switch (vcpu->exit_reason) {
	case EXIT_REASON_EXTERNAL_INTERRUPT:
		break;
	case EXIT_REASON_EXCEPTION_NMI:
		vcpu->event_info = vmcs_read(VM_EXIT_INTR_INFO);
		vcpu->event_error = vmcs_read(VM_EXIT_INTR_ERROR_CODE);
		vcpu->exit_bytes = vmcs_read(VM_EXIT_INSTRUCTION_LEN);
		vcpu->qualification = vmcs_read(EXIT_QUALIFICATION);
		break;
	case EXIT_REASON_EPT_VIOLATION:
	case EXIT_REASON_EPT_MISCONFIG:
		vcpu->gpa = vmcs_read(GUEST_PHYSICAL_ADDRESS);
		vcpu->gva = vmcs_read(GUEST_LINEAR_ADDRESS);
		fallthrough;
	default:
		vcpu->qualification = vmcs_read(EXIT_QUALIFICATION);
		vcpu->exit_bytes = vmcs_read(VM_EXIT_INSTRUCTION_LEN);
	}

	/* The exit came while an event was being delivered: deliver it again. */
	vectoring = vmcs_read(IDT_VECTORING_INFO_FIELD);
	vcpu->redeliver = 0;
	if (unlikely(vectoring & VECTORING_INFO_VALID_MASK)) {
		vcpu->redeliver = vectoring & ~BIT(12);		/* undefined here, reserved there */
		vcpu->redeliver_error = vmcs_read(IDT_VECTORING_ERROR_CODE);
		vcpu->redeliver_bytes = vmcs_read(VM_EXIT_INSTRUCTION_LEN);
	}
}

/* What is the host's own is handled as if it had interrupted this code. */
static void handle_host_event(const struct dune_vcpu *vcpu)
{
	if (vcpu->exit_reason == EXIT_REASON_EXCEPTION_NMI) {
		u32 type = vcpu->event_info & INTR_INFO_INTR_TYPE_MASK;

		if (type == INTR_TYPE_NMI_INTR)
			asm volatile("int $2" : : : "memory");
		else if ((vcpu->event_info & (INTR_INFO_INTR_TYPE_MASK | INTR_INFO_VECTOR_MASK)) ==
			 (INTR_TYPE_HARD_EXCEPTION | X86_TRAP_MC))
			asm volatile("int $18" : : : "memory");
	} else if ((u16)vcpu->exit_reason == EXIT_REASON_MCE_DURING_VMENTRY) {
		asm volatile("int $18" : : : "memory");
	}
}

/* Interrupts off, the VMCS current. */
static int enter_and_exit(struct dune_vcpu *vcpu, u32 inject, u32 inject_error)
{
	struct dune_vm *vm = vcpu->vm;
	struct host_state host;
	u64 gen;
	int r;

	refresh_host_fields(vcpu);
	write_registers(vcpu);
	write_event(vcpu, inject, inject_error);
	save_host(&host);
	load_guest(vcpu);

	/*
	 * dune_mmu_flush: first the generation, then the interrupt to whoever
	 * is in guest mode. Here: first "in guest mode", then the generation.
	 * One of the two sees the other.
	 */
	WRITE_ONCE(vcpu->guest_cpu, smp_processor_id());
	smp_mb();
	gen = atomic64_read(&vm->flush_gen);
	if (unlikely(gen != vcpu->flushed_gen)) {
		vmx_invept(VMX_INVEPT_CONTEXT, vm->eptp);
		vcpu->flushed_gen = gen;
		dune_count(DUNE_STAT_FLUSHES);
	}

	r = dune_vmenter(&vcpu->run->regs, vcpu->launched);

	unload_guest(vcpu);
	if (likely(!r)) {
		read_exit(vcpu);
		vcpu->launched |= !(vcpu->exit_reason & VMX_EXIT_REASONS_FAILED_VMENTRY);
		handle_host_event(vcpu);
		if (vcpu->pml)
			dune_pml_drain(vcpu);
	} else {
		vcpu->qualification = vmcs_read(VM_INSTRUCTION_ERROR);
		vmcs_write(VM_ENTRY_INTR_INFO_FIELD, 0);
	}
	smp_store_release(&vcpu->guest_cpu, -1);
	restore_host(&host, vcpu->host_fs_base);
	dune_count(DUNE_STAT_ENTRIES);
	return r;
}

/*
 * Runs the guest until its next exit, whatever that is. 0: there was one, and
 * it is in *vcpu. 1: the CPU refused to enter; qualification has the error.
 * -EINTR: user space is wanted. -EAGAIN: try again outside.
 */
int dune_enter(struct dune_vcpu *vcpu)
{
	u32 inject, inject_error;
	unsigned long work;
	int r;

	r = take_requests(vcpu, &inject, &inject_error);
	if (r)
		return r;

	kernel_fpu_begin();
	if (!dune_vmcs_load(vcpu)) {
		kernel_fpu_end();
		return -EAGAIN;
	}
	if (WARN_ON_ONCE(!load_fpu(vcpu->xsave, vcpu->vm->xcr0))) {
		kernel_fpu_end();
		return -EIO;
	}
	local_irq_disable();
	work = read_thread_flags();
	if (READ_ONCE(vcpu->run->immediate_exit) || (work & THREAD_WORK))
		r = -EINTR;
	else if ((work & DUNE_TIF_RESCHED) || !dune_vmx_on())
		r = -EAGAIN;
	else
		r = enter_and_exit(vcpu, inject, inject_error);
	if (r >= 0)
		save_fpu(vcpu->xsave, vcpu->vm->xcr0);
	local_irq_enable();	/* a pending interrupt is taken here */
	if (r == 0 && inject && !(vcpu->exit_reason & VMX_EXIT_REASONS_FAILED_VMENTRY))
		WRITE_ONCE(vcpu->run->inject, 0);
	kernel_fpu_end();
	return r;
}
