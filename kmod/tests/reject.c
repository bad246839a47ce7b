// SPDX-License-Identifier: GPL-2.0-only
/* What the calls refuse: one check for each rule of the ABI. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct vm vm;
static struct vcpu vcpu;

#define BAD_POINTER	((void *)0x7000)

static void unknown_calls(void)
{
	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	check_errno(ioctl(vm.device, _IO(DUNE_IOC, 0xff), 0), ENOTTY);
	check_errno(ioctl(vm.fd, _IO(DUNE_IOC, 0xff), 0), ENOTTY);
	check_errno(ioctl(vcpu.fd, _IO(DUNE_IOC, 0xff), 0), ENOTTY);
	/* Each descriptor knows its own calls only. */
	check_errno(ioctl(vm.device, DUNE_VCPU_RUN, 0), ENOTTY);
	check_errno(ioctl(vm.fd, DUNE_VCPU_RUN, 0), ENOTTY);
	check_errno(ioctl(vcpu.fd, DUNE_VM_MAP_WINDOW, BAD_POINTER), ENOTTY);
	/* The size is part of the number. */
	check_errno(ioctl(vm.fd, _IOW(DUNE_IOC, 0x10, uint64_t), BAD_POINTER), ENOTTY);
}

static void bad_pointers(void)
{
	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	check_errno(ioctl(vm.device, DUNE_GET_INFO, BAD_POINTER), EFAULT);
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, BAD_POINTER), EFAULT);
	check_errno(ioctl(vm.fd, DUNE_VM_MAP_WINDOW, BAD_POINTER), EFAULT);
	check_errno(ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, BAD_POINTER), EFAULT);
	check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, BAD_POINTER), EFAULT);
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, BAD_POINTER), EFAULT);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, BAD_POINTER), EFAULT);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, BAD_POINTER), EFAULT);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, BAD_POINTER), EFAULT);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_GET_XSAVE, BAD_POINTER), EFAULT);
	/* A kernel address is as bad as any. */
	check_errno(ioctl(vm.device, DUNE_GET_INFO, 0xffffffff81000000UL), EFAULT);
}

static void vm_configurations(void)
{
	struct dune_vm_config config = { 0 };
	unsigned int i;

	vm_open(&vm, 0);
	for (i = 0; i < sizeof(config.reserved) / 8; i++) {
		config.reserved[i] = 1;
		check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
		config.reserved[i] = 0;
	}
	config.features = 1ULL << 63;
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	if (vm.info.features == (DUNE_FEATURE_PML | DUNE_FEATURE_LARGE_2M | DUNE_FEATURE_LARGE_1G)) {
		config.features = DUNE_FEATURE_PML | DUNE_FEATURE_LARGE_2M;
		check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
		config.features = DUNE_FEATURE_PML | DUNE_FEATURE_LARGE_1G;
		check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	} else {
		config.features = ~vm.info.features & 7;
		check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EOPNOTSUPP);
	}
	config.features = 0;
	config.xcr0 = 1ULL << 62;	/* no such component */
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	config.xcr0 = 1;		/* without SSE, which no XCR0 takes from a guest: it would see another's registers */
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	config.xcr0 = 2;		/* without x87 */
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	config.xcr0 = 5;		/* AVX without SSE */
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	config.xcr0 = 0x27;		/* a third of AVX-512 */
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
	config.xcr0 = 1 << 9 | 3;	/* PKRU */
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EINVAL);
}

