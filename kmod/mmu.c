// SPDX-License-Identifier: GPL-2.0-only
/*
 * Windows of the process's address space in the guest's physical one, filled
 * by faults and kept right by an MMU notifier.
 *
 * No page is ever pinned. The rule instead: an EPT entry may be there only
 * while the process's page table has the same page, and writable only while
 * that entry is writable and dirty. Everything that changes the process's page
 * table (unmap, protect, fork, migration, KSM, swap, write-back, userfaultfd,
 * soft-dirty) calls invalidate_range_start before and _end after. A fault
 * reads the page table, and maps what it finds, with mmu_lock held and while
 * no invalidation of that address is under way: whoever changes the page
 * table later comes to range_start later, and takes the mapping out.
 *
 * Because the process's entry is dirty already, write-back and swap need not
 * be told what the guest writes: they invalidate before they clean.
 */
#include <linux/hugetlb.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "dune.h"

/*
 * In dune_window.flags, beside those of the ABI: nothing is mapped there any
 * more. The window stays where invalidations find it until its last entry is
 * out of the EPT, for that may drop the lock.
 */
#define WINDOW_CLOSING	BIT(31)

/* Faults in a row at one address, each without a page in the end, before it is an exit. */
#define FRUITLESS_MAX	100

/* What the process's page table says about an address. */
struct host_page {
	u64 pfn;
	int level;
	bool writable;
	bool special;		/* no struct page that belongs to the mapping */
	bool cached;		/* write-back, as the EPT would have it */
};

static void acknowledge(void *unused)
{
}

/*
 * When it returns no CPU uses what the EPT held before the call; mmu_lock is
 * held. A CPU in guest mode is interrupted, and that ends guest mode;
 * the others look at the generation when they enter.
 */
void dune_mmu_flush(struct dune_vm *vm)
{
	struct dune_vcpu *vcpu;
	bool any = false;

	dune_count(DUNE_STAT_SHOOTDOWNS);
	atomic64_inc(&vm->flush_gen);
	smp_mb__after_atomic();
	list_for_each_entry(vcpu, &vm->vcpus, vm_node) {
		int cpu = READ_ONCE(vcpu->guest_cpu);

		if (cpu >= 0) {
			cpumask_set_cpu(cpu, vm->kick_mask);
			any = true;
		}
	}
	if (any) {
		/* With PREEMPT_RT the spinlock alone leaves preemption on. */
		preempt_disable();
		smp_call_function_many(vm->kick_mask, acknowledge, NULL, true);
		preempt_enable();
		cpumask_clear(vm->kick_mask);
		dune_count(DUNE_STAT_KICKS);
	}
}

static struct dune_window *find_window(struct dune_vm *vm, u64 gpa)
{
	struct dune_window *w;

	for (w = vm->windows; w < vm->windows + vm->windows_used; w++)
		if (gpa - w->gpa < w->size)
			return w;
	return NULL;
}

/* Calls back for every part of [start, end) of the process that is in a window. */
#define for_each_overlap(vm, w, start, end, gpa, gpa_end)				\
	for (w = (vm)->windows; w < (vm)->windows + (vm)->windows_used; w++)		\
		if ((start) < w->hva + w->size && (end) > w->hva &&			\
		    ((gpa) = w->gpa + (max_t(u64, start, w->hva) - w->hva),		\
		     (gpa_end) = w->gpa + (min_t(u64, end, w->hva + w->size) - w->hva), true))

static void begin_invalidation(struct dune_vm *vm, unsigned long start, unsigned long end)
{
	if (!vm->invalidations++) {
		vm->inv_start = start;
		vm->inv_end = end;
	} else {
		vm->inv_start = min(vm->inv_start, start);
		vm->inv_end = max(vm->inv_end, end);
	}
}

static bool invalidating(const struct dune_vm *vm, unsigned long start, unsigned long size)
{
	return vm->invalidations && vm->inv_start < start + size && vm->inv_end > start;
}

static int range_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	struct dune_vm *vm = container_of(mn, struct dune_vm, notifier);
	bool may_sleep = mmu_notifier_range_blockable(range);
	u64 gpa, gpa_end;
	struct dune_window *w;
	DUNE_SWEEP(sweep);

	spin_lock(&vm->mmu_lock);
	begin_invalidation(vm, range->start, range->end);
	for_each_overlap(vm, w, range->start, range->end, gpa, gpa_end) {
		/* The OOM reaper alone may not sleep, and what it comes for is dying. */
		if (may_sleep)
			dune_ept_gather(vm, gpa, gpa_end, true, &sweep);
		else
			dune_ept_detach(vm, gpa, gpa_end, &sweep);
	}
	/* However many windows show the range: one flush. */
	dune_ept_finish(vm, &sweep);
	spin_unlock(&vm->mmu_lock);
	if (may_sleep && !list_empty(&vm->detached))
		dune_ept_free_detached(vm);
	dune_count(DUNE_STAT_INVALIDATIONS);
	return 0;
}

