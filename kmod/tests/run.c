// SPDX-License-Identifier: GPL-2.0-only
/* Entries and exits: registers, rings, traps, and what stays apart. */
#define _GNU_SOURCE
#include "guest.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static struct vm vm;
static struct vcpu vcpu;

static void open_one(bool user, void (*entry)(uint64_t), uint64_t argument)
{
	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, user, entry, argument);
}

static void vmcall_comes_back_with_every_register(void)
{
	struct dune_regs *regs;
	uint64_t *r;
	int i;

	open_one(true, guest_registers, 0);
	regs = &vcpu.run->regs;
	r = (uint64_t *)regs;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(regs->rip, (uintptr_t)guest_registers + 3);
	for (i = 0; i < 16; i++)
		if (i != 6)	/* rsp */
			r[i] = 0x1122334455667700ULL + i;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	for (i = 0; i < 16; i++)
		if (i != 6)	/* rsp */
			check_eq(r[i], ~(0x1122334455667700ULL + i));
	check_eq(regs->rsp, (uintptr_t)vcpu.stack - 64);
}

static void ring_3_and_ring_0(void)
{
	struct dune_state state;
	int user;

	open_one(true, guest_calls, 1);
	for (user = 0; user < 2; user++) {
		vcpu_start(&vcpu, user, guest_calls, 1);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		check_eq(vcpu.run->regs.rax, 1);
		check(!ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state));
		check_eq(state.cs.selector & 3, user ? 3 : 0);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		check_eq(vcpu.run->regs.rax, DONE_CALL);
	}
}

static void a_syscall_goes_to_ring_0_and_back(void)
{
	struct dune_state state;

	open_one(true, guest_syscall, 0);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, 39);
	check_eq(vcpu.run->regs.rip, (uintptr_t)stub_syscall + 3);
	check(!ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state));
	check_eq(state.cs.selector & 3, 0);
	vcpu.run->regs.rax = 4711;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
	check_eq(vcpu.run->regs.rbx, 4711);
	check(!ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state));
	check_eq(state.cs.selector, 0x23);
}

static void a_page_fault_goes_to_a_ring_3_handler(void)
{
	uint64_t target = FOUR_GIB - (64 << 20);
	struct dune_state state;

	open_one(true, guest_read, 0);
	target += (uintptr_t)vm.gdt & 0x1fffff;
	vcpu.run->regs.rdi = target;
	set_gate(&vm, 14, stub_fault, true);
	vm.pd[3][(target >> 21) & 511] = 0;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, FAULT_CALL);
	check(!ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state));
	check_eq(vcpu.run->cr2, target);
	check_eq(state.cs.selector, 0x23);
	/* Have it read a page of ours instead. */
	vm.pd[3][(target >> 21) & 511] =
		((uintptr_t)vm.gdt & ~0x1fffffULL) | 0x80 | 7;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
}

static void guest_cpuid(uint64_t leaf)
{
	uint32_t a = leaf, b, c = 0, d;

	asm volatile("cpuid" : "+a" (a), "=b" (b), "+c" (c), "=d" (d));
}

static void guest_hlt(uint64_t unused)
{
	asm volatile("hlt");
}

static void guest_rdmsr(uint64_t msr)
{
	uint32_t a, d;

	asm volatile("rdmsr" : "=a" (a), "=d" (d) : "c" ((uint32_t)msr));
}

static void guest_wrmsr(uint64_t msr)
{
	asm volatile("wrmsr" : : "a" (0), "d" (0), "c" ((uint32_t)msr));
}

static void guest_out(uint64_t port)
{
	asm volatile("outb %b0, %w1" : : "a" (1), "Nd" ((uint16_t)port));
}

static void guest_mov_cr4(uint64_t value)
{
	asm volatile("mov %0, %%cr4" : : "r" (value));
}

static void guest_mov_to_cr8(uint64_t value)
{
	asm volatile("mov %0, %%cr8" : : "r" (value));
}

static void guest_mov_from_cr8(uint64_t unused)
{
	uint64_t value;

	asm volatile("mov %%cr8, %0" : "=r" (value));
}

