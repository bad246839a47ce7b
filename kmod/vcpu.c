// SPDX-License-Identifier: GPL-2.0-only
/*
 * The vCPU descriptor: its life, its calls, and what becomes of its exits.
 */
#include <linux/anon_inodes.h>
#include <linux/fs.h>
#include <linux/log2.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "dune.h"

static void to_user(struct dune_vcpu *vcpu, u32 reason)
{
	struct dune_run *run = vcpu->run;

	WRITE_ONCE(run->exit_reason, reason);
	WRITE_ONCE(run->vmx_reason, vcpu->exit_reason & 0xffff);
	WRITE_ONCE(run->qualification, vcpu->qualification);
	WRITE_ONCE(run->instruction_bytes, vcpu->exit_bytes);
	dune_count(DUNE_STAT_EXITS_USER);
}

/* 1: user space must see it; 0: the page is there now; or an error. */
static int handle_ept_violation(struct dune_vcpu *vcpu)
{
	u64 q = vcpu->qualification;
	u32 access = 0;
	int r;

	r = dune_mmu_fault(vcpu, vcpu->gpa, q & EPT_VIOLATION_ACC_WRITE);
	if (!r || r == -EINTR || r == -ENOMEM)
		return r;

	access |= q & EPT_VIOLATION_ACC_READ ? DUNE_ACCESS_READ : 0;
	access |= q & EPT_VIOLATION_ACC_WRITE ? DUNE_ACCESS_WRITE : 0;
	access |= q & EPT_VIOLATION_ACC_INSTR ? DUNE_ACCESS_EXECUTE : 0;
	if (q & EPT_VIOLATION_GVA_IS_VALID) {
		access |= DUNE_ACCESS_GVA_VALID;
		if (!(q & EPT_VIOLATION_GVA_TRANSLATED))
			access |= DUNE_ACCESS_PAGE_WALK;
	}
	WRITE_ONCE(vcpu->run->gpa, vcpu->gpa);
	WRITE_ONCE(vcpu->run->gva, access & DUNE_ACCESS_GVA_VALID ? vcpu->gva : 0);
	WRITE_ONCE(vcpu->run->access, access);
	WRITE_ONCE(vcpu->run->error, -r);
	to_user(vcpu, DUNE_EXIT_MEMORY);
	return 1;
}

static int handle_exception(struct dune_vcpu *vcpu)
{
	u32 type = vcpu->event_info & INTR_INFO_INTR_TYPE_MASK;

	/* dune_enter has given these to the host. */
	if (type == INTR_TYPE_NMI_INTR) {
		dune_count(DUNE_STAT_NMIS);
		return 0;
	}
	if (type == INTR_TYPE_HARD_EXCEPTION &&
	    (vcpu->event_info & INTR_INFO_VECTOR_MASK) == X86_TRAP_MC)
		return 0;
	WRITE_ONCE(vcpu->run->event_info, vcpu->event_info);
	WRITE_ONCE(vcpu->run->event_error,
		   vcpu->event_info & INTR_INFO_DELIVER_CODE_MASK ? vcpu->event_error : 0);
	to_user(vcpu, DUNE_EXIT_EXCEPTION);
	return 1;
}

/* 1: to user space; 0: enter again; or an error. */
static int handle_exit(struct dune_vcpu *vcpu)
{
	struct dune_run *run = vcpu->run;

	if (unlikely(vcpu->exit_reason & VMX_EXIT_REASONS_FAILED_VMENTRY)) {
		WRITE_ONCE(run->error, 0);
		to_user(vcpu, DUNE_EXIT_FAIL_ENTRY);
		return 1;
	}
	switch (vcpu->exit_reason) {
	case EXIT_REASON_VMCALL:
		WRITE_ONCE(run->regs.rip, vcpu->rip + vcpu->exit_bytes);
		to_user(vcpu, DUNE_EXIT_VMCALL);
		return 1;
	case EXIT_REASON_EPT_VIOLATION:
		return handle_ept_violation(vcpu);
	case EXIT_REASON_EXTERNAL_INTERRUPT:
		dune_count(DUNE_STAT_INTERRUPTS);
		return 0;
	case EXIT_REASON_EXCEPTION_NMI:
		return handle_exception(vcpu);
	case EXIT_REASON_PML_FULL:
		dune_count(DUNE_STAT_PML_FULL);
		return 0;
	case EXIT_REASON_TRIPLE_FAULT:
		to_user(vcpu, DUNE_EXIT_SHUTDOWN);
		return 1;
	case EXIT_REASON_CPUID:
		to_user(vcpu, DUNE_EXIT_CPUID);
		return 1;
	case EXIT_REASON_HLT:
		to_user(vcpu, DUNE_EXIT_HLT);
		return 1;
	case EXIT_REASON_IO_INSTRUCTION:
		to_user(vcpu, DUNE_EXIT_IO);
		return 1;
	case EXIT_REASON_MSR_READ:
		to_user(vcpu, DUNE_EXIT_RDMSR);
		return 1;
	case EXIT_REASON_MSR_WRITE:
		to_user(vcpu, DUNE_EXIT_WRMSR);
		return 1;
	case EXIT_REASON_CR_ACCESS:
		to_user(vcpu, DUNE_EXIT_CR);
		return 1;
	case EXIT_REASON_XSETBV:
		to_user(vcpu, DUNE_EXIT_XSETBV);
		return 1;
	case EXIT_REASON_EPT_MISCONFIG:
		WARN_ONCE(1, "dune: EPT misconfiguration at guest-physical %#llx\n", vcpu->gpa);
		return -EIO;
	default:
		to_user(vcpu, DUNE_EXIT_OTHER);
		return 1;
	}
}

