// SPDX-License-Identifier: GPL-2.0-only
/* The ring of dirty pages: complete, in every case. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PAGE	4096UL

static struct vm vm;
static struct vcpu vcpu;

/* Guest code: writes to one byte in each of rsi pages, rdx apart. */
static void guest_writes(uint64_t base)
{
	uint64_t pages, step, i;

	asm volatile("" : "=S" (pages), "=d" (step));
	for (i = 0; i < pages; i++)
		*(volatile uint8_t *)(base + i * step) = i;
}

static void start_writes(void *base, uint64_t pages, uint64_t step)
{
	vcpu_start(&vcpu, true, guest_writes, (uintptr_t)base);
	vcpu.run->regs.rsi = pages;
	vcpu.run->regs.rdx = step;
}

/* Runs until an exit of any kind. EINTR without a signal is none. */
static uint32_t run_once(void)
{
	int r;

	do
		r = vcpu_run(&vcpu);
	while (r < 0 && errno == EINTR);
	check_eq(r, 0);
	return vcpu.run->exit_reason;
}

/* Takes everything out of the ring; a flag for each page from base. */
static int drain(uint8_t *flags, uint8_t *base, uint64_t pages)
{
	uint32_t head = __atomic_load_n(&vcpu.ring->head, __ATOMIC_ACQUIRE);
	int in_range = 0;

	for (; vcpu.ring->tail != head; vcpu.ring->tail++) {
		uint64_t gpa = vcpu.ring_gpas[vcpu.ring->tail % vcpu.ring_entries];
		uint64_t page = (gpa - (uintptr_t)base) / PAGE;

		check_eq(gpa & (PAGE - 1), 0);
		if (page < pages) {
			in_range += !flags[page];
			flags[page] = 1;
		}
	}
	return in_range;
}

static void clear(void *base, uint64_t size)
{
	struct dune_range range = { .gpa = (uintptr_t)base, .size = size };

	check(!ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range));
}

static void open_one(uint32_t entries)
{
	vm_open(&vm, DUNE_FEATURE_PML);
	vcpu_open(&vm, &vcpu, entries);
	check_eq(vcpu.ring->entries, entries);
}

static void every_written_page_is_in_the_ring(void)
{
	uint8_t *base = low_pages(300 * PAGE), flags[300];
	int i, round;

	open_one(1024);
	for (round = 0; round < 3; round++) {
		memset(flags, 0, sizeof(flags));
		start_writes(base + round * PAGE, 100, 3 * PAGE - PAGE * (round == 2));
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		check_eq(vcpu.run->regs.rax, DONE_CALL);
		clear(base, 300 * PAGE);
		check_eq(drain(flags, base, 300), 100);
		for (i = 0; i < 100; i++)
			check(flags[round + i * (round == 2 ? 2 : 3)]);
	}
	/* Reading is not writing. */
	memset(flags, 0, sizeof(flags));
	vcpu_start(&vcpu, true, guest_read, (uintptr_t)base);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(drain(flags, base, 300), 0);
	/* A page is there once, until it is cleared. */
	start_writes(base, 1, PAGE);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	start_writes(base, 1, PAGE);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(drain(flags, base, 300), 1);
	start_writes(base, 1, PAGE);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	memset(flags, 0, sizeof(flags));
	check_eq(drain(flags, base, 300), 0);
}

static void a_full_ring_is_an_exit_and_loses_nothing(void)
{
	enum { PAGES = 5000 };
	uint8_t *base = low_pages(PAGES * PAGE), *flags = calloc(1, PAGES);
	int exits = 0, found = 0, i;

	memset(base, 0, PAGES * PAGE);
	open_one(1024);
	start_writes(base, PAGES, PAGE);
	for (;;) {
		if (run_once() == DUNE_EXIT_VMCALL)
			break;
		check_eq(vcpu.run->exit_reason, DUNE_EXIT_RING_FULL);
		/* Without room it stays so. */
		check_eq(run_once(), DUNE_EXIT_RING_FULL);
		exits++;
		found += drain(flags, base, PAGES);
	}
	found += drain(flags, base, PAGES);
	check_eq(found, PAGES);
	for (i = 0; i < PAGES; i++)
		check(flags[i]);
	check(exits >= PAGES / 1024 - 1);
}