static void range_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	struct dune_vm *vm = container_of(mn, struct dune_vm, notifier);

	spin_lock(&vm->mmu_lock);
	vm->invalidations--;
	spin_unlock(&vm->mmu_lock);
}

/* The address space goes: the guest has no memory from here on. */
static void release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct dune_vm *vm = container_of(mn, struct dune_vm, notifier);

	spin_lock(&vm->mmu_lock);
	vm->dead = true;
	dune_ept_zap(vm, 0, 1ULL << EPT_BITS, true);
	spin_unlock(&vm->mmu_lock);
	dune_ept_free_detached(vm);
}

static bool young(struct mmu_notifier *mn, u64 start, u64 end, bool clear)
{
	struct dune_vm *vm = container_of(mn, struct dune_vm, notifier);
	u64 gpa, gpa_end;
	struct dune_window *w;
	unsigned int steps = 0;
	bool any = false;

	spin_lock(&vm->mmu_lock);
	for_each_overlap(vm, w, start, end, gpa, gpa_end) {
		any |= dune_ept_young(vm, gpa, gpa_end, clear, &steps);
		if (any && !clear)
			break;
	}
	spin_unlock(&vm->mmu_lock);
	return any;
}

/* A stale accessed bit in a TLB costs reclaim a guess, not correctness: no flush. */
static dune_young_t clear_young(struct mmu_notifier *mn, struct mm_struct *mm,
				unsigned long start, unsigned long end)
{
	return young(mn, start, end, true);
}

static dune_young_t test_young(struct mmu_notifier *mn, struct mm_struct *mm,
			       unsigned long address)
{
	return young(mn, address, address + PAGE_SIZE, false);
}

static const struct mmu_notifier_ops notifier_ops = {
	.release = release,
	.clear_flush_young = clear_young,
	.clear_young = clear_young,
	.test_young = test_young,
	.invalidate_range_start = range_start,
	.invalidate_range_end = range_end,
};

int dune_mmu_init(struct dune_vm *vm)
{
	int r;

	spin_lock_init(&vm->mmu_lock);
	INIT_LIST_HEAD(&vm->vcpus);
	INIT_LIST_HEAD(&vm->detached);
	atomic64_set(&vm->flush_gen, 1);
	vm->root = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!vm->root)
		return -ENOMEM;
	set_page_private(vm->root, 0);
	vm->eptp = page_to_phys(vm->root) | VMX_EPTP_MT_WB | VMX_EPTP_PWL_4 |
		   VMX_EPTP_AD_ENABLE_BIT;
	vm->notifier.ops = &notifier_ops;
	r = mmu_notifier_register(&vm->notifier, vm->mm);
	if (r)
		__free_page(vm->root);
	return r;
}

/* No vCPU is left. */
void dune_mmu_destroy(struct dune_vm *vm)
{
	/* Comes back after release, which empties the EPT; the mm may be gone then. */
	mmu_notifier_unregister(&vm->notifier, vm->mm);
	WARN_ON_ONCE(page_private(vm->root) || !list_empty(&vm->detached));
	__free_page(vm->root);
}

static bool aligned(const struct dune_window *w)
{
	return !((w->gpa | w->hva | w->size) & (PAGE_SIZE - 1)) && w->size;
}

int dune_mmu_map_window(struct dune_vm *vm, const struct dune_window *window)
{
	u64 gpa_end = 1ULL << dune_caps.gpa_bits;
	struct dune_window *w, *place = NULL;
	int r = 0;

	if (!aligned(window) || (window->flags & ~DUNE_WINDOW_READONLY))
		return -EINVAL;
	if (window->size > gpa_end || window->gpa > gpa_end - window->size ||
	    window->size > TASK_SIZE_MAX || window->hva > TASK_SIZE_MAX - window->size)
		return -EINVAL;
	spin_lock(&vm->mmu_lock);
	for (w = vm->windows; w < vm->windows + DUNE_WINDOWS_MAX; w++) {
		if (!w->size)
			place = place ?: w;
		else if (window->gpa < w->gpa + w->size && w->gpa < window->gpa + window->size)
			r = -EEXIST;
	}
	if (!r && !place)
		r = -ENOSPC;
	if (!r) {
		*place = *window;
		vm->windows_used = max_t(int, vm->windows_used, place - vm->windows + 1);
	}
	spin_unlock(&vm->mmu_lock);
	return r;
}