static void windows(void)
{
	const uint64_t end = FOUR_GIB;
	struct dune_window w = { .gpa = end, .hva = 0x10000000, .size = 1 << 20 };
	const struct dune_window good = w;
	unsigned int i;

	vm_open(&vm, 0);
#define REFUSED(e)	do {							\
		check_errno(ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w), e);		\
		w = good;							\
	} while (0)
	w.gpa++; REFUSED(EINVAL);
	w.hva++; REFUSED(EINVAL);
	w.size++; REFUSED(EINVAL);
	w.size = 0; REFUSED(EINVAL);
	w.flags = 2; REFUSED(EINVAL);
	w.reserved0 = 1; REFUSED(EINVAL);
	for (i = 0; i < 4; i++) {
		w.reserved[i] = 1; REFUSED(EINVAL);
	}
	w.gpa = 1ULL << vm.info.gpa_bits; REFUSED(EINVAL);
	w.gpa = (1ULL << vm.info.gpa_bits) - 4096; REFUSED(EINVAL);
	w.gpa = -(1ULL << 20); REFUSED(EINVAL);
	w.size = -4096ULL; REFUSED(EINVAL);
	w.hva = 0xffffffff81000000ULL; REFUSED(EINVAL);		/* the kernel */
	w.hva = 0x7ffffffff000ULL; REFUSED(EINVAL);		/* over the end */
	w.gpa = end - 4096; REFUSED(EEXIST);
	w.gpa = 0; REFUSED(EEXIST);
	/* Unmapping: only what is there, whole. */
	w.hva = 0;
	check_errno(ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w), ENOENT);
	w.gpa = 0;
	check_errno(ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w), ENOENT);
	w.size = end;
	w.hva = 4096;
	check_errno(ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w), EINVAL);
	w.hva = 0;
	w.flags = 1;
	check_errno(ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w), EINVAL);
	w.flags = 0;
	check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w));
	check_errno(ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w), ENOENT);
	/* There is an end to them. */
	w = good;
	for (i = 0; i < DUNE_WINDOWS_MAX; i++, w.gpa += w.size)
		check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
	check_errno(ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w), ENOSPC);
}

static void vcpu_configurations(void)
{
	static const uint32_t bad[] = { 0, 1, 512, 1000, 1025, 131072, 0x80000000, 0xffffffff };
	struct dune_vcpu_config config = { 0 };
	unsigned int i;

	vm_open(&vm, 0);
	config.flags = 1;
	check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config), EINVAL);
	config.flags = 0;
	for (i = 0; i < 7; i++) {
		config.reserved[i] = 1;
		check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config), EINVAL);
		config.reserved[i] = 0;
	}
	config.ring_entries = 1024;
	check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config), EINVAL);
	if (!(vm.info.features & DUNE_FEATURE_PML))
		skip("no PML here: the sizes of its ring were not tested");
	vm_open(&vm, DUNE_FEATURE_PML);
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		config.ring_entries = bad[i];
		check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config), EINVAL);
	}
}

static void states(void)
{
	struct dune_state good, s;
	unsigned int i;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	default_state(&vm, &good, true);
	s = good;
	check_errno(vcpu_run(&vcpu), EINVAL);	/* no state yet */
#define STATE(change)	do {							\
		s = good;							\
		change;								\
		check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, &s), EINVAL);	\
	} while (0)
	STATE(s.cs.access_rights |= 1 << 17);
	STATE(s.ldtr.access_rights |= 1 << 8);
	STATE(s.ss.reserved0 = 1);
	STATE(s.tr.reserved1 = 1);
	STATE(s.fs.base = 4096);
	STATE(s.gs.base = 4096);
	STATE(s.gdt.reserved0 = 1);
	STATE(s.idt.reserved0 = 1);
	STATE(s.gdt.limit = 0x10000);
	STATE(s.idt.limit = 0x10000);
	STATE(s.cr0 &= ~1ULL);			/* PE */
	STATE(s.cr0 &= ~(1ULL << 31));		/* PG */
	STATE(s.cr0 |= 1ULL << 30);		/* CD */
	STATE(s.cr0 |= 1ULL << 32);
	STATE(s.cr4 &= ~(1ULL << 5));		/* PAE */
	STATE(s.cr4 |= 1ULL << 13);		/* VMXE */
	STATE(s.cr4 |= 1ULL << 14);		/* SMXE */
	STATE(s.cr4 |= 1ULL << 22);		/* PKE */
	STATE(s.cr4 |= 1ULL << 23);		/* CET */
	STATE(s.cr4 |= 1ULL << 40);
	STATE(s.efer &= ~(1ULL << 8));		/* LME */
	STATE(s.efer &= ~(1ULL << 10));		/* LMA */
	STATE(s.efer |= 1ULL << 12);		/* SVME */
	STATE(s.cr3 |= 1ULL << vm.info.gpa_bits);
	if (vm.info.cr4 & (1 << 17))
		STATE(s.cr4 |= 1 << 17; s.cr3 |= 1);
	STATE(s.lstar = 1ULL << 62);
	STATE(s.kernel_gs_base = 0x8000000000000000ULL);
	STATE(s.fmask = 1ULL << 32);
	STATE(s.star |= 1);
	STATE(s.star |= 1U << 31);
	for (i = 0; i < sizeof(s.reserved) / 8; i++)
		STATE(s.reserved[i] = 1);
	check(!ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, &good));
}