/* Looked at once a call: nothing is done by them, so a change on the way is nobody's loss. */
static bool reserved_is_zero(const struct dune_run *run)
{
	u64 any = READ_ONCE(run->reserved0) | READ_ONCE(run->reserved4);
	int i;

	for (i = 0; i < ARRAY_SIZE(run->reserved1); i++)
		any |= READ_ONCE(run->reserved1[i]);
	return !any;
}

static int vcpu_run(struct dune_vcpu *vcpu)
{
	int r;

	if (!vcpu->has_run_state || !reserved_is_zero(vcpu->run))
		return -EINVAL;
	for (;;) {
		if (vcpu->pml && !dune_pml_room(vcpu)) {
			to_user(vcpu, DUNE_EXIT_RING_FULL);
			return 0;
		}
		r = dune_enter(vcpu);
		if (likely(r == 0))
			r = handle_exit(vcpu);
		else if (r == 1) {
			WRITE_ONCE(vcpu->run->error, vcpu->qualification);
			to_user(vcpu, DUNE_EXIT_FAIL_ENTRY);
		}
		if (r > 0)
			return 0;
		/* VMX may stay off (a reboot, a suspend that went wrong): no endless loop. */
		if (r == -EAGAIN && signal_pending(current))
			r = -EINTR;
		if (r == -EAGAIN || r == 0) {
			/*
			 * A guest that only computes comes past here at every
			 * interrupt, and never to user space: RCU-tasks, on which
			 * tracing and BPF wait, has to be told that it may go on.
			 */
			if (read_thread_flags() & DUNE_TIF_RESCHED)
				schedule();	/* cond_resched() does not look at the lazy flag */
			cond_resched_tasks_rcu_qs();
			continue;
		}
		if (r == -EINTR)
			WRITE_ONCE(vcpu->run->exit_reason, DUNE_EXIT_INTERRUPTED);
		return r;
	}
}

static int set_state(struct dune_vcpu *vcpu, void __user *arg)
{
	struct dune_state state;

	if (copy_from_user(&state, arg, sizeof(state)))
		return -EFAULT;
	return dune_state_set(vcpu, &state);
}

static int get_state(struct dune_vcpu *vcpu, void __user *arg)
{
	struct dune_state state;
	int r = dune_state_get(vcpu, &state);

	if (r)
		return r;
	return copy_to_user(arg, &state, sizeof(state)) ? -EFAULT : 0;
}

static long vcpu_ioctl(struct file *file, unsigned int call, unsigned long arg)
{
	struct dune_vcpu *vcpu = file->private_data;
	void __user *user = (void __user *)arg;
	struct dune_buffer buffer;
	long r;

	if (unlikely(!dune_vm_is_ours(vcpu->vm)))
		return -EIO;
	if (!mutex_trylock(&vcpu->lock))
		return -EBUSY;
	switch (call) {
	case DUNE_VCPU_RUN:
		r = arg ? -EINVAL : vcpu_run(vcpu);
		break;
	case DUNE_VCPU_SET_STATE:
		r = set_state(vcpu, user);
		break;
	case DUNE_VCPU_GET_STATE:
		r = get_state(vcpu, user);
		break;
	case DUNE_VCPU_SET_XSAVE:
	case DUNE_VCPU_GET_XSAVE:
		if (copy_from_user(&buffer, user, sizeof(buffer)))
			r = -EFAULT;
		else if (call == DUNE_VCPU_SET_XSAVE)
			r = dune_xsave_set(vcpu, &buffer);
		else
			r = dune_xsave_get(vcpu, &buffer);
		break;
	default:
		r = -ENOTTY;
	}
	mutex_unlock(&vcpu->lock);
	return r;
}

/* The child of a fork has no use for it, and must not write into it. */
static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct dune_vcpu *vcpu = file->private_data;
	unsigned long i, pages = vcpu->shared_bytes >> PAGE_SHIFT;
	int r;

	if (!dune_vm_is_ours(vcpu->vm))
		return -EIO;
	if (!(vma->vm_flags & VM_SHARED) || (vma->vm_flags & VM_EXEC) ||
	    vma->vm_pgoff > pages || vma_pages(vma) > pages - vma->vm_pgoff)
		return -EINVAL;
	/* VM_IO: MADV_DOFORK is refused. */
	vm_flags_set(vma, VM_IO | VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	for (i = 0; i < vma_pages(vma); i++) {
		void *shared = (void *)vcpu->run + ((vma->vm_pgoff + i) << PAGE_SHIFT);

		r = vm_insert_page(vma, vma->vm_start + (i << PAGE_SHIFT),
				   vmalloc_to_page(shared));
		if (r)
			return r;
	}
	return 0;
}

