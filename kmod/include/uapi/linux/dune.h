/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The ABI of /dev/dune: an ordinary process runs code of its own in VMX
 * non-root mode, over its own address space.
 *
 * This header is the only definition; crates/dune-sys is generated from it.
 *
 * Rules for every structure: widths are fixed, "reserved" is zero on the way
 * in (else EINVAL) and zero on the way out. A descriptor works only in the
 * process that made it: after fork the child gets EIO. Every call may be
 * repeated after EINTR. Where there are too many of something it is EMFILE.
 *
 *   /dev/dune --CREATE_VM--> VM descriptor --CREATE_VCPU--> vCPU descriptor
 *
 * mmap of a vCPU descriptor at offset 0 gives its run page (struct dune_run),
 * and behind it, if there is one, the ring of dirty pages (struct dune_ring).
 */
#ifndef _UAPI_LINUX_DUNE_H
#define _UAPI_LINUX_DUNE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Changed whenever an old program would misunderstand. */
#define DUNE_ABI_VERSION	1

#define DUNE_WINDOWS_MAX	512
#define DUNE_VCPUS_MAX		4096
#define DUNE_PAGE_SIZE		4096

/* What a VM may ask for; DUNE_GET_INFO tells which the machine has. */
#define DUNE_FEATURE_LARGE_2M	(1ULL << 0)	/* 2 MiB pages in the EPT */
#define DUNE_FEATURE_LARGE_1G	(1ULL << 1)	/* 1 GiB pages in the EPT */
#define DUNE_FEATURE_PML	(1ULL << 2)	/* rings of dirty pages; excludes large pages */

/* DUNE_GET_INFO */
struct dune_info {
	__u32 abi_version;
	__u32 gpa_bits;		/* guest-physical addresses are below 1 << gpa_bits */
	__u64 features;		/* DUNE_FEATURE_*, what DUNE_CREATE_VM accepts */
	__u64 xcr0;		/* XSAVE components that a guest may have; 0: no XSAVE at all */
	__u64 cr0;		/* CR0 bits that a guest may set */
	__u64 cr4;		/* CR4 bits that a guest may set */
	__u64 efer;		/* EFER bits that a guest may set */
	__u32 xsave_bytes;	/* XSAVE image (standard format) of all of xcr0 */
	__u32 vpid;		/* 1: address-space tags are in use */
	__u64 reserved[8];
};

/* DUNE_CREATE_VM */
struct dune_vm_config {
	__u64 features;		/* DUNE_FEATURE_* wanted; no other is used */
	__u64 xcr0;		/* XCR0 of all vCPUs, x87 and SSE always; 0: all that there is */
	__u64 reserved[6];
};

#define DUNE_WINDOW_READONLY	(1U << 0)	/* a guest write is a memory exit */

/*
 * DUNE_VM_MAP_WINDOW: guest-physical [gpa, gpa + size) is the process's own
 * [hva, hva + size), mapped or not; pages come when they are touched. All
 * three are multiples of 4096.
 * DUNE_VM_UNMAP_WINDOW: gpa and size of an existing window; the rest is zero.
 */
struct dune_window {
	__u64 gpa;
	__u64 hva;
	__u64 size;
	__u32 flags;		/* DUNE_WINDOW_* */
	__u32 reserved0;
	__u64 reserved[4];
};

/*
 * DUNE_VM_CLEAR_DIRTY: the EPT dirty bits of a guest-physical range become 0.
 * On return every page that was written before it, since the last call, is in
 * a ring. A size of 0 clears nothing and only brings the rings up to date.
 */
struct dune_range {
	__u64 gpa;
	__u64 size;
	__u64 reserved[2];
};

/* DUNE_VM_CREATE_VCPU */
struct dune_vcpu_config {
	__u32 flags;		/* zero */
	__u32 ring_entries;	/* a power of two in 1024..65536; 0 without PML */
	__u64 reserved[7];
};

struct dune_segment {
	__u64 base;
	__u32 limit;
	__u32 access_rights;	/* as in the VMCS: SDM 3C, table "Format of Access Rights" */
	__u16 selector;
	__u16 reserved0;
	__u32 reserved1;
};

struct dune_table {
	__u64 base;
	__u32 limit;
	__u32 reserved0;
};

/*
 * DUNE_VCPU_SET_STATE, DUNE_VCPU_GET_STATE: what is not in the run page.
 * fs.base and gs.base are there, and zero here; so are the low 32 bits of star.
 */
struct dune_state {
	struct dune_segment cs, ss, ds, es, fs, gs, tr, ldtr;
	struct dune_table gdt, idt;
	__u64 cr0, cr3, cr4, efer;
	__u64 star, lstar, fmask, kernel_gs_base;
	__u64 reserved[8];
};

/* DUNE_VCPU_SET_XSAVE, DUNE_VCPU_GET_XSAVE: the XSAVE image, standard format */
struct dune_buffer {
	__u64 addr;
	__u32 size;		/* at least dune_info.xsave_bytes */
	__u32 reserved0;
};

/*
 * Live in the run page: read at every entry, written at every exit. In the
 * order of struct kvm_regs, so that a program can use either.
 */
struct dune_regs {
	__u64 rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
	__u64 r8, r9, r10, r11, r12, r13, r14, r15;
	__u64 rip, rflags;
};

