// SPDX-License-Identifier: GPL-2.0-only
/* The guest that the selftests use: its tables, its state, its runs. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PRESENT_USER	7ULL

/* Zeroed pages below 4 GiB. */
void *low_pages(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	check(p != MAP_FAILED);
	return p;
}

/* Page tables and descriptors, of no device yet. */
void make_tables(struct vm *vm)
{
	uint64_t *pdpt = low_pages(4096);
	int i, j;

	vm->pml4 = low_pages(4096);
	vm->pml4[0] = (uintptr_t)pdpt | PRESENT_USER;
	for (i = 0; i < 4; i++) {
		vm->pd[i] = low_pages(4096);
		pdpt[i] = (uintptr_t)vm->pd[i] | PRESENT_USER;
		for (j = 0; j < 512; j++)
			vm->pd[i][j] = ((uint64_t)i << 30) | (j << 21) | 0x80 | PRESENT_USER;
	}
	/* null, kernel code, kernel data, user data, user code, TSS (two words) */
	vm->gdt = low_pages(4096);
	vm->gdt[1] = 0x00af9b000000ffffULL;
	vm->gdt[2] = 0x00cf93000000ffffULL;
	vm->gdt[3] = 0x00cff3000000ffffULL;
	vm->gdt[4] = 0x00affb000000ffffULL;
	vm->idt = low_pages(4096);
	vm->tss = low_pages(4096);
}

void vm_open(struct vm *vm, uint64_t features)
{
	struct dune_vm_config config = { .features = features };
	struct dune_window window = { .size = FOUR_GIB };

	vm->device = open("/dev/dune", O_RDWR | O_CLOEXEC);
	if (vm->device < 0)
		skip("no /dev/dune: is dune.ko loaded?");
	check(!ioctl(vm->device, DUNE_GET_INFO, &vm->info));
	if (features & ~vm->info.features)
		skip("this machine lacks the feature");
	vm->fd = ioctl(vm->device, DUNE_CREATE_VM, &config);
	check(vm->fd >= 0);
	check(!ioctl(vm->fd, DUNE_VM_MAP_WINDOW, &window));
	make_tables(vm);
}

void vcpu_open(struct vm *vm, struct vcpu *vcpu, uint32_t ring_entries)
{
	struct dune_vcpu_config config = { .ring_entries = ring_entries };
	size_t bytes = ring_entries ? DUNE_RING_ENTRIES + 8 * ring_entries : 4096;

	vcpu->vm = vm;
	vcpu->fd = ioctl(vm->fd, DUNE_VM_CREATE_VCPU, &config);
	check(vcpu->fd >= 0);
	vcpu->run = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	check(vcpu->run != MAP_FAILED);
	vcpu->ring = (void *)vcpu->run + DUNE_RING_OFFSET;
	vcpu->ring_gpas = (void *)vcpu->run + DUNE_RING_ENTRIES;
	vcpu->ring_entries = ring_entries;
	vcpu->stack = (uint8_t *)low_pages(65536) + 65536;
}

void vcpu_close(struct vcpu *vcpu)
{
	size_t bytes = vcpu->ring_entries ? DUNE_RING_ENTRIES + 8 * vcpu->ring_entries : 4096;

	munmap(vcpu->run, bytes);
	munmap(vcpu->stack - 65536, 65536);
	check(!close(vcpu->fd));
}

static struct dune_segment segment(uint16_t selector, uint32_t access_rights)
{
	return (struct dune_segment){
		.limit = 0xffffffff, .access_rights = access_rights, .selector = selector,
	};
}

