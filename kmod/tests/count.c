// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a round trip costs, here and over /dev/kvm, in ticks of the TSC. In
 * Bochs a tick is an instruction, exactly; elsewhere it is a measure of time.
 * Each figure is the least of several batches: no timer tick is in it.
 *
 * Run when asked for: dunetest count_
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define BATCHES		10
#define BATCH		50
#define PAGE		4096UL

static struct vm vm;
static struct vcpu vcpu;

static uint64_t ticks(void)
{
	uint32_t low, high;

	asm volatile("lfence; rdtsc" : "=a" (low), "=d" (high) : : "memory");
	return low | (uint64_t)high << 32;
}

/* The least of the batches, per piece. */
#define LEAST(per_batch, code)	({						\
	uint64_t least_ = -1ULL, start_, took_;					\
	for (int batch_ = 0; batch_ < BATCHES; batch_++) {			\
		start_ = ticks();						\
		code;								\
		took_ = ticks() - start_;					\
		least_ = took_ < least_ ? took_ : least_;			\
	}									\
	least_ / (per_batch);							\
})

static void report(const char *what, uint64_t value)
{
	printf("count: %-44s %8llu\n", what, (unsigned long long)value);
}

static void run_again(struct vcpu *v)
{
	while (vcpu_run(v) < 0)
		check_eq(errno, EINTR);
	check_eq(v->run->exit_reason, DUNE_EXIT_VMCALL);
}

static void dune_syscall(void)
{
	int i;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_syscalls, 1 << 30);
	run_again(&vcpu);
	report("dune: system call to the runtime and back", LEAST(BATCH,
		for (i = 0; i < BATCH; i++) {
			vcpu.run->regs.rax = i;
			run_again(&vcpu);
		}));
	report("host: ioctl that does nothing", LEAST(BATCH,
		for (i = 0; i < BATCH; i++)
			ioctl(vm.device, _IO(DUNE_IOC, 0xff), 0);));
}

static void dune_switch(void)
{
	struct vcpu other;
	int i;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_open(&vm, &other, 0);
	vcpu_start(&vcpu, true, guest_calls, 1 << 30);
	vcpu_start(&other, true, guest_calls, 1 << 30);
	run_again(&vcpu);
	run_again(&other);
	report("dune: VMCALL to the runtime and back", LEAST(BATCH,
		for (i = 0; i < BATCH; i++)
			run_again(&vcpu);));
	report("dune: the same, another vCPU each time", LEAST(BATCH,
		for (i = 0; i < BATCH; i++)
			run_again(i & 1 ? &vcpu : &other);));
}

/* Guest code: touches 4 KiB pages; how long in rbx. */
static inline uint64_t time_of_touches(uint64_t base)
{
	uint64_t start = ticks(), i;

	for (i = 0; i < BATCH; i++)
		*(volatile uint8_t *)(base + i * PAGE) = 1;
	return ticks() - start;
}

static void guest_touches(uint64_t base)
{
	uint64_t took = time_of_touches(base);

	for (;;)
		asm volatile("vmcall" : : "a" (DONE_CALL), "b" (took));
}

static uint64_t touches(uint8_t *base)
{
	vcpu_start(&vcpu, true, guest_touches, (uintptr_t)base);
	run_again(&vcpu);
	return vcpu.run->regs.rbx;
}

static void dune_ept_fault(void)
{
	uint64_t least = -1ULL, warm = -1ULL, took;
	uint8_t *base = low_pages(BATCHES * BATCH * PAGE);
	int i;

	memset(base, 1, BATCHES * BATCH * PAGE);
	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	for (i = 0; i < BATCHES; i++) {
		took = touches(base + i * BATCH * PAGE);
		least = took < least ? took : least;
		took = touches(base + i * BATCH * PAGE);
		warm = took < warm ? took : warm;
	}
	report("dune: EPT fault on a resident page", (least - warm) / BATCH);
}

/* Guest code: page faults to a handler in ring 3, which skips the access. */
extern void stub_skip(void);
asm(".text; .globl stub_skip; stub_skip: add $8, %rsp; addq $3, (%rsp); iretq");

static inline uint64_t least_of_faults(uint64_t target)
{
	uint64_t least = -1ULL, start, took;
	int batch, i;

	for (batch = 0; batch < BATCHES; batch++) {
		start = ticks();
		for (i = 0; i < BATCH; i++)
			asm volatile(".byte 0xc6, 0x07, 0x01" : : "D" (target));
		took = ticks() - start;
		least = took < least ? took : least;
	}
	return least;
}

static void guest_faults(uint64_t target)
{
	uint64_t least = least_of_faults(target);

	for (;;)
		asm volatile("vmcall" : : "a" (DONE_CALL), "b" (least));
}

static void dune_guest_fault(void)
{
	uint64_t target = FOUR_GIB - (64 << 20);

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_faults, target);
	set_gate(&vm, 14, stub_skip, true);
	vm.pd[3][(target >> 21) & 511] = 0;
	run_again(&vcpu);
	report("guest: page fault, ring-3 handler and back", vcpu.run->regs.rbx / BATCH);
}