static void guest_mov_dr7(uint64_t value)
{
	asm volatile("mov %0, %%db7" : : "r" (value));
}

static void guest_wbinvd(uint64_t unused)
{
	asm volatile("wbinvd");
}

static void guest_vmptrst(uint64_t address)
{
	asm volatile("vmptrst (%0)" : : "r" (address) : "memory");
}

/* Everything by which ring 0 of a guest could reach the host's CPU exits. */
static void privileged_instructions_exit(void)
{
	static const struct {
		void (*entry)(uint64_t);
		uint64_t argument;
		uint32_t exit;
	} cases[] = {
		{ guest_cpuid, 1, DUNE_EXIT_CPUID },
		{ guest_hlt, 0, DUNE_EXIT_HLT },
		{ guest_out, 0x80, DUNE_EXIT_IO },
		{ guest_mov_cr4, 0, DUNE_EXIT_CR },
		{ guest_mov_to_cr8, 15, DUNE_EXIT_CR },		/* the host's own APIC */
		{ guest_mov_from_cr8, 0, DUNE_EXIT_CR },
		{ guest_mov_dr7, 0x400, DUNE_EXIT_OTHER },
		{ guest_wbinvd, 0, DUNE_EXIT_OTHER },
		{ guest_vmptrst, 0x1000, DUNE_EXIT_OTHER },
		{ guest_wrmsr, 0xc0000080, DUNE_EXIT_WRMSR },	/* EFER */
		{ guest_wrmsr, 0xc0000082, DUNE_EXIT_WRMSR },	/* LSTAR */
		{ guest_wrmsr, 0x48, DUNE_EXIT_WRMSR },		/* SPEC_CTRL */
		{ guest_wrmsr, 0x277, DUNE_EXIT_WRMSR },	/* PAT */
		{ guest_rdmsr, 0xc0000080, DUNE_EXIT_RDMSR },
		{ guest_rdmsr, 0xc0000082, DUNE_EXIT_RDMSR },
		{ guest_rdmsr, 0x1b, DUNE_EXIT_RDMSR },		/* APIC_BASE */
		{ guest_rdmsr, 0x176, DUNE_EXIT_RDMSR },	/* SYSENTER_EIP */
		{ guest_rdmsr, 0x4e0, DUNE_EXIT_RDMSR },
		{ guest_rdmsr, 0x40000000, DUNE_EXIT_RDMSR },
	};
	unsigned int i;

	open_one(false, guest_hlt, 0);
	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		vcpu_start(&vcpu, false, cases[i].entry, cases[i].argument);
		run_to(&vcpu, cases[i].exit);
		check(vcpu.run->instruction_bytes > 0);
	}
}

static void guest_vmfunc(uint64_t index)
{
	asm volatile("vmfunc" : : "a" (0), "c" (index));
}

/* There is one EPT, and no switching to another (VMFUNC 0): from either ring it is not an instruction. */
static void vmfunc_is_undefined(void)
{
	int user;

	open_one(false, guest_hlt, 0);
	for (user = 0; user < 2; user++) {
		vcpu_start(&vcpu, user, guest_vmfunc, 1);
		vcpu.run->exceptions = 1 << 6;
		run_to(&vcpu, DUNE_EXIT_EXCEPTION);
		check_eq(vcpu.run->event_info & 0xff, 6);
	}
}

static void exceptions_exit_when_asked_for(void)
{
	open_one(true, (void (*)(uint64_t))0x10, 0);
	set_gate(&vm, 14, stub_fault, true);
	vcpu.run->exceptions = 1 << 6;
	vcpu.run->regs.rip = (uintptr_t)guest_registers + 3 + 15 * 3 + 3;	/* ud2 */
	run_to(&vcpu, DUNE_EXIT_EXCEPTION);
	check_eq(vcpu.run->event_info & 0xff, 6);
	/* Single step always does. */
	vcpu_start(&vcpu, true, guest_registers, 0);
	vcpu.run->regs.rip += 3;
	vcpu.run->regs.rflags |= 0x100;
	run_to(&vcpu, DUNE_EXIT_EXCEPTION);
	check_eq(vcpu.run->event_info & 0xff, 1);
	check_eq(vcpu.run->qualification & (1 << 14), 1 << 14);
}

