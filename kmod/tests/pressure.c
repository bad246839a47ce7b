// SPDX-License-Identifier: GPL-2.0-only
/*
 * Little memory: a memory cgroup that is too small for the module's tables, or for the guest's
 * pages; pages that the kernel moves to make room; many processes and threads at once.
 *
 * In those whose names begin with oom_ the kernel may kill (and says so on the console,
 * with a backtrace): they are run when they are asked for.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE		4096UL
#define MB		(1UL << 20)
#define SLACK		(3 * MB / 2)	/* charges that CPUs keep in stock, and the process itself */
#define ENDED_BY_ERROR	12

static struct vm vm;
static struct vcpu vcpu;

/* The cgroup: a directory of its own in a hierarchy of its own. */
static char root[64], group[80];

static bool put(const char *dir, const char *file, const char *value)
{
	char path[160];
	int fd;
	bool done;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;
	done = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return done;
}

/* A number of the cgroup's, or the one after a key. */
static uint64_t get(const char *path, const char *key)
{
	unsigned long long value;
	char line[128], format[64];
	FILE *file = fopen(path, "r");

	check(file != NULL);
	snprintf(format, sizeof(format), key ? "%s %%llu" : "%%llu", key);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, format, &value) == 1) {
			fclose(file);
			return value;
		}
	fail(__FILE__, __LINE__, key ?: path);
}

static uint64_t charged(const char *file, const char *key)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", group, file);
	return get(path, key);
}

static void make_group(const char *max)
{
	snprintf(root, sizeof(root), "/tmp/cgroup-%d", getpid());
	snprintf(group, sizeof(group), "%s/test", root);
	if (mkdir(root, 0700) || mount("cgroup2", root, "cgroup2", 0, NULL))
		skip("no cgroups, or no right to mount them");
	if (!put(root, "cgroup.subtree_control", "+memory"))
		skip("no memory cgroups of version 2 in this kernel");
	check(!mkdir(group, 0700) || errno == EEXIST);
	check(put(group, "memory.max", max));
}

/*
 * After the last process of the group: what is still charged, in bytes. A thread of the kernel that looks for pages to
 * merge or to reclaim (khugepaged) may hold the memory of a process for a while after it was waited for.
 */
static uint64_t wait_for_memory(void)
{
	uint64_t left = charged("memory.current", NULL);
	int i;

	for (i = 0; left >= SLACK && i < 3000; i++) {
		usleep(10000);
		left = charged("memory.current", NULL);
	}
	return left;
}

/* After its last process: nothing is charged any more, but for what CPUs keep in stock. */
static void remove_group(void)
{
	uint64_t left = wait_for_memory();

	printf("# %llu KiB are left\n", (unsigned long long)left / 1024);
	check(left < SLACK);
	check(!rmdir(group));
	check(!umount(root) && !rmdir(root));
}

#define ALIASES		128		/* of 2 MiB each: a table of the EPT each */
#define ALIAS_BASE	(FOUR_GIB - ALIASES * 2 * MB)

static void guest_reads_each(uint64_t base)
{
	uint64_t i, sum = 0;

	for (i = 0; i < ALIASES; i++)
		sum += *(volatile uint8_t *)(base + i * 2 * MB);
	for (;;)
		vmcall(DONE_CALL, sum);
}

/*
 * The EPT gets count times 128 tables and some, the process nothing: all the windows show the same
 * memory, which was only read. The first error, or 0.
 */