/* The same guest over /dev/kvm; calls leave by a port. */
extern void stub_port(void);
asm(".text; .globl stub_port; stub_port: out %al, $0x10; sysretq");

struct kvm {
	int device, vm, vcpu;
	struct kvm_run *run;
};

static struct kvm_segment kvm_segment(struct dune_segment s)
{
	return (struct kvm_segment){
		.base = s.base, .limit = s.limit, .selector = s.selector,
		.type = s.access_rights & 15, .s = s.access_rights >> 4 & 1,
		.dpl = s.access_rights >> 5 & 3, .present = s.access_rights >> 7 & 1,
		.l = s.access_rights >> 13 & 1, .db = s.access_rights >> 14 & 1,
		.g = s.access_rights >> 15 & 1, .unusable = s.access_rights >> 16 & 1,
	};
}

static void kvm_vcpu_open(struct kvm *k, int id)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[128];
	} cpuid = { .head.nent = 128 };

	k->vcpu = ioctl(k->vm, KVM_CREATE_VCPU, id);
	check(k->vcpu >= 0);
	check(!ioctl(k->device, KVM_GET_SUPPORTED_CPUID, &cpuid));
	check(!ioctl(k->vcpu, KVM_SET_CPUID2, &cpuid));
	k->run = mmap(NULL, ioctl(k->device, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
		      MAP_SHARED, k->vcpu, 0);
	check(k->run != MAP_FAILED);
}

static void kvm_open(struct kvm *k)
{
	struct kvm_userspace_memory_region memory = { .memory_size = 3ULL << 30 };

	k->device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (k->device < 0)
		skip("no /dev/kvm to compare with");
	k->vm = ioctl(k->device, KVM_CREATE_VM, 0);
	check(k->vm >= 0);
	check(!ioctl(k->vm, KVM_SET_TSS_ADDR, 0xfffbd000UL));
	check(!ioctl(k->vm, KVM_SET_USER_MEMORY_REGION, &memory));
	kvm_vcpu_open(k, 0);
}