static void runs(void)
{
	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_calls, 1);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_RUN, 1), EINVAL);
#define INJECT(value)	do {							\
		vcpu.run->inject = value;					\
		check_errno(vcpu_run(&vcpu), EINVAL);				\
	} while (0)
	INJECT(DUNE_EVENT_EXCEPTION | 14);				/* not valid */
	INJECT(DUNE_EVENT_VALID | 14);					/* an external interrupt */
	INJECT(DUNE_EVENT_VALID | 2 << 8 | 2);				/* an NMI */
	INJECT(DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | 2);
	INJECT(DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | 32);
	INJECT(DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | 1 << 12 | 14);
	vcpu.run->inject = 0;
	vcpu.run->flags = 2;
	check_errno(vcpu_run(&vcpu), EINVAL);
	vcpu.run->flags = 0;
#define RESERVED(field)	do {							\
		vcpu.run->field = 1;						\
		check_errno(vcpu_run(&vcpu), EINVAL);				\
		vcpu.run->field = 0;						\
	} while (0)
	RESERVED(reserved0);
	RESERVED(reserved1[0]);
	RESERVED(reserved1[1]);
	RESERVED(reserved1[2]);
	RESERVED(reserved1[3]);
	RESERVED(reserved4);
	vcpu.run->exceptions = 0xffffffff;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
}

static void xsave_images(void)
{
	struct dune_buffer b, good;
	uint8_t *image;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	image = low_pages(16384);
	good = (struct dune_buffer){ .addr = (uintptr_t)image, .size = vm.info.xsave_bytes };
	check(!ioctl(vcpu.fd, DUNE_VCPU_GET_XSAVE, &good));
	b = good; b.size--;
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_GET_XSAVE, &b), EINVAL);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, &b), EINVAL);
	b = good; b.reserved0 = 1;
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_GET_XSAVE, &b), EINVAL);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, &b), EINVAL);
	b = good; b.addr = 0x7000;
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_GET_XSAVE, &b), EFAULT);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, &b), EFAULT);
#define IMAGE(offset, value)	do {						\
		uint8_t old = image[offset];					\
		image[offset] = value;						\
		check_errno(ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, &good), EINVAL); \
		image[offset] = old;						\
	} while (0)
	IMAGE(27, 0xff);	/* MXCSR */
	IMAGE(519, 0x80);	/* XSTATE_BV: a component that there is not */
	IMAGE(513, 0x02);	/* PKRU */
	IMAGE(527, 0x80);	/* XCOMP_BV: the compacted format */
	IMAGE(528, 1);
	IMAGE(575, 1);
	check(!ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, &good));
}

static void mappings(void)
{
	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	check(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, vcpu.fd, 0) == MAP_FAILED);
	check_eq(errno, EINVAL);
	check(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, vcpu.fd, 0) == MAP_FAILED);
	check_eq(errno, EINVAL);
	check(mmap(NULL, 8192, PROT_READ, MAP_SHARED, vcpu.fd, 0) == MAP_FAILED);
	check_eq(errno, EINVAL);
	check(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vcpu.fd, 4096) == MAP_FAILED);
	check_eq(errno, EINVAL);
	check(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vcpu.fd, 0xfffffffffffff000) == MAP_FAILED);
	check(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vm.fd, 0) == MAP_FAILED);
	check_eq(errno, ENODEV);
	/* It is not for children. */
	check(madvise(vcpu.run, 4096, MADV_DOFORK) == -1);
	check_eq(errno, EINVAL);
}