static int fill_tables(int count)
{
	struct dune_window w = { .size = ALIASES * 2 * MB };
	int i, n;

	w.hva = (uintptr_t)mmap(NULL, w.size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check((void *)w.hva != MAP_FAILED);
	vcpu_open(&vm, &vcpu, 0);
	for (n = 0; n < count; n++) {
		w.gpa = FOUR_GIB + (uint64_t)n * w.size;
		check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
		for (i = 0; i < ALIASES; i++)
			vm.pd[3][512 - ALIASES + i] = (w.gpa + i * 2 * MB) | 0x87;
		vcpu_start(&vcpu, true, guest_reads_each, ALIAS_BASE);
		while (vcpu_run(&vcpu) < 0)
			if (errno != EINTR)
				return errno;
		check_eq(vcpu.run->exit_reason, DUNE_EXIT_VMCALL);
	}
	return 0;
}

/* What a guest makes the kernel allocate counts for the process's cgroup, and comes back. */
static void tables_are_charged_to_the_cgroup(void)
{
	uint64_t before, with, after, tables = 32 * ALIASES * PAGE;
	int status;
	pid_t child;

	make_group("max");
	child = fork();
	if (!child) {
		check(put(group, "cgroup.procs", "0"));
		vm_open(&vm, 0);
		before = charged("memory.current", NULL);
		check_eq(fill_tables(32), 0);
		with = charged("memory.current", NULL);
		vcpu_close(&vcpu);
		check(!close(vm.fd));
		after = charged("memory.current", NULL);
		printf("# %llu KiB, then %llu, then %llu; tables of %llu\n",
		       (unsigned long long)before / 1024, (unsigned long long)with / 1024,
		       (unsigned long long)after / 1024, (unsigned long long)tables / 1024);
		check(with >= before + tables);
		check(with <= before + tables + tables / 16 + SLACK);
		check(after <= before + SLACK);
		fflush(stdout);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child);
	check_eq(status, 0);
	remove_group();
}

/* What the child does does not fit into 12 MiB: it is told so, or killed. */
static void in_a_small_group(void (*child_does)(void))
{
	int status;
	pid_t child;

	make_group("12M");
	put(group, "memory.swap.max", "0");
	child = fork();
	if (!child) {
		check(put(group, "cgroup.procs", "0"));
		vm_open(&vm, 0);
		child_does();
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child);
	if (WIFSIGNALED(status)) {
		check_eq(WTERMSIG(status), SIGKILL);
		check(charged("memory.events", "oom_kill") > 0);
		printf("# killed\n");
	} else {
		check_eq(WEXITSTATUS(status), ENDED_BY_ERROR);
		printf("# ENOMEM\n");
	}
	check(charged("memory.events", "max") > 0);
	remove_group();
	/* Whoever is outside of it goes on. */
	vm_open(&vm, 0);
	check_eq(fill_tables(1), 0);
}

static void more_tables(void)
{
	int r = fill_tables(100);	/* 50 MiB */

	if (r)
		check_eq(r, ENOMEM);
	_exit(r ? ENDED_BY_ERROR : 0);
}

static void tables_end_at_the_limit(void)
{
	in_a_small_group(more_tables);
}

static void more_rings(void)
{
	struct dune_vcpu_config config = { .ring_entries = 65536 };
	struct dune_vm_config pml = { .features = DUNE_FEATURE_PML };
	int fd = ioctl(vm.device, DUNE_CREATE_VM, &pml), i;

	check(fd >= 0);
	for (i = 0; i < 100; i++)	/* 52 MiB */
		if (ioctl(fd, DUNE_VM_CREATE_VCPU, &config) < 0) {
			check_eq(errno, ENOMEM);
			_exit(ENDED_BY_ERROR);
		}
}

static void rings_end_at_the_limit(void)
{
	vm_open(&vm, DUNE_FEATURE_PML);		/* or it is skipped */
	check(!close(vm.fd) && !close(vm.device));
	in_a_small_group(more_rings);
}

/* A guest that adds one to each of its pages, round and round: one that is lost shows for ever. */
struct rounds {
	volatile uint64_t stop, done, pages;
	volatile uint64_t *base;
};

static void guest_adds(uint64_t argument)
{
	struct rounds *r = (void *)argument;
	uint64_t i;

	while (!r->stop) {
		for (i = 0; i < r->pages; i++)
			r->base[i * 512]++;
		r->done++;
	}
	for (;;)
		vmcall(DONE_CALL, 0);
}

static void *run_adding(void *argument)
{
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_adds, (uintptr_t)argument);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
	return NULL;
}

static void check_sums(const struct rounds *r)
{
	uint64_t i;

	for (i = 0; i < r->pages; i++)
		check_eq(r->base[i * 512], r->done);
}

/* The cgroup holds two thirds of what the guest writes to: all of it goes out and comes back, again and again. */
static void swapping_loses_no_write(void)
{
	uint64_t pages = 12 * MB / PAGE, out = get("/proc/vmstat", "pswpout");
	struct rounds *r = low_pages(PAGE);
	pthread_t thread;
	int status;
	pid_t child;

	make_group("8M");
	swap_on();
	child = fork();
	if (!child) {
		check(put(group, "cgroup.procs", "0"));
		r->pages = pages;
		r->base = low_pages(pages * PAGE);
		vm_open(&vm, 0);
		check(!pthread_create(&thread, NULL, run_adding, r));
		while (r->done < 3)
			usleep(10000);
		r->stop = 1;
		check(!pthread_join(thread, NULL));
		check_sums(r);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child);
	out = get("/proc/vmstat", "pswpout") - out;
	wait_for_memory();	/* what is left would have to come back into the group, which is too small */
	swap_off();
	check_eq(status, 0);
	remove_group();
	printf("# %llu pages went out to swap\n", (unsigned long long)out);
	if (!out)
		skip("nothing was swapped out: is there swap?");
	check(out > pages);
}

#define MOVABLE		2048	/* pages */
#define APART		4	/* of which one in four is the guest's; the rest are holes */