static void kvm_start(struct kvm *k, void (*entry)(uint64_t), uint64_t argument)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[3];
	} msrs = { .head.nmsrs = 3 };
	struct kvm_regs regs = { .rflags = 0x202 };
	struct kvm_sregs sregs;
	struct dune_state s;

	default_state(&vm, &s, true);
	check(!ioctl(k->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs = kvm_segment(s.cs);
	sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = kvm_segment(s.ss);
	sregs.tr = kvm_segment(s.tr);
	sregs.ldt.unusable = 1;
	sregs.gdt.base = s.gdt.base;
	sregs.gdt.limit = s.gdt.limit;
	sregs.idt.base = s.idt.base;
	sregs.idt.limit = s.idt.limit;
	sregs.cr0 = s.cr0;
	sregs.cr3 = s.cr3;
	sregs.cr4 = 0x620;
	sregs.efer = s.efer;
	check(!ioctl(k->vcpu, KVM_SET_SREGS, &sregs));
	msrs.entries[0].index = 0xc0000081;
	msrs.entries[0].data = s.star;
	msrs.entries[1].index = 0xc0000082;
	msrs.entries[1].data = (uintptr_t)stub_port;
	msrs.entries[2].index = 0xc0000084;
	msrs.entries[2].data = s.fmask;
	check_eq(ioctl(k->vcpu, KVM_SET_MSRS, &msrs), 3);
	regs.rsp = (uintptr_t)low_pages(65536) + 65536 - 64;
	regs.rip = (uintptr_t)entry;
	regs.rdi = argument;
	check(!ioctl(k->vcpu, KVM_SET_REGS, &regs));
}

static void kvm_run_again(struct kvm *k)
{
	while (ioctl(k->vcpu, KVM_RUN, 0) < 0)
		check_eq(errno, EINTR);
	check_eq(k->run->exit_reason, KVM_EXIT_IO);
}

/* Guest code as above, which leaves by a port. */
static void guest_touches_port(uint64_t base)
{
	uint64_t took = time_of_touches(base);

	for (;;)
		asm volatile("syscall" : : "a" (DONE_CALL), "b" (took) : "rcx", "r11", "memory");
}

static void kvm_syscall(void)
{
	struct kvm k;
	int i;

	kvm_open(&k);
	make_tables(&vm);
	kvm_start(&k, guest_syscalls, 1 << 30);
	kvm_run_again(&k);
	report("kvm: system call to the runtime and back", LEAST(BATCH,
		for (i = 0; i < BATCH; i++)
			kvm_run_again(&k);));
	k.run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	kvm_run_again(&k);
	report("kvm: the same, registers by KVM_CAP_SYNC_REGS", LEAST(BATCH,
		for (i = 0; i < BATCH; i++) {
			k.run->s.regs.regs.rax = i;
			k.run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
			kvm_run_again(&k);
		}));
}

static uint64_t kvm_touches(struct kvm *k, uint8_t *base)
{
	struct kvm_regs regs;

	kvm_start(k, guest_touches_port, (uintptr_t)base);
	kvm_run_again(k);
	check(!ioctl(k->vcpu, KVM_GET_REGS, &regs));
	return regs.rbx;
}

static void kvm_ept_fault(void)
{
	uint8_t *base = low_pages(BATCHES * BATCH * PAGE);
	uint64_t least = -1ULL, warm = -1ULL, took;
	struct kvm k;
	int i;

	memset(base, 1, BATCHES * BATCH * PAGE);
	kvm_open(&k);
	make_tables(&vm);
	for (i = 0; i < BATCHES; i++) {
		took = kvm_touches(&k, base + i * BATCH * PAGE);
		least = took < least ? took : least;
		took = kvm_touches(&k, base + i * BATCH * PAGE);
		warm = took < warm ? took : warm;
	}
	report("kvm: EPT fault on a resident page", (least - warm) / BATCH);
}

static void kvm_switch(void)
{
	struct kvm k, other;
	int i;

	kvm_open(&k);
	other = k;
	kvm_vcpu_open(&other, 1);
	make_tables(&vm);
	kvm_start(&k, guest_syscalls, 1 << 30);
	kvm_start(&other, guest_syscalls, 1 << 30);
	kvm_run_again(&k);
	kvm_run_again(&other);
	report("kvm: a system call from another vCPU each time", LEAST(BATCH,
		for (i = 0; i < BATCH; i++)
			kvm_run_again(i & 1 ? &k : &other);));
}

/* As guest_faults, and leaves by a port. */
static void guest_faults_port(uint64_t target)
{
	uint64_t least = least_of_faults(target);

	for (;;)
		asm volatile("syscall" : : "a" (DONE_CALL), "b" (least) : "rcx", "r11", "memory");
}

static void kvm_guest_fault(void)
{
	uint64_t target = 0x90000000;	/* low_pages are below */
	struct kvm_regs regs;
	struct kvm k;

	kvm_open(&k);
	make_tables(&vm);
	set_gate(&vm, 14, stub_skip, true);
	vm.pd[2][(target >> 21) & 511] = 0;
	kvm_start(&k, guest_faults_port, target);
	kvm_run_again(&k);
	check(!ioctl(k.vcpu, KVM_GET_REGS, &regs));
	report("kvm: page fault, ring-3 handler and back", regs.rbx / BATCH);
}

/* From Linux 6.12 on, VMX is on as long as kvm_intel is loaded, unless kvm was told not to. */
static bool kvm_keeps_vmx_on(void)
{
	char value = 'N';
	int fd = open("/sys/module/kvm/parameters/enable_virt_at_load", O_RDONLY);

	if (fd >= 0) {
		check(read(fd, &value, 1) == 1);
		close(fd);
	}
	return value == 'Y';
}

/* As long as a hypervisor has VMs, VMX is its own; afterwards it is ours, and the reverse. */
static void kvm_and_dune_take_turns(void)
{
	struct dune_vm_config config = { 0 };
	int device = open("/dev/dune", O_RDWR), vm_fd;
	struct kvm k;

	if (device < 0)
		skip("no /dev/dune: is dune.ko loaded?");
	if (kvm_keeps_vmx_on()) {
		printf("# VMX is KVM's\n");
		check_errno(ioctl(device, DUNE_CREATE_VM, &config), EBUSY);
		kvm_open(&k);
		check_errno(ioctl(device, DUNE_CREATE_VM, &config), EBUSY);
		make_tables(&vm);
		kvm_start(&k, guest_syscalls, 100);
		kvm_run_again(&k);
		return;
	}
	kvm_open(&k);
	check_errno(ioctl(device, DUNE_CREATE_VM, &config), EBUSY);
	munmap(k.run, ioctl(k.device, KVM_GET_VCPU_MMAP_SIZE, 0));
	check(!close(k.vcpu) && !close(k.vm));
	vm_fd = ioctl(device, DUNE_CREATE_VM, &config);
	check(vm_fd >= 0);
	/* KVM says EBUSY; from Linux 6.12 on, where it has a hotplug state as we do, EIO. */
	check(ioctl(k.device, KVM_CREATE_VM, 0) == -1 && (errno == EBUSY || errno == EIO));
	check(!close(vm_fd));
	check(ioctl(k.device, KVM_CREATE_VM, 0) >= 0);
}

#define TEST(name)	{ "count_" #name, name }
const struct test count_tests[] = {
	TEST(dune_syscall),
	TEST(dune_switch),
	TEST(dune_ept_fault),
	TEST(dune_guest_fault),
	TEST(kvm_syscall),
	TEST(kvm_ept_fault),
	TEST(kvm_switch),
	TEST(kvm_guest_fault),
	TEST(kvm_and_dune_take_turns),
	{ NULL, NULL },
};