int dune_mmu_unmap_window(struct dune_vm *vm, const struct dune_window *window)
{
	struct dune_window *w;
	int r = -ENOENT;

	if (window->hva || window->flags)
		return -EINVAL;
	spin_lock(&vm->mmu_lock);
	w = find_window(vm, window->gpa);
	if (w && w->gpa == window->gpa && w->size == window->size &&
	    !(w->flags & WINDOW_CLOSING)) {
		/*
		 * First it is not there for faults, last not for invalidations. Others
		 * keep their places: an invalidation that dropped the lock is on its
		 * way through them.
		 */
		w->flags |= WINDOW_CLOSING;
		dune_ept_zap(vm, window->gpa, window->gpa + window->size, true);
		memset(w, 0, sizeof(*w));
		r = 0;
	}
	spin_unlock(&vm->mmu_lock);
	return r;
}

int dune_mmu_clear_dirty(struct dune_vm *vm, const struct dune_range *range)
{
	if (!(vm->features & DUNE_FEATURE_PML) ||
	    memchr_inv(range->reserved, 0, sizeof(range->reserved)) ||
	    ((range->gpa | range->size) & (PAGE_SIZE - 1)) ||
	    range->size > 1ULL << EPT_BITS || range->gpa > (1ULL << EPT_BITS) - range->size)
		return -EINVAL;
	spin_lock(&vm->mmu_lock);
	dune_ept_clear_dirty(vm, range->gpa, range->gpa + range->size);
	/* Whoever is in guest mode leaves it, and so empties its log. */
	dune_mmu_flush(vm);
	spin_unlock(&vm->mmu_lock);
	return 0;
}

/*
 * The process's entry for hva; interrupts are off, so its tables stay (as for
 * get_user_pages_fast). False if it does not permit the access, or a write
 * would have to mark it dirty first. A shadow stack is not writable, although
 * pte_write says so: pte_access_permitted looks at the bit of the CPU.
 */
static bool walk_host(struct mm_struct *mm, unsigned long hva, bool write, struct host_page *page)
{
	pgd_t pgd = READ_ONCE(*pgd_offset(mm, hva));
	p4d_t p4d;
	pud_t pud;
	pmd_t pmd;
	pte_t pte;

	if (!pgd_present(pgd))
		return false;
	p4d = READ_ONCE(*p4d_offset(&pgd, hva));
	if (!p4d_present(p4d))
		return false;
	pud = READ_ONCE(*pud_offset(&p4d, hva));
	if (!pud_present(pud))
		return false;
	if (pud_leaf(pud)) {
		page->level = 3;
		page->pfn = pud_pfn(pud) + ((hva & ~PUD_MASK) >> PAGE_SHIFT);
		page->writable = pud_access_permitted(pud, true) && pud_dirty(pud);
		page->special = dune_devmap(pud, pud) || dune_pud_special(pud);
		page->cached = !(pud_flags(pud) & _PAGE_LARGE_CACHE_MASK);
		return pud_access_permitted(pud, write) && (!write || page->writable);
	}
	pmd = READ_ONCE(*pmd_offset(&pud, hva));
	if (!pmd_present(pmd))
		return false;
	if (pmd_leaf(pmd)) {
		page->level = 2;
		page->pfn = pmd_pfn(pmd) + ((hva & ~PMD_MASK) >> PAGE_SHIFT);
		page->writable = pmd_access_permitted(pmd, true) && pmd_dirty(pmd);
		page->special = dune_devmap(pmd, pmd) || dune_pmd_special(pmd);
		page->cached = !(pmd_flags(pmd) & _PAGE_LARGE_CACHE_MASK);
		return pmd_access_permitted(pmd, write) && (!write || page->writable);
	}
	pte = READ_ONCE(*pte_offset_kernel(&pmd, hva));
	if (!pte_present(pte))
		return false;
	page->level = 1;
	page->pfn = pte_pfn(pte);
	page->writable = pte_access_permitted(pte, true) && pte_dirty(pte);
	page->special = pte_special(pte) || dune_devmap(pte, pte);
	page->cached = !(pte_flags(pte) & _PAGE_CACHE_MASK);
	return pte_access_permitted(pte, write) && (!write || page->writable);
}

/* The largest level at which the window, and the address space, agree. */
static int fit_level(const struct dune_vm *vm, const struct dune_window *w, u64 gpa, int level)
{
	for (level = min(level, vm->max_level); level > 1; level--) {
		u64 size = 1ULL << (PAGE_SHIFT + 9 * (level - 1));
		u64 start = gpa & ~(size - 1);

		if (!((w->gpa ^ w->hva) & (size - 1)) &&
		    start >= w->gpa && start + size <= w->gpa + w->size)
			break;
	}
	return level;
}