/* 64-bit mode over the VM's tables; SYSCALL goes to stub_syscall. */
void default_state(const struct vm *vm, struct dune_state *state, bool user)
{
	memset(state, 0, sizeof(*state));
	state->cs = user ? segment(0x23, 0xa0fb) : segment(KERNEL_CS, 0xa09b);
	state->ss = user ? segment(0x1b, 0xc0f3) : segment(0x10, 0xc093);
	state->ds = state->es = state->fs = state->gs = state->ss;
	state->tr = (struct dune_segment){
		.base = (uintptr_t)vm->tss, .limit = 0x67, .access_rights = 0x8b,
		.selector = TSS_SELECTOR,
	};
	state->ldtr.access_rights = 0x10000;
	state->gdt = (struct dune_table){ .base = (uintptr_t)vm->gdt, .limit = 0x3f };
	state->idt = (struct dune_table){ .base = (uintptr_t)vm->idt, .limit = 0xfff };
	state->cr0 = 0x80010033;
	state->cr3 = (uintptr_t)vm->pml4;
	state->cr4 = (1 << 5) | (1 << 7) | (1 << 9) | (1 << 10) | (1 << 16) | (1 << 18);
	state->cr4 &= vm->info.cr4;
	state->efer = 0xd01;
	state->star = (uint64_t)0x13 << 48 | (uint64_t)KERNEL_CS << 32;
	state->lstar = (uintptr_t)stub_syscall;
	state->fmask = 0x700;
}

static void finished(void)
{
	vmcall(DONE_CALL, 0);
}

/* Makes the next run begin with entry(argument), in ring 3 or ring 0. */
void vcpu_start(struct vcpu *vcpu, bool user, void (*entry)(uint64_t), uint64_t argument)
{
	struct dune_state state;
	uint64_t *top = (uint64_t *)(vcpu->stack - 64);

	default_state(vcpu->vm, &state, user);
	check(!ioctl(vcpu->fd, DUNE_VCPU_SET_STATE, &state));
	memset(&vcpu->run->regs, 0, sizeof(vcpu->run->regs));
	*top = (uintptr_t)finished;
	vcpu->run->regs.rsp = (uintptr_t)top;
	vcpu->run->regs.rip = (uintptr_t)entry;
	vcpu->run->regs.rdi = argument;
	vcpu->run->regs.rflags = 0x202;
	vcpu->run->immediate_exit = 0;
	vcpu->run->inject = 0;
	vcpu->run->exceptions = 0;
}

int vcpu_run(struct vcpu *vcpu)
{
	return ioctl(vcpu->fd, DUNE_VCPU_RUN, 0);
}

/* Runs until an exit, which must be this one. EINTR without a signal is no exit. */
void run_to(struct vcpu *vcpu, uint32_t exit_reason)
{
	struct dune_run *run = vcpu->run;
	int r;

	do
		r = vcpu_run(vcpu);
	while (r < 0 && errno == EINTR);
	if (!r && run->exit_reason == exit_reason)
		return;
	printf("# run: %d (%s), exit %u not %u, vmx %u qualification %#llx gpa %#llx gva %#llx access %#x error %d event %#x rip %#llx rax %#llx\n",
	       r, r ? strerror(errno) : "", run->exit_reason, exit_reason, run->vmx_reason,
	       run->qualification, run->gpa, run->gva, run->access, run->error,
	       run->event_info, run->regs.rip, run->regs.rax);
	fail(__FILE__, __LINE__, "another exit");
}

/* An interrupt gate; a user gate leads to ring 3 itself, on its own stack (IST 1). */
void set_gate(struct vm *vm, int vector, void (*handler)(void), bool user)
{
	uint64_t address = (uintptr_t)handler;
	uint64_t selector = user ? 0x23 : KERNEL_CS;
	uint64_t type = user ? 0xee : 0x8e;
	uint8_t *stack = low_pages(16384);

	vm->idt[2 * vector] = (address & 0xffff) | selector << 16 | 1ULL << 32 | type << 40 |
			      (address >> 16 & 0xffff) << 48;
	vm->idt[2 * vector + 1] = address >> 32;
	/* IST 1 is at offset 36 of the TSS. */
	vm->tss[9] = (uintptr_t)stack + 16384;
}

/* A counter of the module's: of all VMs, since it was loaded. */
uint64_t statistic(const char *name)
{
	unsigned long long value;
	char line[128], key[64];
	FILE *file = fopen("/sys/kernel/debug/dune/stats", "r");

	if (!file)
		skip("no debugfs at /sys/kernel/debug");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "%63s %llu", key, &value) == 2 && !strcmp(key, name)) {
			fclose(file);
			return value;
		}
	fail(__FILE__, __LINE__, name);
}
