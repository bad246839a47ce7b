// SPDX-License-Identifier: GPL-2.0-only
/*
 * What only two CPUs can do to each other. Guests run on both while another
 * thread changes their memory, moves them, unplugs a CPU or dies.
 *
 * The oracle: a page of a file is mapped twice, once where the guests see it
 * and once where they do not. Once the kernel has taken the first mapping
 * away, a guest that still counts in that page does so through a translation
 * that should be gone. There the kernel's own flush interrupts every CPU of
 * the process, too; what only the module takes away (a window, dirty bits)
 * depends on the module's interrupt alone.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE	4096UL
#define GUESTS	3

static struct vm vm;
static struct runner runners[GUESTS];

static void wait_for_stalls(int count, uint64_t n)
{
	int i;

	for (i = 0; i < count; i++)
		while (runners[i].stalls < n)
			sched_yield();
}

static void release(int count)
{
	int i;

	for (i = 0; i < count; i++)
		__atomic_store_n(&runners[i].released, runners[i].stalls, __ATOMIC_SEQ_CST);
}

static int file_page(void)
{
	int fd = memfd_create("dunetest", MFD_CLOEXEC);

	check(fd >= 0 && !ftruncate(fd, PAGE));
	return fd;
}

static volatile uint64_t *map_page(void *where, int fd, int flags)
{
	void *p = mmap(where, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);

	check(p != MAP_FAILED);
	return p;
}

/* Two guests, on a CPU each, count in one page of a file; *alias shows it too. */
static volatile uint64_t *two_counting(int fd, volatile uint64_t **alias)
{
	volatile uint64_t *page;
	int i;

	vm_open(&vm, 0);
	page = map_page(NULL, fd, MAP_32BIT);
	*alias = map_page(NULL, fd, 0);
	check((uintptr_t)*alias >= FOUR_GIB);
	for (i = 0; i < 2; i++)
		start_runner(&vm, &runners[i], i, guest_spin, page + 8 * i);
	return page;
}

static void what_is_taken_away_is_gone_on_both_cpus(void)
{
	int fd = file_page(), other = file_page(), round;
	volatile uint64_t *page, *alias, *elsewhere = low_pages(PAGE);
	uint64_t kicks = statistic("kicks"), stalls = 0, seen[2];

	need_two_cpus();
	page = two_counting(fd, &alias);
	for (round = 0; round < 40; round++) {
		wait_for_progress(alias);
		wait_for_progress(alias + 8);
		switch (round % 5) {
		case 0:
			check(!munmap((void *)page, PAGE));
			break;
		case 1:
			check(!mprotect((void *)page, PAGE, PROT_READ));
			break;
		case 2:
			check(!mprotect((void *)page, PAGE, PROT_NONE));
			break;
		case 3:
			check(mremap((void *)page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
				     elsewhere) == elsewhere);
			break;
		case 4:		/* another page in its place: nobody is held up */
			map_page((void *)page, other, MAP_FIXED);
			break;
		}
		seen[0] = alias[0];
		seen[1] = alias[8];
		if (round % 5 == 4) {
			volatile uint64_t *there = map_page(NULL, other, 0);

			wait_for_progress(there);
			wait_for_progress(there + 8);
			munmap((void *)there, PAGE);
		} else {
			wait_for_stalls(2, ++stalls);
		}
		check_eq(alias[0], seen[0]);
		check_eq(alias[8], seen[1]);
		map_page((void *)page, fd, MAP_FIXED);
		release(2);
	}
	kicks = statistic("kicks") - kicks;
	printf("# %llu kicks\n", (unsigned long long)kicks);
	check(kicks >= 20);
}

/* No change of the process's page table, so nobody but the module stops the guests. */
static void an_unmapped_window_is_gone_on_both_cpus(void)
{
	volatile uint64_t *page = low_pages(PAGE);
	struct dune_window w = { .gpa = FOUR_GIB, .hva = (uintptr_t)page, .size = PAGE }, gone;
	uint64_t alias = FOUR_GIB - (2 << 20), seen[2], round;
	int i;

	need_two_cpus();
	vm_open(&vm, 0);
	vm.pd[3][511] = w.gpa | 0x87;
	gone = w;
	gone.hva = 0;
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
	for (i = 0; i < 2; i++)
		start_runner(&vm, &runners[i], i, guest_spin, (void *)(alias + 64 * i));
	for (round = 1; round <= 30; round++) {
		wait_for_progress(page);
		wait_for_progress(page + 8);
		check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &gone));
		seen[0] = page[0];
		seen[1] = page[8];
		wait_for_stalls(2, round);
		check_eq(page[0], seen[0]);
		check_eq(page[8], seen[1]);
		check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
		release(2);
	}
}