/* The child has the descriptors, and nothing works; nor is the run page there. */
static void another_process(void)
{
	struct dune_window window = { .gpa = FOUR_GIB, .hva = 0x10000000, .size = 4096 };
	int status;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_calls, 2);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	if (!fork()) {
		check_errno(vcpu_run(&vcpu), EIO);
		check_errno(ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &window), EIO);
		check(mmap(NULL, 4096, PROT_READ, MAP_SHARED, vcpu.fd, 0) == MAP_FAILED);
		check_errno(msync(vcpu.run, 4096, MS_ASYNC), ENOMEM);
		_exit(0);
	}
	check(wait(&status) > 0 && !status);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
}

static void *run_spinning(void *unused)
{
	for (;;)
		vcpu_run(&vcpu);
	return NULL;
}

static void a_vcpu_that_runs(void)
{
	volatile uint64_t *counter = low_pages(4096);
	struct dune_state state;
	pthread_t thread;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_spin, (uintptr_t)counter);
	check(!pthread_create(&thread, NULL, run_spinning, NULL));
	while (!*counter)
		usleep(1000);
	check_errno(vcpu_run(&vcpu), EBUSY);
	check_errno(ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state), EBUSY);
}

/* A system call as a 32-bit program makes it. */
static int call_32(int number, int fd, unsigned int call, void *argument)
{
	int r;

	asm volatile("int $0x80"
		     : "=a" (r) : "0" (number), "b" (fd), "c" (call), "d" ((uint32_t)(uintptr_t)argument)
		     : "memory", "r8", "r9", "r10", "r11");
	return r;
}

/* A 32-bit process cannot have the address space that it would need: no call of its is taken. */
static void calls_of_32_bit_programs(void)
{
	void *page = low_pages(4096);

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	if (call_32(20, 0, 0, NULL) != getpid())
		skip("this kernel takes no 32-bit system calls");
	check_eq(call_32(54, vm.device, DUNE_GET_INFO, page), -ENOTTY);
	check_eq(call_32(54, vm.device, DUNE_CREATE_VM, page), -ENOTTY);
	check_eq(call_32(54, vm.fd, DUNE_VM_MAP_WINDOW, page), -ENOTTY);
	check_eq(call_32(54, vcpu.fd, DUNE_VCPU_RUN, NULL), -ENOTTY);
	check_eq(call_32(54, vcpu.fd, DUNE_VCPU_GET_STATE, page), -ENOTTY);
}

/* An error, a line that says why, and nothing is left. */
static void refused_at_load(int error, const char *why)
{
	static char log[1 << 18];
	int fd = open("/dune.ko", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		skip("there is no /dune.ko to load");
	check_errno(syscall(SYS_finit_module, fd, "", 0), error);
	check(klogctl(3, log, sizeof(log) - 1) > 0);
	check(strstr(log, why));
	check(access("/sys/module/dune", F_OK));
}

/* On a machine without VT-x. */
static void load_without_vtx(void)
{
	refused_at_load(ENODEV, "dune: this CPU has no VT-x");
}

/* The CPU has VT-x, and the kernel found it switched off. */
static void load_disabled_by_firmware(void)
{
	refused_at_load(EACCES, "dune: VT-x is disabled by the firmware");
}

/* The CPU has VT-x without EPT, as those before 2008. */
static void load_without_ept(void)
{
	refused_at_load(EOPNOTSUPP, "dune: this CPU lacks secondary controls");
}

#define TEST(name)	{ "reject_" #name, name }
const struct test reject_tests[] = {
	TEST(unknown_calls),
	TEST(bad_pointers),
	TEST(vm_configurations),
	TEST(windows),
	TEST(vcpu_configurations),
	TEST(states),
	TEST(runs),
	TEST(xsave_images),
	TEST(mappings),
	TEST(another_process),
	TEST(a_vcpu_that_runs),
	TEST(calls_of_32_bit_programs),
	{ "load_without_vtx", load_without_vtx },
	{ "load_disabled_by_firmware", load_disabled_by_firmware },
	{ "load_without_ept", load_without_ept },
	{ NULL, NULL },
};