/*
 * A handler of #DB or #AC that raises the same again. The CPU need not come to the end of an
 * instruction meanwhile, and takes no interrupt before: so both exit every time, asked for or not.
 */
static void a_handler_that_raises_its_own_exception_exits(void)
{
	static const struct {
		void (*entry)(uint64_t);
		uint32_t vector, event;
	} cases[] = {
		{ guest_int1, 1, DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | 1 },
		{ guest_misaligned, 17,
		  DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | DUNE_EVENT_HAS_ERROR | 17 },
	};
	struct dune_state state;
	unsigned int i, n;

	open_one(true, guest_calls, 1);
	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		vcpu_start(&vcpu, true, cases[i].entry, (uintptr_t)low_pages(4096));
		default_state(&vm, &state, true);
		state.cr0 |= 1 << 18;
		check(!ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, &state));
		vcpu.run->regs.rflags |= 1 << 18;
		set_gate(&vm, cases[i].vector, (void (*)(void))cases[i].entry, true);
		raised = 0;
		for (n = 1; n <= 200; n++) {
			run_to(&vcpu, DUNE_EXIT_EXCEPTION);
			check_eq(vcpu.run->event_info & 0xff, cases[i].vector);
			check_eq(raised, n);
			vcpu.run->inject = cases[i].event;
			vcpu.run->inject_error = 0;
		}
		vcpu.run->inject = 0;
	}
}

static void an_injected_fault_is_delivered(void)
{
	open_one(true, guest_calls, 1);
	set_gate(&vm, 14, stub_fault, true);
	vcpu.run->cr2 = 0x1234567;
	vcpu.run->inject = DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | DUNE_EVENT_HAS_ERROR | 14;
	vcpu.run->inject_error = 6;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, FAULT_CALL);
	check_eq(vcpu.run->inject, 0);
	check_eq(((uint64_t *)vcpu.run->regs.rsp)[1], 6);
	check_eq(vcpu.run->cr2, 0x1234567);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, 1);
}

/* An exit in the middle of a delivery: the fault comes after all, or is forgotten. */
static void an_interrupted_delivery_is_taken_up_again(void)
{
	uint64_t target = FOUR_GIB - (64 << 20);
	int forget;

	for (forget = 0; forget < 2; forget++) {
		open_one(true, guest_read, target);
		set_gate(&vm, 14, stub_fault, true);
		vm.pd[3][(target >> 21) & 511] = 0;
		/* The stack of the gate is not there yet. */
		check(!munmap((void *)(uintptr_t)(vm.tss[9] - 16384), 16384));
		run_to(&vcpu, DUNE_EXIT_MEMORY);
		check_eq(vcpu.run->regs.rip, (uintptr_t)guest_read);
		check(mmap((void *)(uintptr_t)(vm.tss[9] - 16384), 16384, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
		if (forget) {
			vcpu.run->regs.rip = (uintptr_t)guest_calls;
			vcpu.run->regs.rdi = 1;
			vcpu.run->flags = DUNE_RUN_FORGET_EVENT;
		}
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		check_eq(vcpu.run->regs.rax, forget ? 1 : FAULT_CALL);
		check_eq(vcpu.run->flags, 0);
	}
}

static void a_triple_fault_is_an_exit(void)
{
	open_one(true, (void (*)(uint64_t))0x10, 0);
	vm.pd[0][0] = 0;
	run_to(&vcpu, DUNE_EXIT_SHUTDOWN);
}

static void a_state_that_the_cpu_refuses_is_an_exit(void)
{
	struct dune_state state;

	open_one(true, guest_calls, 1);
	default_state(&vm, &state, true);
	state.cs.access_rights = 0xa0f3;	/* data */
	check(!ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, &state));
	run_to(&vcpu, DUNE_EXIT_FAIL_ENTRY);
	default_state(&vm, &state, true);
	check(!ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, &state));
	vcpu.run->fs_base = 1ULL << 60;		/* not canonical */
	run_to(&vcpu, DUNE_EXIT_FAIL_ENTRY);
	vcpu.run->fs_base = 0;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
}