static void vcpu_free(struct dune_vcpu *vcpu)
{
	dune_vmcs_free(vcpu);
	dune_ept_drop(&vcpu->tables);
	if (vcpu->pml)
		__free_page(vcpu->pml);
	if (vcpu->xsave)
		free_pages_exact(vcpu->xsave, dune_caps.xsave_bytes);
	vfree(vcpu->run);
	kfree(vcpu);
}

/* From here on invalidations know of it, and it holds the VM. */
static bool vcpu_link(struct dune_vcpu *vcpu)
{
	struct dune_vm *vm = vcpu->vm;
	bool room;

	spin_lock(&vm->mmu_lock);
	room = vm->vcpu_count < DUNE_VCPUS_MAX;
	if (room) {
		list_add(&vcpu->vm_node, &vm->vcpus);
		vm->vcpu_count++;
		kref_get(&vm->kref);
	}
	spin_unlock(&vm->mmu_lock);
	return room;
}

static void vcpu_unlink(struct dune_vcpu *vcpu)
{
	spin_lock(&vcpu->vm->mmu_lock);
	list_del(&vcpu->vm_node);
	vcpu->vm->vcpu_count--;
	spin_unlock(&vcpu->vm->mmu_lock);
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct dune_vcpu *vcpu = file->private_data;
	struct dune_vm *vm = vcpu->vm;

	vcpu_unlink(vcpu);
	vcpu_free(vcpu);
	dune_vm_put(vm);
	return 0;
}

static const struct file_operations vcpu_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vcpu_ioctl,
	.mmap = vcpu_mmap,
	.release = vcpu_release,
};

static int check_config(const struct dune_vm *vm, const struct dune_vcpu_config *config)
{
	if (config->flags || memchr_inv(config->reserved, 0, sizeof(config->reserved)))
		return -EINVAL;
	if (!(vm->features & DUNE_FEATURE_PML))
		return config->ring_entries ? -EINVAL : 0;
	if (!is_power_of_2(config->ring_entries) || config->ring_entries < 1024 ||
	    config->ring_entries > 65536)
		return -EINVAL;
	return 0;
}

static struct dune_vcpu *vcpu_alloc(struct dune_vm *vm, const struct dune_vcpu_config *config)
{
	struct dune_vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);

	if (!vcpu)
		return NULL;
	vcpu->vm = vm;
	vcpu->guest_cpu = -1;
	mutex_init(&vcpu->lock);
	vcpu->shared_bytes = PAGE_SIZE;
	if (config->ring_entries)
		vcpu->shared_bytes = DUNE_RING_ENTRIES + config->ring_entries * sizeof(u64);
	/* One area: the run page, the ring, its entries. */
	vcpu->run = __vmalloc(vcpu->shared_bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	vcpu->xsave = alloc_pages_exact(dune_caps.xsave_bytes, GFP_KERNEL_ACCOUNT);
	if (!vcpu->run || !vcpu->xsave)
		goto failed;
	dune_xsave_reset(vcpu->xsave);
	if (config->ring_entries) {
		vcpu->ring = (void *)vcpu->run + DUNE_RING_OFFSET;
		vcpu->ring_gpas = (void *)vcpu->run + DUNE_RING_ENTRIES;
		vcpu->ring_entries = config->ring_entries;
		vcpu->ring->entries = config->ring_entries;
		vcpu->pml = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
		if (!vcpu->pml)
			goto failed;
	}
	if (dune_vmcs_alloc(vcpu))
		goto failed;
	return vcpu;
failed:
	vcpu_free(vcpu);
	return NULL;
}

/* A new vCPU's descriptor, or an error. */
int dune_vcpu_create(struct dune_vm *vm, const struct dune_vcpu_config *config)
{
	struct dune_vcpu *vcpu;
	int r;

	BUILD_BUG_ON(sizeof(struct dune_run) > DUNE_RING_OFFSET);
	r = check_config(vm, config);
	if (r)
		return r;
	vcpu = vcpu_alloc(vm, config);
	if (!vcpu)
		return -ENOMEM;
	while ((r = dune_vmcs_setup(vcpu)) == -EAGAIN && !signal_pending(current))
		schedule();
	if (r) {
		vcpu_free(vcpu);
		return -EINTR;
	}
	if (!vcpu_link(vcpu)) {
		vcpu_free(vcpu);
		return -EMFILE;
	}
	r = anon_inode_getfd("[dune-vcpu]", &vcpu_fops, vcpu, O_RDWR | O_CLOEXEC);
	if (r < 0) {
		vcpu_unlink(vcpu);
		vcpu_free(vcpu);
		dune_vm_put(vm);
	}
	return r;
}