/* Empties the ring; how often the page was in it. */
static int times_logged(struct vcpu *v, volatile const void *page)
{
	int times = 0;

	for (; v->ring->tail != __atomic_load_n(&v->ring->head, __ATOMIC_ACQUIRE); v->ring->tail++)
		times += v->ring_gpas[v->ring->tail % v->ring_entries] == (uintptr_t)page;
	return times;
}

/*
 * A guest that writes to one page for ever has it logged once between two
 * clearings, and that is in the ring by the second; what is there already of
 * the time after it makes one more at most. Nobody but the guest is on its
 * CPU, so hardly anything but the clearing makes it exit.
 */
static void cleared_pages_are_logged_again_on_the_other_cpu(void)
{
	volatile uint64_t *page = low_pages(PAGE);
	struct dune_range range = { .gpa = (uintptr_t)page, .size = PAGE };
	int round, logged = 0;

	need_two_cpus();
	pin(0, 0);
	vm_open(&vm, DUNE_FEATURE_PML);
	runners[0].ring_entries = 1024;
	start_runner(&vm, &runners[0], 1, guest_spin, page);
	for (round = 1; round <= 200; round++) {
		uint64_t seen = *page;

		while (*page == seen)
			;
		check(!ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range));
		logged += times_logged(&runners[0].vcpu, page);
		check(logged == round || logged == round + 1);
	}
}

/* A child's memory is of one instant, and of that instant for both guests. */
static void a_fork_while_both_run_is_a_snapshot(void)
{
	volatile uint64_t *page = low_pages(PAGE);
	int i, round, status;
	pid_t child;

	need_two_cpus();
	vm_open(&vm, 0);
	for (i = 0; i < 2; i++)
		start_runner(&vm, &runners[i], i, guest_spin, page + 8 * i);
	for (round = 0; round < 20; round++) {
		uint64_t before[2] = { page[0], page[8] };

		child = fork();
		if (!child) {
			uint64_t first = page[0], second = page[8];

			usleep(3000);
			check_eq(page[0], first);
			check_eq(page[8], second);
			check(first >= before[0] && second >= before[1]);
			_exit(0);
		}
		check(waitpid(child, &status, 0) == child && !status);
		wait_for_progress(page);
		wait_for_progress(page + 8);
	}
}

/*
 * Three guests on two CPUs, moved about by another thread. Each compares its
 * registers with what it put there (guest_keeps), and its page goes and comes
 * meanwhile: a translation of an earlier stay on a CPU would show.
 */
static void vcpus_move_between_cpus(void)
{
	int fds[GUESTS], i, round;
	volatile uint64_t *pages[GUESTS], *alias[GUESTS];
	uint64_t moves = statistic("vmcs_loads"), seen;
	unsigned int seed = 1;

	need_two_cpus();
	vm_open(&vm, 0);
	for (i = 0; i < GUESTS; i++) {
		fds[i] = file_page();
		pages[i] = map_page(NULL, fds[i], MAP_32BIT);
		alias[i] = map_page(NULL, fds[i], 0);
		start_runner(&vm, &runners[i], i & 1, guest_keeps, pages[i]);
	}
	for (round = 0; round < 150; round++) {
		i = rand_r(&seed) % GUESTS;
		pin(runners[i].tid, rand_r(&seed) & 1);
		if (round % 3 == 0) {
			int other = file_page();
			volatile uint64_t *there = map_page(NULL, other, 0);

			map_page((void *)pages[i], other, MAP_FIXED);
			seen = *alias[i];
			wait_for_progress(there);
			check_eq(*alias[i], seen);
			map_page((void *)pages[i], fds[i], MAP_FIXED);
			munmap((void *)there, PAGE);
			close(other);
		}
		wait_for_progress(alias[i]);
	}
	moves = statistic("vmcs_loads") - moves;
	printf("# %llu loads of a VMCS on a CPU\n", (unsigned long long)moves);
	check(moves >= 30);
}