/* What the CPU refused was not delivered, and is not once it has been withdrawn. */
static void a_refused_event_does_not_come_later(void)
{
	open_one(true, guest_calls, 1);
	set_gate(&vm, 14, stub_fault, true);
	vcpu.run->inject = DUNE_EVENT_VALID | DUNE_EVENT_EXCEPTION | DUNE_EVENT_HAS_ERROR | 14;
	vcpu.run->fs_base = 1ULL << 60;		/* not canonical */
	run_to(&vcpu, DUNE_EXIT_FAIL_ENTRY);
	check(vcpu.run->inject != 0);
	vcpu.run->inject = 0;
	vcpu.run->fs_base = 0;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, 1);
}

static void fpu_state_is_kept_and_apart(void)
{
	uint64_t pattern = 0x0123456789abcdefULL, out[2] __attribute__((aligned(16))) = { 1, 2 };
	double *pi = low_pages(4096);

	open_one(true, guest_xmm, pattern);
	vcpu.run->regs.rsi = (uintptr_t)pi;
	asm volatile("movdqa %0, %%xmm15" : : "m" (out) : "xmm15");
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	asm volatile("movdqa %%xmm15, %0" : "=m" (out));
	check(out[0] != pattern);
	asm volatile("pxor %%xmm15, %%xmm15; fninit" : : : "xmm15");
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
	check_eq(vcpu.run->regs.rbx, pattern);
	check(*pi > 3.14159 && *pi < 3.1416);
}

static void xsave_images_go_in_and_out(void)
{
	struct dune_buffer buffer;
	uint8_t *image;

	open_one(true, guest_xmm, 77);
	image = calloc(1, vm.info.xsave_bytes);
	buffer = (struct dune_buffer){ .addr = (uintptr_t)image, .size = vm.info.xsave_bytes };
	vcpu.run->regs.rsi = (uintptr_t)low_pages(4096);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check(!ioctl(vcpu.fd, DUNE_VCPU_GET_XSAVE, &buffer));
	check_eq(*(uint64_t *)(image + 160 + 15 * 16), 77);
	*(uint64_t *)(image + 160 + 15 * 16) = 99;
	check(!ioctl(vcpu.fd, DUNE_VCPU_SET_XSAVE, &buffer));
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rbx, 99);
}

/* Uses AVX; the halves of a YMM register over an exit. */
static void guest_ymm(uint64_t value)
{
	uint64_t low, high;

	asm volatile("vmovq %2, %%xmm7\n\t"
		     "vpunpcklqdq %%xmm7, %%xmm7, %%xmm7\n\t"
		     "vinsertf128 $1, %%xmm7, %%ymm7, %%ymm7\n\t"
		     "mov $1, %%eax\n\t"
		     "vmcall\n\t"
		     "vmovq %%xmm7, %0\n\t"
		     "vextractf128 $1, %%ymm7, %%xmm7\n\t"
		     "vmovq %%xmm7, %1"
		     : "=&r" (low), "=&r" (high) : "r" (value) : "rax", "xmm7");
	asm volatile("vmcall" : : "a" (DONE_CALL), "b" (low ^ high), "D" (value));
	__builtin_unreachable();
}

/* XCR0 is the VM's: with AVX its registers are kept, without it AVX is no instruction. The host has its own. */
static void xcr0_is_the_vms(void)
{
	struct dune_vm_config config = { .xcr0 = 3 };
	struct dune_window window = { .size = FOUR_GIB };
	uint64_t mine[4] = { 1, 2, 3, 4 }, out[4];

	open_one(true, guest_ymm, 0x1234);
	printf("# XCR0 %#llx\n", vm.info.xcr0);
	if (!(vm.info.xcr0 & 4))
		skip("no AVX here");
	asm volatile("vmovdqu %0, %%ymm7" : : "m" (mine) : "xmm7");
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	asm volatile("vmovdqu %%ymm7, %0" : "=m" (out));
	check(!memcmp(out, mine, sizeof(out)));
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
	check_eq(vcpu.run->regs.rbx, 0);

	vm.fd = ioctl(vm.device, DUNE_CREATE_VM, &config);
	check(vm.fd >= 0);
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &window));
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_ymm, 0x1234);
	vcpu.run->exceptions = 1 << 6;
	asm volatile("vmovdqu %0, %%ymm7" : : "m" (mine) : "xmm7");
	run_to(&vcpu, DUNE_EXIT_EXCEPTION);
	asm volatile("vmovdqu %%ymm7, %0" : "=m" (out));
	check_eq(vcpu.run->event_info & 0xff, 6);
	check(!memcmp(out, mine, sizeof(out)));
}

