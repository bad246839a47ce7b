/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What changed in the kernel's interfaces between 6.1 and 6.18, and some after. The
 * DUNE_HAVE_* come from Kbuild, which looks into the headers: stable and
 * distribution kernels carry changes that their version does not tell.
 */
#ifndef DUNE_COMPAT_H
#define DUNE_COMPAT_H

#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/syscore_ops.h>
#include <linux/version.h>
#include <asm/processor.h>
#if __has_include(<asm/cpuid/api.h>)	/* 6.16; processor.h has it before */
#include <asm/cpuid/api.h>
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "dune needs Linux 6.1 or later"
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}
#endif

/* Since 6.6: a stack of return addresses, which nobody writes by a MOV. */
#ifndef VM_SHADOW_STACK
#define VM_SHADOW_STACK		VM_NONE
#endif

/* Pages of devices that have a struct page: since 6.17 nothing tells them from others, and nothing need. */
#ifdef DUNE_HAVE_DEVMAP
#define dune_devmap(level, entry)	level##_devmap(entry)
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0)
#error "Kbuild did not find pte_devmap in the kernel's headers"
#else
#define dune_devmap(level, entry)	false
#endif

#ifdef DUNE_HAVE_BOOL_YOUNG	/* since 7.x */
typedef bool dune_young_t;
#else
typedef int dune_young_t;
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