/* A vCPU that was last on the other CPU is used, and ends, on this one. */
static void vcpus_end_on_another_cpu(void)
{
	struct dune_state state;
	struct vcpu vcpu;
	int i;

	need_two_cpus();
	vm_open(&vm, 0);
	for (i = 0; i < 40; i++) {
		pin(0, i & 1);
		vcpu_open(&vm, &vcpu, 0);
		vcpu_start(&vcpu, true, guest_calls, 1);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		pin(0, ~i & 1);
		if (i & 2) {
			check(!ioctl(vcpu.fd, DUNE_VCPU_GET_STATE, &state));
			check_eq(state.cs.selector, 0x23);
		}
		if (i & 4)
			run_to(&vcpu, DUNE_EXIT_VMCALL);
		vcpu_close(&vcpu);
	}
}

/* The process is killed while guests run on both CPUs, and its memory changes. */
static void kill_9_while_both_run(void)
{
	volatile uint64_t *shared;
	unsigned int seed = 7;
	int i, round, status;
	pid_t child;

	need_two_cpus();
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	check(shared != MAP_FAILED);
	for (round = 0; round < 20; round++) {
		child = fork();
		if (!child) {
			vm_open(&vm, 0);
			for (i = 0; i < 2; i++)
				start_runner(&vm, &runners[i], i, guest_spin, shared + 8 * i);
			for (;;) {
				char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
					       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

				memset(p, 1, 16 * PAGE);
				munmap(p, 16 * PAGE);
			}
		}
		wait_for_progress(shared);
		wait_for_progress(shared + 8);
		usleep(rand_r(&seed) % 3000);
		kill(child, SIGKILL);
		check(waitpid(child, &status, 0) == child);
		check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		/* Dead is dead: nobody counts any more. */
		shared[16] = shared[0];
		shared[17] = shared[8];
		usleep(1000);
		check_eq(shared[0], shared[16]);
		check_eq(shared[8], shared[17]);
	}
}

/* Whoever holds a descriptor, a mapping or a running guest holds the module. */
static void rmmod_is_refused_while_in_use(void)
{
	volatile uint64_t *page = low_pages(PAGE);
	struct vcpu vcpu;
	int i;

#define IN_USE	check_errno(syscall(SYS_delete_module, "dune", O_NONBLOCK), EWOULDBLOCK)
	need_two_cpus();
	vm_open(&vm, 0);
	if (geteuid())
		skip("only root may try to unload a module");
	vcpu_open(&vm, &vcpu, 0);
	for (i = 0; i < 2; i++)
		start_runner(&vm, &runners[i], i, guest_spin, page + 8 * i);
	for (i = 0; i < 20; i++) {
		wait_for_progress(page);
		wait_for_progress(page + 8);
		IN_USE;
	}
	check(!close(vm.device));
	IN_USE;
	check(!close(vm.fd));
	IN_USE;
}

/* The same with one holder at a time. */
static void rmmod_is_refused_by_each_holder(void)
{
	struct vcpu vcpu;

	vm_open(&vm, 0);
	if (geteuid())
		skip("only root may try to unload a module");
	vcpu_open(&vm, &vcpu, 0);
	check(!close(vm.device) && !close(vm.fd));
	IN_USE;					/* a vCPU and its mapping */
	check(!close(vcpu.fd));
	IN_USE;					/* the mapping alone */
	vcpu.run->regs.rax = 1;
	vm_open(&vm, 0);
	check(!munmap(vcpu.run, PAGE));
	check(!close(vm.fd));
	IN_USE;					/* the device alone */
}

static void set_online(int cpu, const char *value)
{
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "/sys/devices/system/cpu/cpu%d/online", cpu);
	fd = open(name, O_WRONLY);
	if (fd < 0)
		skip("CPUs cannot be unplugged here");
	check(write(fd, value, 1) == 1);
	close(fd);
}