static void segment_bases_are_the_guests_own(void)
{
	struct dune_state state;

	open_one(false, guest_swapgs, 0x6000);
	default_state(&vm, &state, false);
	state.kernel_gs_base = 0x5000;
	check(!ioctl(vcpu.fd, DUNE_VCPU_SET_STATE, &state));
	vcpu.run->gs_base = 0x4000;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rbx, 0x5000);
	check_eq(vcpu.run->regs.rcx, 0x4000);
	check_eq(vcpu.run->gs_base, 0x4000);
	check(!ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state));
	check_eq(state.kernel_gs_base, 0x6000);
	/* This thread's own TLS still works. */
	check(pthread_self() != 0);
}

static void *other_vcpu(void *argument)
{
	struct vcpu *v = argument;

	vcpu_start(v, true, guest_calls, 200);
	do
		run_to(v, DUNE_EXIT_VMCALL);
	while (v->run->regs.rax != DONE_CALL);
	return NULL;
}

static void vcpus_of_threads_share_the_memory(void)
{
	struct vcpu vcpus[4];
	pthread_t threads[4];
	int i;

	vm_open(&vm, 0);
	for (i = 0; i < 4; i++) {
		vcpu_open(&vm, &vcpus[i], 0);
		check(!pthread_create(&threads[i], NULL, other_vcpu, &vcpus[i]));
	}
	for (i = 0; i < 4; i++) {
		check(!pthread_join(threads[i], NULL));
		vcpu_close(&vcpus[i]);
	}
}

static void vcpus_come_and_go(void)
{
	int i;

	vm_open(&vm, 0);
	for (i = 0; i < 100; i++) {
		vcpu_open(&vm, &vcpu, 0);
		vcpu_start(&vcpu, true, guest_calls, 1);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		vcpu_close(&vcpu);
	}
}

static void a_vcpu_runs_on_every_cpu(void)
{
	int cpu, count = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	open_one(true, guest_calls, count + 1);
	for (cpu = 0; cpu < count; cpu++) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		check(!sched_setaffinity(0, sizeof(set), &set));
		run_to(&vcpu, DUNE_EXIT_VMCALL);
	}
}

#define TEST(name)	{ "run_" #name, name }
const struct test run_tests[] = {
	TEST(vmcall_comes_back_with_every_register),
	TEST(ring_3_and_ring_0),
	TEST(a_syscall_goes_to_ring_0_and_back),
	TEST(a_page_fault_goes_to_a_ring_3_handler),
	TEST(privileged_instructions_exit),
	TEST(vmfunc_is_undefined),
	TEST(exceptions_exit_when_asked_for),
	TEST(a_handler_that_raises_its_own_exception_exits),
	TEST(an_injected_fault_is_delivered),
	TEST(an_interrupted_delivery_is_taken_up_again),
	TEST(a_triple_fault_is_an_exit),
	TEST(a_state_that_the_cpu_refuses_is_an_exit),
	TEST(a_refused_event_does_not_come_later),
	TEST(fpu_state_is_kept_and_apart),
	TEST(xsave_images_go_in_and_out),
	TEST(xcr0_is_the_vms),
	TEST(segment_bases_are_the_guests_own),
	TEST(vcpus_of_threads_share_the_memory),
	TEST(vcpus_come_and_go),
	TEST(a_vcpu_runs_on_every_cpu),
	{ NULL, NULL },
};