/*
 * 1 GiB of writes, by 128 MiB eight times over: the log costs one exit for 512
 * pages. What another exit (an interrupt, above all) drains early costs none.
 */
static void an_exit_takes_512_pages(void)
{
	enum { PAGES = 32768, ROUNDS = 8 };
	uint8_t *base = low_pages(PAGES * PAGE), *flags = calloc(1, PAGES);
	uint64_t full, logged, entries;
	int i, round;

	memset(base, 0, PAGES * PAGE);
	open_one(65536);
	/* Once for the mapping, then without a fault. */
	start_writes(base, PAGES, PAGE);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	clear(base, PAGES * PAGE);
	check_eq(drain(flags, base, PAGES), PAGES);
	full = statistic("pml_full_exits");
	logged = statistic("pml_pages");
	entries = statistic("entries");
	for (round = 0; round < ROUNDS; round++) {
		memset(flags, 0, PAGES);
		start_writes(base, PAGES, PAGE);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		clear(base, PAGES * PAGE);
		/* Each page once: none lost, none twice. */
		check_eq(drain(flags, base, PAGES), PAGES);
		for (i = 0; i < PAGES; i++)
			check(flags[i]);
	}
	full = statistic("pml_full_exits") - full;
	logged = statistic("pml_pages") - logged;
	entries = statistic("entries") - entries;
	printf("# %llu exits of a full log, %llu of all kinds, for %llu pages\n",
	       (unsigned long long)full, (unsigned long long)entries, (unsigned long long)logged);
	check(logged >= PAGES * ROUNDS && logged < (PAGES + 64) * ROUNDS);
	check(full <= PAGES / 512 * ROUNDS && full >= (PAGES / 512 - 8) * ROUNDS);
	check(entries < PAGES / 512 * ROUNDS + 64 * ROUNDS);
}

static void a_tail_that_makes_no_sense_is_a_full_ring(void)
{
	open_one(1024);
	vcpu_start(&vcpu, true, guest_calls, 1);
	vcpu.ring->tail = vcpu.ring->head + 1;
	check_eq(run_once(), DUNE_EXIT_RING_FULL);
	vcpu.ring->tail = vcpu.ring->head - 1025;
	check_eq(run_once(), DUNE_EXIT_RING_FULL);
	vcpu.ring->tail = vcpu.ring->head;
	run_to(&vcpu, DUNE_EXIT_VMCALL);
}

static void pages_that_come_anew_are_logged_anew(void)
{
	uint8_t *base = low_pages(32 * PAGE), flags[32] = { 0 };

	open_one(1024);
	start_writes(base, 32, PAGE);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(drain(flags, base, 32), 32);
	check(!madvise(base, 32 * PAGE, MADV_DONTNEED));
	start_writes(base, 32, PAGE);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	memset(flags, 0, sizeof(flags));
	check_eq(drain(flags, base, 32), 32);
}

static void ranges_are_checked(void)
{
	struct dune_range range = { .gpa = 1, .size = PAGE };

	open_one(1024);
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range), 22);
	range = (struct dune_range){ .gpa = 0, .size = 1 };
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range), 22);
	range = (struct dune_range){ .gpa = 0, .size = 2ULL << 48 };
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range), 22);
	range = (struct dune_range){ .gpa = -PAGE, .size = 2 * PAGE };
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range), 22);
	range = (struct dune_range){ .gpa = 0, .size = PAGE, .reserved = { 0, 1 } };
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range), 22);
	clear(NULL, 1ULL << 48);
	clear(NULL, 0);
	vm_open(&vm, 0);
	range = (struct dune_range){ 0 };
	check_errno(ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range), 22);	/* no PML */
}

#define TEST(name)	{ "pml_" #name, name }
const struct test pml_tests[] = {
	TEST(every_written_page_is_in_the_ring),
	TEST(a_full_ring_is_an_exit_and_loses_nothing),
	TEST(an_exit_takes_512_pages),
	TEST(a_tail_that_makes_no_sense_is_a_full_ring),
	TEST(pages_that_come_anew_are_logged_anew),
	TEST(ranges_are_checked),
	{ NULL, NULL },
};