/* Why DUNE_VCPU_RUN returned: dune_run.exit_reason. */
#define DUNE_EXIT_NONE		0	/* the vCPU has not run */
#define DUNE_EXIT_INTERRUPTED	1	/* the call gave EINTR: a signal, immediate_exit, or work
					 * for the kernel on its way to user space: run again */
#define DUNE_EXIT_VMCALL	2	/* VMCALL; rip is behind it */
#define DUNE_EXIT_MEMORY	3	/* gpa, access, error: no such page, or not so */
#define DUNE_EXIT_EXCEPTION	4	/* event_info, event_error: #DB, #AC, or as chosen */
#define DUNE_EXIT_SHUTDOWN	5	/* triple fault */
#define DUNE_EXIT_FAIL_ENTRY	6	/* the CPU refused the state; error: VM-instruction error */
#define DUNE_EXIT_RING_FULL	7	/* read the ring of dirty pages, then go on */
#define DUNE_EXIT_CPUID		8
#define DUNE_EXIT_HLT		9
#define DUNE_EXIT_IO		10	/* qualification */
#define DUNE_EXIT_RDMSR		11	/* rcx */
#define DUNE_EXIT_WRMSR		12	/* rcx, rdx:rax */
#define DUNE_EXIT_CR		13	/* qualification */
#define DUNE_EXIT_XSETBV	14
#define DUNE_EXIT_OTHER		15	/* vmx_reason, qualification */

/* dune_run.access */
#define DUNE_ACCESS_READ	(1U << 0)
#define DUNE_ACCESS_WRITE	(1U << 1)
#define DUNE_ACCESS_EXECUTE	(1U << 2)
#define DUNE_ACCESS_GVA_VALID	(1U << 3)	/* gva says what was being translated */
#define DUNE_ACCESS_PAGE_WALK	(1U << 4)	/* it was the guest's own page table */

/* dune_run.inject, as in the VMCS: SDM 3C, "VM-Entry Controls for Event Injection" */
#define DUNE_EVENT_VALID	(1U << 31)
#define DUNE_EVENT_HAS_ERROR	(1U << 11)
#define DUNE_EVENT_EXCEPTION	(3U << 8)

/*
 * dune_run.flags. An exit in the middle of an event's delivery has the event
 * delivered again by the next run; this forgets it, and so does an inject.
 */
#define DUNE_RUN_FORGET_EVENT	(1U << 0)

struct dune_run {
	/* from user space */
	__u32 immediate_exit;	/* not 0: return EINTR before the guest runs */
	__u32 exceptions;	/* bitmap of vectors that exit, beside #DB, #AC and #MC */
	__u32 inject;		/* DUNE_EVENT_*: deliver it first; becomes 0 once taken */
	__u32 inject_error;
	__u32 flags;		/* DUNE_RUN_*; becomes 0 once taken */
	__u32 reserved0;
	__u64 reserved1[4];

	/* from the kernel */
	__u32 exit_reason;	/* DUNE_EXIT_* */
	__u32 vmx_reason;	/* basic exit reason: SDM 3D, appendix C */
	__u64 qualification;
	__u64 gpa;
	__u64 gva;
	__u32 access;		/* DUNE_ACCESS_* */
	__s32 error;		/* errno of a memory exit, VM-instruction error */
	__u32 event_info;	/* VM-exit interruption information */
	__u32 event_error;
	__u32 instruction_bytes;
	__u32 reserved2;
	__u64 reserved3[8];

	/* both ways */
	__u64 fs_base;
	__u64 gs_base;
	__u64 cr2;
	__u64 reserved4;
	struct dune_regs regs;
};

/*
 * The ring of dirty pages: guest-physical page addresses, in a page behind
 * the run page, the entries in the pages behind that. The kernel advances
 * head, user space tail; both run freely, entry n is at n % entries. A vCPU
 * does not run with fewer than 512 free entries: none is ever lost.
 */
struct dune_ring {
	__u32 head;
	__u32 entries;
	__u32 reserved0[14];
	__u32 tail;
	__u32 reserved1[15];
};

#define DUNE_RING_OFFSET	4096	/* of struct dune_ring in the mapping */
#define DUNE_RING_ENTRIES	8192	/* of its entries, __u64 each */

#define DUNE_IOC		0xDE
#define DUNE_GET_INFO		_IOR(DUNE_IOC, 0x00, struct dune_info)
#define DUNE_CREATE_VM		_IOW(DUNE_IOC, 0x01, struct dune_vm_config)

#define DUNE_VM_MAP_WINDOW	_IOW(DUNE_IOC, 0x10, struct dune_window)
#define DUNE_VM_UNMAP_WINDOW	_IOW(DUNE_IOC, 0x11, struct dune_window)
#define DUNE_VM_CREATE_VCPU	_IOW(DUNE_IOC, 0x12, struct dune_vcpu_config)
#define DUNE_VM_CLEAR_DIRTY	_IOW(DUNE_IOC, 0x13, struct dune_range)

#define DUNE_VCPU_RUN		_IO(DUNE_IOC, 0x20)
#define DUNE_VCPU_GET_STATE	_IOR(DUNE_IOC, 0x21, struct dune_state)
#define DUNE_VCPU_SET_STATE	_IOW(DUNE_IOC, 0x22, struct dune_state)
#define DUNE_VCPU_GET_XSAVE	_IOW(DUNE_IOC, 0x23, struct dune_buffer)
#define DUNE_VCPU_SET_XSAVE	_IOW(DUNE_IOC, 0x24, struct dune_buffer)

#endif /* _UAPI_LINUX_DUNE_H */