/* 0: mapped. -EAGAIN: an invalidation is in the way. -ENOENT: not in the page table. */
static int try_map(struct dune_vcpu *vcpu, u64 gpa, bool write)
{
	struct dune_vm *vm = vcpu->vm;
	struct host_page page;
	struct dune_window *w;
	u64 hva, mask;
	int level, r;

	spin_lock(&vm->mmu_lock);
	w = find_window(vm, gpa);
	if (!w || vm->dead || (w->flags & WINDOW_CLOSING) ||
	    (write && (w->flags & DUNE_WINDOW_READONLY))) {
		r = -EFAULT;
		goto out;
	}
	hva = w->hva + (gpa - w->gpa);
	if (invalidating(vm, hva, PAGE_SIZE)) {
		r = -EAGAIN;
		goto out;
	}
	local_irq_disable();
	r = walk_host(vm->mm, hva, write, &page) ? 0 : -ENOENT;
	local_irq_enable();
	if (r)
		goto out;
	/* The EPT says write-back: device memory, above all, must not come to that. */
	if (!page.cached || !pfn_valid(page.pfn) || is_zone_device_page(pfn_to_page(page.pfn)) ||
	    (page.special && (write || !page_is_ram(page.pfn)))) {
		r = -EFAULT;
		goto out;
	}
	if (page.special || (w->flags & DUNE_WINDOW_READONLY))
		page.writable = false;
	/* Of a special mapping only this page has been looked at. */
	level = fit_level(vm, w, gpa, page.special ? 1 : page.level);
	mask = (1ULL << 9 * (level - 1)) - 1;
	if (invalidating(vm, hva & ~(mask << PAGE_SHIFT | ~PAGE_MASK), (mask + 1) << PAGE_SHIFT)) {
		r = -EAGAIN;
		goto out;
	}
	dune_ept_map(vm, &vcpu->tables, gpa, level, page.pfn & ~mask, page.writable);
out:
	spin_unlock(&vm->mmu_lock);
	return r;
}

static int host_address(struct dune_vm *vm, u64 gpa, unsigned long *hva)
{
	struct dune_window *w;

	spin_lock(&vm->mmu_lock);
	w = find_window(vm, gpa);
	if (w)
		*hva = w->hva + (gpa - w->gpa);
	spin_unlock(&vm->mmu_lock);
	return w ? 0 : -EFAULT;
}

/* Has the kernel handle the fault as if the process had touched its page. */
static int fault_in(struct dune_vm *vm, unsigned long hva, bool write)
{
	struct vm_area_struct *vma;
	bool grow, unlocked = false;
	u8 byte;
	int r;

	mmap_read_lock(vm->mm);
	vma = find_vma(vm->mm, hva);
	grow = vma && hva < vma->vm_start && (vma->vm_flags & VM_GROWSDOWN);
	if (grow) {
		/* Only a fault of the process itself makes a stack grow. */
		mmap_read_unlock(vm->mm);
		if (get_user(byte, (u8 __user *)hva))
			return -EFAULT;
		mmap_read_lock(vm->mm);
	} else if (write && vma && hva >= vma->vm_start && (vma->vm_flags & VM_SHADOW_STACK)) {
		/* The kernel would call it done, and no entry would ever be writable: walk_host. */
		mmap_read_unlock(vm->mm);
		return -EFAULT;
	}
	r = fixup_user_fault(vm->mm, hva, write ? FAULT_FLAG_WRITE : 0, &unlocked);
	mmap_read_unlock(vm->mm);
	return r;
}

/*
 * The page was made, and try_map did not find it. Somebody was quicker to take
 * it away, and the guest just faults again; but not for ever.
 */
static int again_or_never(struct dune_vcpu *vcpu, u64 gpa)
{
	if (vcpu->fruitless_gpa != gpa)
		vcpu->fruitless = 0;
	vcpu->fruitless_gpa = gpa;
	if (++vcpu->fruitless < FRUITLESS_MAX)
		return 0;
	vcpu->fruitless = 0;
	return -EFAULT;
}

/*
 * The guest touched gpa. 0: try again, the page is there or will be; or
 * -EFAULT (also -EHWPOISON): it may not; -ENOMEM; -EINTR: it is being killed.
 */
int dune_mmu_fault(struct dune_vcpu *vcpu, u64 gpa, bool write)
{
	unsigned long hva;
	int r;

	r = dune_ept_topup(&vcpu->tables);
	if (r)
		return r;
	gpa &= PAGE_MASK;
	r = try_map(vcpu, gpa, write);
	if (r == -ENOENT) {
		r = host_address(vcpu->vm, gpa, &hva) ?: fault_in(vcpu->vm, hva, write);
		if (r)
			return r;
		r = try_map(vcpu, gpa, write);
		if (r == -ENOENT)
			return again_or_never(vcpu, gpa);
	}
	if (r == -EAGAIN) {
		dune_count(DUNE_STAT_FAULTS_RETRIED);
		return 0;
	}
	vcpu->fruitless = 0;
	return r;
}