/* Where the guest's pages are in memory; how many are elsewhere than they were. */
static int changed_places(const uint8_t *area, uint64_t *places)
{
	static uint64_t entries[APART * MOVABLE];
	int fd = open("/proc/self/pagemap", O_RDONLY), changed = 0, i;

	/* At once: the kernel reads 2 MiB worth of them each time. */
	check(pread(fd, entries, sizeof(entries), (uintptr_t)area / PAGE * 8) == sizeof(entries));
	for (i = 0; i < MOVABLE; i++) {
		uint64_t place = entries[APART * i] & ((1ULL << 55) - 1);

		if (!place)
			skip("no right to see where pages are");
		changed += place != places[i];
		places[i] = place;
	}
	close(fd);
	return changed;
}

/* The kernel moves pages together, to have large free areas, while the guest writes to them. */
static void pages_may_be_moved_together(void)
{
	uint8_t *area = low_pages(APART * MOVABLE * PAGE);
	uint64_t *tables = low_pages(MOVABLE * 8), *places = low_pages(MOVABLE * 8);
	struct rounds *r = low_pages(PAGE);
	int round, i, moved = 0;
	pthread_t thread;

	/*
	 * The holes go back to the zone at once: otherwise the stock of this CPU, which compaction does
	 * not look into, may take all of them, and there is no place to move a page to.
	 */
	put("/proc/sys/vm", "percpu_pagelist_high_fraction", "1000000");
	madvise(area, APART * MOVABLE * PAGE, MADV_NOHUGEPAGE);
	for (i = 0; i < APART * MOVABLE; i++)
		area[i * PAGE] = 0;
	for (i = 0; i < MOVABLE; i++)
		check(!madvise(area + (APART * i + 1) * PAGE, (APART - 1) * PAGE, MADV_DONTNEED));
	vm_open(&vm, 0);
	/* The guest sees its pages next to each other, by 4 KiB tables of its own. */
	for (i = 0; i < MOVABLE; i++)
		tables[i] = (uintptr_t)(area + APART * i * PAGE) | 7;
	for (i = 0; i < MOVABLE / 512; i++)
		vm.pd[3][512 - MOVABLE / 512 + i] = (uintptr_t)(tables + 512 * i) | 7;
	r->pages = MOVABLE;
	r->base = (void *)(FOUR_GIB - MOVABLE * PAGE);
	changed_places(area, places);
	check(!pthread_create(&thread, NULL, run_adding, r));
	for (round = 0; round < 2; round++) {
		wait_for_progress(&r->done);
		if (!put("/proc/sys/vm", "compact_memory", "1"))
			skip("no compaction in this kernel, or no right to it");
		moved += changed_places(area, places);
		wait_for_progress(&r->done);
	}
	put("/proc/sys/vm", "percpu_pagelist_high_fraction", "0");
	r->stop = 1;
	check(!pthread_join(thread, NULL));
	printf("# %d pages moved\n", moved);
	for (i = 0; i < MOVABLE; i++)
		check_eq(*(uint64_t *)(area + APART * i * PAGE), r->done);
	check(moved >= MOVABLE / 8);
}

#define THREADS	6

static void *touch_much(void *unused)
{
	uint8_t *p = low_pages(16 * PAGE);
	struct vcpu mine;
	int i;

	vcpu_open(&vm, &mine, 0);
	for (i = 0; i < 16; i++) {
		vcpu_start(&mine, true, guest_touch, (uintptr_t)p + i * PAGE);
		run_to(&mine, DUNE_EXIT_VMCALL);
		check_eq(p[i * PAGE], 0x5a);
	}
	vcpu_close(&mine);
	munmap(p, 16 * PAGE);
	return unused;
}

/* A VM in each process, a vCPU in each thread; children are made in the midst of it, and have VMs of their own. */
static void one_of_the_storm(int depth)
{
	pthread_t threads[THREADS];
	pid_t children[2];
	int i, round, status;

	vm_open(&vm, 0);
	for (round = 0; round < 3; round++) {
		for (i = 0; i < THREADS; i++)
			check(!pthread_create(&threads[i], NULL, touch_much, NULL));
		for (i = 0; i < 2 && depth; i++) {
			children[i] = fork();
			if (!children[i]) {
				one_of_the_storm(depth - 1);
				fflush(stdout);
				_exit(0);
			}
			check(children[i] > 0);
		}
		for (i = 0; i < THREADS; i++)
			check(!pthread_join(threads[i], NULL));
		for (i = 0; i < 2 && depth; i++) {
			check(waitpid(children[i], &status, 0) == children[i]);
			check_eq(status, 0);
		}
	}
	check(!close(vm.fd) && !close(vm.device));
}

static void a_storm_of_forks_and_threads(void)
{
	one_of_the_storm(2);
}

#define TEST(name)	{ "pressure_" #name, name }
const struct test pressure_tests[] = {
	TEST(tables_are_charged_to_the_cgroup),
	TEST(swapping_loses_no_write),
	TEST(pages_may_be_moved_together),
	TEST(a_storm_of_forks_and_threads),
	{ "oom_tables_end_at_the_limit", tables_end_at_the_limit },
	{ "oom_rings_end_at_the_limit", rings_end_at_the_limit },
	{ NULL, NULL },
};
