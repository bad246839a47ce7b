/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What changed in the kernel's interfaces between 6.1 and 6.18. The
 * DUNE_HAVE_* come from Kbuild, which looks into the headers: stable and
 * distribution kernels carry changes that their version does not tell.
 */
#ifndef DUNE_COMPAT_H
#define DUNE_COMPAT_H

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/syscore_ops.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "dune needs Linux 6.1 or later"
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}
#endif

/* From 6.12 on device memory may be mapped by huge pages. */
static inline bool dune_pmd_special(pmd_t pmd)
{
#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
	return pmd_special(pmd);
#else
	return false;
#endif
}

static inline bool dune_pud_special(pud_t pud)
{
#ifdef CONFIG_ARCH_SUPPORTS_PUD_PFNMAP
	return pud_special(pud);
#else
	return false;
#endif
}

#ifdef DUNE_HAVE_SYSCORE_DATA	/* struct syscore: 6.18, and stable kernels */
#define DUNE_SYSCORE_ARG	void *data
#else
#define DUNE_SYSCORE_ARG	void
#endif

/* The flags of a thread that must be looked at outside of guest mode. */
#ifdef _TIF_NEED_RESCHED_LAZY
#define DUNE_TIF_RESCHED	(_TIF_NEED_RESCHED | _TIF_NEED_RESCHED_LAZY)
#else
#define DUNE_TIF_RESCHED	_TIF_NEED_RESCHED
#endif

#endif /* DUNE_COMPAT_H */