/* A guest leaves the CPU that is unplugged, and may come back when it does. */
static void a_cpu_goes_and_comes_back(void)
{
	volatile uint64_t *page = low_pages(PAGE);
	int i, round;

	need_two_cpus();
	vm_open(&vm, 0);
	for (i = 0; i < 2; i++)
		start_runner(&vm, &runners[i], i, guest_spin, page + 8 * i);
	for (round = 0; round < 3; round++) {
		wait_for_progress(page);
		wait_for_progress(page + 8);
		set_online(1, "0");
		wait_for_progress(page);
		wait_for_progress(page + 8);
		if (round == 1) {	/* and one that was there ends meanwhile */
			struct vcpu vcpu;

			vcpu_open(&vm, &vcpu, 0);
			vcpu_start(&vcpu, true, guest_calls, 1);
			run_to(&vcpu, DUNE_EXIT_VMCALL);
			vcpu_close(&vcpu);
		}
		set_online(1, "1");
		pin(runners[1].tid, 1);
	}
	wait_for_progress(page + 8);
}

/* Guest code: stamps all pages, round and round; the argument has how many. */
static void guest_fills(uint64_t base)
{
	volatile uint64_t *p = (void *)base;
	uint64_t i;

	for (i = 0; i < 256; i++)
		p[i * 512]++;
	for (;;)
		vmcall(DONE_CALL, 0);
}

static void *fill(void *argument)
{
	struct runner *r = argument;

	pin(0, r->cpu);
	run_to(&r->vcpu, DUNE_EXIT_VMCALL);
	check_eq(r->vcpu.run->regs.rax, DONE_CALL);
	return NULL;
}

/*
 * With PML: two vCPUs write, a third thread clears dirty bits and reads both
 * rings all the while. A page that was written after the last clearing is in
 * a ring: the sum of what is found after each round is exact.
 */
static void the_logs_of_both_cpus_are_whole(void)
{
	enum { PAGES = 256 };
	struct dune_range range = { .size = 2 * PAGES * PAGE };
	uint8_t *base = low_pages(2 * PAGES * PAGE), seen[2 * PAGES];
	int i, round;

	need_two_cpus();
	vm_open(&vm, DUNE_FEATURE_PML);
	range.gpa = (uintptr_t)base;
	memset(base, 0, 2 * PAGES * PAGE);
	for (i = 0; i < 2; i++)
		vcpu_open(&vm, &runners[i].vcpu, 4096);
	for (round = 0; round < 12; round++) {
		memset(seen, 0, sizeof(seen));
		for (i = 0; i < 2; i++) {
			runners[i].cpu = i;
			vcpu_start(&runners[i].vcpu, true, guest_fills,
				   (uintptr_t)base + i * PAGES * PAGE);
			check(!pthread_create(&runners[i].thread, NULL, fill, &runners[i]));
		}
		/* Nothing is cleared on the even rounds, so each page comes once. */
		for (i = 0; round % 2 && i < 20; i++) {
			check(!ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range));
			sched_yield();
		}
		for (i = 0; i < 2; i++)
			check(!pthread_join(runners[i].thread, NULL));
		check(!ioctl(vm.fd, DUNE_VM_CLEAR_DIRTY, &range));
		for (i = 0; i < 2; i++) {
			struct vcpu *v = &runners[i].vcpu;

			for (; v->ring->tail != v->ring->head; v->ring->tail++) {
				uint64_t page = (v->ring_gpas[v->ring->tail % 4096] -
						 (uintptr_t)base) / PAGE;

				if (page < 2 * PAGES)
					seen[page] = 1;
			}
		}
		for (i = 0; i < 2 * PAGES; i++) {
			check_eq(seen[i], 1);
			check_eq(*(uint64_t *)(base + i * PAGE), round + 1);
		}
	}
}

#define TEST(name)	{ "smp_" #name, name }
const struct test smp_tests[] = {
	TEST(what_is_taken_away_is_gone_on_both_cpus),
	TEST(an_unmapped_window_is_gone_on_both_cpus),
	TEST(cleared_pages_are_logged_again_on_the_other_cpu),
	TEST(a_fork_while_both_run_is_a_snapshot),
	TEST(vcpus_move_between_cpus),
	TEST(vcpus_end_on_another_cpu),
	TEST(kill_9_while_both_run),
	TEST(the_logs_of_both_cpus_are_whole),
	TEST(rmmod_is_refused_while_in_use),
	TEST(rmmod_is_refused_by_each_holder),
	TEST(a_cpu_goes_and_comes_back),
	{ NULL, NULL },
};
