// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VM descriptor: one process's address space as a guest's memory.
 */
#include <linux/anon_inodes.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "dune.h"

static LIST_HEAD(vms);
static DEFINE_MUTEX(vms_lock);

/* One more VM of vm->mm. Each is an MMU notifier, which costs all that the process does to its memory. */
static int vm_link(struct dune_vm *vm)
{
	struct dune_vm *other;
	int count = 0;

	mutex_lock(&vms_lock);
	list_for_each_entry(other, &vms, node)
		count += other->mm == vm->mm;
	if (count < DUNE_VMS_MAX)
		list_add(&vm->node, &vms);
	mutex_unlock(&vms_lock);
	return count < DUNE_VMS_MAX ? 0 : -EMFILE;
}

static void vm_unlink(struct dune_vm *vm)
{
	mutex_lock(&vms_lock);
	list_del(&vm->node);
	mutex_unlock(&vms_lock);
}

static void vm_free(struct dune_vm *vm)
{
	free_cpumask_var(vm->kick_mask);
	kvfree(vm);
}

static void vm_destroy(struct kref *kref)
{
	struct dune_vm *vm = container_of(kref, struct dune_vm, kref);

	vm_unlink(vm);	/* while it holds the mm: another process may get that address */
	dune_mmu_destroy(vm);
	vm_free(vm);
	dune_vmx_put();
}

void dune_vm_put(struct dune_vm *vm)
{
	kref_put(&vm->kref, vm_destroy);
}

static int copy_window(struct dune_window *window, void __user *user)
{
	if (copy_from_user(window, user, sizeof(*window)))
		return -EFAULT;
	if (window->reserved0 || memchr_inv(window->reserved, 0, sizeof(window->reserved)))
		return -EINVAL;
	return 0;
}

static long vm_ioctl(struct file *file, unsigned int call, unsigned long arg)
{
	struct dune_vm *vm = file->private_data;
	void __user *user = (void __user *)arg;
	struct dune_vcpu_config config;
	struct dune_window window;
	struct dune_range range;
	int r;

	if (!dune_vm_is_ours(vm))
		return -EIO;
	switch (call) {
	case DUNE_VM_MAP_WINDOW:
		r = copy_window(&window, user);
		return r ?: dune_mmu_map_window(vm, &window);
	case DUNE_VM_UNMAP_WINDOW:
		r = copy_window(&window, user);
		return r ?: dune_mmu_unmap_window(vm, &window);
	case DUNE_VM_CLEAR_DIRTY:
		if (copy_from_user(&range, user, sizeof(range)))
			return -EFAULT;
		return dune_mmu_clear_dirty(vm, &range);
	case DUNE_VM_CREATE_VCPU:
		if (copy_from_user(&config, user, sizeof(config)))
			return -EFAULT;
		return dune_vcpu_create(vm, &config);
	default:
		return -ENOTTY;
	}
}

static int vm_release(struct inode *inode, struct file *file)
{
	dune_vm_put(file->private_data);
	return 0;
}

static const struct file_operations vm_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vm_ioctl,
	.release = vm_release,
};

static bool xcr0_valid(u64 xcr0)
{
	u64 avx512 = xcr0 & XFEATURE_MASK_AVX512;

	/*
	 * SDM 1, "Enabling the XSAVE Feature Set": each set needs the one below.
	 * Without SSE a guest could use its registers all the same, and would find
	 * somebody else's in them.
	 */
	return !(xcr0 & ~dune_caps.xcr0) && (xcr0 & XFEATURE_MASK_FPSSE) == XFEATURE_MASK_FPSSE &&
	       (!avx512 || (avx512 == XFEATURE_MASK_AVX512 && (xcr0 & XFEATURE_MASK_YMM)));
}

static int check_config(const struct dune_vm_config *config)
{
	u64 large = DUNE_FEATURE_LARGE_2M | DUNE_FEATURE_LARGE_1G;

	if (memchr_inv(config->reserved, 0, sizeof(config->reserved)) ||
	    (config->features & ~(large | DUNE_FEATURE_PML)))
		return -EINVAL;
	if (config->features & ~dune_caps.features)
		return -EOPNOTSUPP;
	/* A large page would be logged once for all that it holds. */
	if ((config->features & DUNE_FEATURE_PML) && (config->features & large))
		return -EINVAL;
	if (config->xcr0 && !xcr0_valid(config->xcr0))
		return -EINVAL;
	return 0;
}

static struct dune_vm *vm_alloc(const struct dune_vm_config *config)
{
	struct dune_vm *vm = kvzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	int r;

	if (!vm)
		return ERR_PTR(-ENOMEM);
	if (!zalloc_cpumask_var(&vm->kick_mask, GFP_KERNEL_ACCOUNT)) {
		kvfree(vm);
		return ERR_PTR(-ENOMEM);
	}
	kref_init(&vm->kref);
	vm->features = config->features;
	vm->xcr0 = config->xcr0 ?: dune_caps.xcr0;
	vm->max_level = 1;
	if (vm->features & DUNE_FEATURE_LARGE_2M)
		vm->max_level = vm->features & DUNE_FEATURE_LARGE_1G ? 3 : 2;
	vm->mm = current->mm;
	r = vm_link(vm);
	if (r)
		goto failed;
	r = dune_mmu_init(vm);
	if (!r)
		return vm;
	vm_unlink(vm);
failed:
	vm_free(vm);
	return ERR_PTR(r);
}

/* A new VM's descriptor, or an error. */
int dune_vm_create(const struct dune_vm_config *config)
{
	struct dune_vm *vm;
	int r;

	r = check_config(config);
	if (r)
		return r;
	r = dune_vmx_get();
	if (r)
		return r;
	vm = vm_alloc(config);
	if (IS_ERR(vm)) {
		dune_vmx_put();
		return PTR_ERR(vm);
	}
	r = anon_inode_getfd("[dune-vm]", &vm_fops, vm, O_RDWR | O_CLOEXEC);
	if (r < 0)
		dune_vm_put(vm);
	return r;
}
