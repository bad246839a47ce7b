// SPDX-License-Identifier: GPL-2.0-only
/* The guest's memory is the process's, whatever the kernel does with it. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE	4096UL
#define MB2	(2UL << 20)

static struct vm vm;
static struct vcpu vcpu;

static void open_one(uint64_t features)
{
	vm_open(&vm, features);
	vcpu_open(&vm, &vcpu, 0);
}

/* The guest writes 0x5a there. */
static void guest_writes(volatile void *p)
{
	vcpu_start(&vcpu, true, guest_touch, (uintptr_t)p);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
}

static uint8_t guest_reads(volatile void *p)
{
	vcpu_start(&vcpu, true, guest_read, (uintptr_t)p);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(vcpu.run->regs.rax, DONE_CALL);
	return vcpu.run->regs.rbx;
}

static void guest_may_not(volatile void *p, bool write)
{
	vcpu_start(&vcpu, true, write ? guest_touch : guest_read, (uintptr_t)p);
	run_to(&vcpu, DUNE_EXIT_MEMORY);
	check_eq(vcpu.run->gpa & ~(PAGE - 1), (uintptr_t)p & ~(PAGE - 1));
	check_eq(vcpu.run->gva, (uintptr_t)p);
	check_eq(vcpu.run->access & 7, write ? DUNE_ACCESS_WRITE : DUNE_ACCESS_READ);
	check_eq(vcpu.run->access >> 3, 1);
	check_eq(vcpu.run->error, EFAULT);
}

static void pages_come_when_touched(void)
{
	volatile uint8_t *p = low_pages(64 * PAGE);
	int i;

	open_one(0);
	for (i = 0; i < 64; i++) {
		if (i % 3 == 0)
			p[i * PAGE] = i + 1;
		check_eq(guest_reads(p + i * PAGE), i % 3 ? 0 : i + 1);
		guest_writes(p + i * PAGE + 7);
		check_eq(p[i * PAGE + 7], 0x5a);
		/* Both see the same page after the first write, too. */
		p[i * PAGE + 7] = 99;
		check_eq(guest_reads(p + i * PAGE + 7), 99);
	}
}

static void what_the_process_cannot_touch_is_an_exit(void)
{
	volatile uint8_t *p = low_pages(PAGE);

	open_one(0);
	munmap((void *)p, PAGE);
	guest_may_not(p + 5, false);
	guest_may_not(p + 5, true);
	/* The instruction can be done again once there is a page. */
	check(mmap((void *)p, PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check_eq(p[5], 0x5a);
}

static void munmap_takes_it_away(void)
{
	volatile uint8_t *p = low_pages(16 * PAGE);
	int i;

	open_one(0);
	for (i = 0; i < 16; i++)
		guest_writes(p + i * PAGE);
	munmap((void *)(p + 4 * PAGE), 4 * PAGE);
	for (i = 0; i < 16; i++) {
		if (i / 4 == 1)
			guest_may_not(p + i * PAGE, i & 1);
		else
			check_eq(guest_reads(p + i * PAGE), 0x5a);
	}
}

static void mprotect_is_obeyed(void)
{
	volatile uint8_t *p = low_pages(PAGE);

	open_one(0);
	guest_writes(p);
	check(!mprotect((void *)p, PAGE, PROT_READ));
	check_eq(guest_reads(p), 0x5a);
	guest_may_not(p, true);
	check(!mprotect((void *)p, PAGE, PROT_NONE));
	guest_may_not(p, false);
	check(!mprotect((void *)p, PAGE, PROT_READ | PROT_WRITE));
	guest_writes(p + 1);
	check_eq(p[0], 0x5a);
	check_eq(p[1], 0x5a);
}

static void discarded_pages_are_zero(void)
{
	volatile uint8_t *p = low_pages(8 * PAGE);
	int i;

	open_one(0);
	for (i = 0; i < 8; i++)
		guest_writes(p + i * PAGE);
	check(!madvise((void *)p, 8 * PAGE, MADV_DONTNEED));
	for (i = 0; i < 8; i++)
		check_eq(guest_reads(p + i * PAGE), 0);
}

static void moved_pages_move(void)
{
	volatile uint8_t *p = low_pages(4 * PAGE), *q = low_pages(4 * PAGE);

	open_one(0);
	guest_writes(p + PAGE);
	guest_writes(q + 2 * PAGE);
	check(mremap((void *)p, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q) == q);
	guest_may_not(p + PAGE, false);
	check_eq(guest_reads(q + PAGE), 0x5a);
	check_eq(guest_reads(q + 2 * PAGE), 0);
}

/* After fork neither side sees what the other writes, guest or not. */
static void fork_copies(void)
{
	volatile uint8_t *p = low_pages(4 * PAGE);
	int to_child[2], to_parent[2], status;
	char c;

	open_one(0);
	guest_writes(p);
	guest_writes(p + PAGE);
	check(!pipe(to_child) && !pipe(to_parent));
	if (!fork()) {
		check(read(to_child[0], &c, 1) == 1);
		check_eq(p[0], 0x5a);
		check_eq(p[1], 0);	/* the parent's guest wrote there */
		check_eq(p[PAGE], 0x5a);
		p[PAGE] = 1;
		check(write(to_parent[1], "x", 1) == 1);
		_exit(0);
	}
	guest_writes(p + 1);
	check(write(to_child[1], "x", 1) == 1);
	check(read(to_parent[0], &c, 1) == 1);
	check(wait(&status) > 0 && !status);
	check_eq(guest_reads(p + PAGE), 0x5a);
	check_eq(p[1], 0x5a);
}

static void file_pages_are_the_files(void)
{
	char name[] = "/tmp/dunetest.XXXXXX", byte;
	int fd = mkstemp(name);
	volatile uint8_t *p, *q;

	check(fd >= 0 && !ftruncate(fd, 2 * PAGE));
	unlink(name);
	p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_32BIT, fd, 0);
	q = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_32BIT, fd, 0);
	check(p != MAP_FAILED && q != MAP_FAILED);
	open_one(0);
	guest_writes(p + 3);
	check(pread(fd, &byte, 1, 3) == 1 && byte == 0x5a);
	check(pwrite(fd, "\x21", 1, 4) == 1);
	check_eq(guest_reads(p + 4), 0x21);
	/* A private copy stays private. */
	check_eq(guest_reads(q + 4), 0x21);
	guest_writes(q + 5);
	check(pread(fd, &byte, 1, 5) == 1 && byte == 0);
	/* Behind the end of the file there is nothing. */
	guest_may_not(p + 2 * PAGE, true);
	check(!ftruncate(fd, PAGE));
	guest_may_not(p + PAGE, false);
	/* Write-back cleans the page, and the guest can still write. */
	check(!fsync(fd));
	guest_writes(p + 6);
	check(pread(fd, &byte, 1, 6) == 1 && byte == 0x5a);
}

static void a_readonly_window_is_readonly(void)
{
	struct dune_window window = { .gpa = FOUR_GIB, .size = MB2, .flags = DUNE_WINDOW_READONLY };
	volatile uint8_t *p = low_pages(2 * MB2);
	uint64_t alias = FOUR_GIB - MB2;

	open_one(0);
	p = (void *)(((uintptr_t)p + MB2 - 1) & ~(MB2 - 1));
	window.hva = (uintptr_t)p;
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &window));
	vm.pd[3][511] = window.gpa | 0x87;
	p[9] = 42;
	check_eq(guest_reads((void *)(alias + 9)), 42);
	vcpu_start(&vcpu, true, guest_touch, alias + 9);
	run_to(&vcpu, DUNE_EXIT_MEMORY);
	check_eq(vcpu.run->gpa, window.gpa + 9);
	check_eq(p[9], 42);
	/* Unmapped, it is gone at once. */
	window.hva = window.flags = 0;
	check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &window));
	vcpu_start(&vcpu, true, guest_read, alias + 9);
	run_to(&vcpu, DUNE_EXIT_MEMORY);
	check_eq(vcpu.run->error, EFAULT);
}

static void outside_of_the_windows_there_is_nothing(void)
{
	uint64_t gpa;

	open_one(0);
	for (gpa = FOUR_GIB; gpa < 1ULL << vm.info.gpa_bits; gpa <<= 1) {
		vm.pd[3][511] = gpa | 0x87;
		vcpu_start(&vcpu, false, guest_read, FOUR_GIB - MB2);
		run_to(&vcpu, DUNE_EXIT_MEMORY);
		check_eq(vcpu.run->gpa, gpa);
	}
}

static void the_guests_page_tables_need_memory_too(void)
{
	uint64_t *gone = low_pages(PAGE);

	open_one(0);
	munmap(gone, PAGE);
	vm.pd[3][511] = (uintptr_t)gone | 7;
	vcpu_start(&vcpu, true, guest_read, FOUR_GIB - MB2 + 8 * PAGE);
	run_to(&vcpu, DUNE_EXIT_MEMORY);
	check_eq(vcpu.run->gpa & ~(PAGE - 1), (uintptr_t)gone);
	check(vcpu.run->access & DUNE_ACCESS_PAGE_WALK);
}

/* A state with another CR3 has its translations, whatever was kept of the other's. */
static void another_root_table_is_obeyed(void)
{
	volatile uint8_t *p = low_pages(3 * MB2);
	uint64_t alias = FOUR_GIB - MB2;
	static struct vm other;
	int i;

	open_one(0);
	p = (void *)(((uintptr_t)p + MB2 - 1) & ~(MB2 - 1));
	other = vm;
	make_tables(&other);
	vm.pd[3][511] = (uintptr_t)p | 0x87;
	other.pd[3][511] = (uintptr_t)(p + MB2) | 0x87;
	p[9] = 1;
	p[MB2 + 9] = 2;
	for (i = 0; i < 4; i++) {
		vcpu.vm = i & 1 ? &other : &vm;
		check_eq(guest_reads((void *)(alias + 9)), 1 + (i & 1));
	}
	vcpu.vm = &vm;
}

static void the_stack_grows(void)
{
	volatile uint8_t *p;

	p = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT | MAP_GROWSDOWN, -1, 0);
	check(p != MAP_FAILED);
	munmap((void *)p, 60 * PAGE);
	open_one(0);
	guest_writes(p + 58 * PAGE);
	check_eq(p[58 * PAGE], 0x5a);
}

/* The kernel's own page, which the process may read: no struct page to count. */
static void the_vvar_page_is_readable(void)
{
	uint64_t vdso = getauxval(AT_SYSINFO_EHDR), alias = FOUR_GIB - MB2;
	struct dune_window window = { .gpa = FOUR_GIB, .size = 4 * PAGE };
	uint64_t start = 0, *pt = low_pages(PAGE);
	char line[256];
	FILE *maps;
	int i;

	maps = fopen("/proc/self/maps", "r");
	check(maps != NULL);
	while (fgets(line, sizeof(line), maps))
		if (strstr(line, "[vvar]"))
			start = strtoull(line, NULL, 16);
	fclose(maps);
	if (!start || !vdso)
		skip("no vvar page in this process");
	open_one(0);
	window.hva = start;
	window.size = vdso - start;
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &window));
	for (i = 0; i < 4; i++)
		pt[i] = (window.gpa + i * PAGE) | 7;
	vm.pd[3][511] = (uintptr_t)pt | 7;
	guest_reads((void *)(alias + 0x80));
	vcpu_start(&vcpu, true, guest_touch, alias + 0x80);
	run_to(&vcpu, DUNE_EXIT_MEMORY);
}

static void huge_pages_are_mapped_whole_and_split(void)
{
	uint8_t *p = low_pages(3 * MB2);
	uint64_t before;
	int i;

	open_one(DUNE_FEATURE_LARGE_2M);
	p = (void *)(((uintptr_t)p + MB2 - 1) & ~(MB2 - 1));
	if (madvise(p, MB2, MADV_HUGEPAGE))
		skip("no transparent huge pages in this kernel");
	memset(p, 1, MB2);
	before = statistic("faults_mapped_large");
	for (i = 0; i < 512; i += 64)
		guest_writes(p + i * PAGE);
	if (statistic("faults_mapped_large") == before)
		skip("the kernel gave no huge page");
	check_eq(statistic("faults_mapped_large"), before + 1);
	check(!mprotect(p + 64 * PAGE, PAGE, PROT_READ));	/* splits it */
	guest_may_not(p + 64 * PAGE, true);
	check_eq(guest_reads(p + 64 * PAGE), 0x5a);
	guest_writes(p + 65 * PAGE);
	check(!madvise(p + 128 * PAGE, PAGE, MADV_DONTNEED));
	check_eq(guest_reads(p + 128 * PAGE), 0);
	check_eq(guest_reads(p + 192 * PAGE), 0x5a);
	check_eq(guest_reads(p + 193 * PAGE), 1);
}

/* One entry for a page of 1 GiB, wherever in it the guest reads or writes; and none once it is gone. */
static void a_page_of_1_gib_is_one_entry(void)
{
	uint64_t size = 1ULL << 30, large, faults, i;
	struct dune_window w = { .gpa = FOUR_GIB, .size = size };
	uint8_t *alias = (uint8_t *)(2 * size), *p;

	p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 30 << MAP_HUGE_SHIFT, -1, 0);
	if (p == MAP_FAILED)
		skip("no free page of 1 GiB: hugepagesz=1G hugepages=1, on the kernel's command line");
	open_one(DUNE_FEATURE_LARGE_2M | DUNE_FEATURE_LARGE_1G);
	w.hva = (uintptr_t)p;
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
	for (i = 0; i < 512; i++)
		vm.pd[2][i] = (w.gpa + (i << 21)) | 0x87;
	p[0] = 1;
	guest_writes(alias + 1);		/* what the guest itself is made of is there now */
	check_eq(guest_reads(alias), 1);
	large = statistic("faults_mapped_large");
	faults = statistic("faults_mapped");
	for (i = 0; i < 512; i += 37) {
		guest_writes(alias + i * MB2 + 7);
		check_eq(p[i * MB2 + 7], 0x5a);
		p[i * MB2 + 9] = i;
		check_eq(guest_reads(alias + i * MB2 + 9), i & 0xff);
	}
	check_eq(statistic("faults_mapped"), faults);
	check(large >= 1);
	check(!munmap(p, size));
	vcpu_start(&vcpu, true, guest_read, (uintptr_t)alias + size - 1);
	run_to(&vcpu, DUNE_EXIT_MEMORY);
	check_eq(vcpu.run->gpa, w.gpa + size - 1);
}

/* A compressed RAM disk as swap, where there is one to be had. */
void swap_on(void)
{
	uint32_t header[1024] = { 0 };
	int fd = open("/sys/block/zram0/disksize", O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, "64M", 3) == 3) {
		int disk = open("/dev/zram0", O_WRONLY);

		header[256] = 1;			/* version */
		header[257] = (64 << 20) / PAGE - 1;	/* last page */
		memcpy((char *)header + PAGE - 10, "SWAPSPACE2", 10);
		check(write(disk, header, PAGE) == PAGE);
		check(!fsync(disk) && !close(disk));
		check(!swapon("/dev/zram0", 0));
	}
	close(fd);
}

void swap_off(void)
{
	int fd = open("/sys/block/zram0/reset", O_WRONLY);

	swapoff("/dev/zram0");
	check(fd < 0 || write(fd, "1", 1) == 1);
}

static void swapped_pages_come_back(void)
{
	volatile uint8_t *p = low_pages(256 * PAGE);
	int i, round, out = 0, pagemap = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entries[256];

	open_one(0);
	swap_on();
	for (i = 0; i < 256; i++)
		guest_writes(p + i * PAGE + i);
	/* Before 6.9 the first call finds that the guest used the page, and only notes it. */
	for (round = 0; round < 4 && !out; round++) {
		if (madvise((void *)p, 256 * PAGE, MADV_PAGEOUT))
			skip("no MADV_PAGEOUT in this kernel");
		check(pread(pagemap, entries, sizeof(entries), (uintptr_t)p / PAGE * 8) ==
		      sizeof(entries));
		for (i = 0; i < 256; i++)
			out += entries[i] >> 62 & 1;
	}
	if (!out) {
		swap_off();
		skip("nothing was swapped out: is there swap?");
	}
	for (i = 0; i < 256; i++) {
		check_eq(guest_reads(p + i * PAGE + i), 0x5a);
		guest_writes(p + i * PAGE + i + 1);
		check_eq(p[i * PAGE + i + 1], 0x5a);
	}
	printf("# %d of 256 pages had been swapped out\n", out);
	swap_off();
}

static bool write_setting(const char *name, const char *value)
{
	int fd = open(name, O_WRONLY);
	bool done = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);

	close(fd);
	return done;
}

static uint64_t read_setting(const char *name)
{
	char text[32] = { 0 };
	int fd = open(name, O_RDONLY);

	check(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	return strtoull(text, NULL, 10);
}

#define KSM	"/sys/kernel/mm/ksm/"

/* Two equal pages become one that nobody may write to: a guest's write gets a copy. */
static void merged_pages_are_copied_by_a_write(void)
{
	volatile uint8_t *p = low_pages(2 * PAGE);
	uint64_t before;
	int i;

	open_one(0);
	memset((void *)p, 0x77, 2 * PAGE);
	guest_writes(p);
	guest_writes(p + PAGE);
	if (madvise((void *)p, 2 * PAGE, MADV_MERGEABLE) ||
	    !write_setting(KSM "pages_to_scan", "1000") ||
	    !write_setting(KSM "sleep_millisecs", "1"))
		skip("no KSM in this kernel");
	before = read_setting(KSM "pages_sharing");
	check(write_setting(KSM "run", "1"));
	for (i = 0; i < 1000 && read_setting(KSM "pages_sharing") == before; i++)
		usleep(5000);
	check(read_setting(KSM "pages_sharing") > before);
	check_eq(guest_reads(p), 0x5a);
	check_eq(guest_reads(p + PAGE + 1), 0x77);
	guest_writes(p + 1);
	check_eq(p[1], 0x5a);
	check_eq(p[PAGE + 1], 0x77);
	check_eq(guest_reads(p + PAGE + 1), 0x77);
	check(write_setting(KSM "run", "2"));		/* all is taken apart again */
	check(write_setting(KSM "run", "0"));
	guest_writes(p + PAGE + 2);
	check_eq(p[PAGE + 2], 0x5a);
	check_eq(p[2], 0x77);
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/* Small pages become a huge one, in other frames; the guest goes with them. */
static void collapsed_pages_are_followed(void)
{
	enum { PAGES = 512 };
	static uint64_t before[PAGES], after[PAGES];
	volatile uint8_t *p = low_pages(2 * MB2);
	int i, moved = 0, pagemap = open("/proc/self/pagemap", O_RDONLY);

	open_one(0);
	p = (void *)(((uintptr_t)p + MB2 - 1) & ~(MB2 - 1));
	check(!madvise((void *)p, MB2, MADV_NOHUGEPAGE));
	for (i = 0; i < PAGES; i++)
		p[i * PAGE] = i % 251;
	for (i = 0; i < PAGES; i += 8)
		guest_writes(p + i * PAGE + 1);
	check(pread(pagemap, before, sizeof(before), (uintptr_t)p / PAGE * 8) == sizeof(before));
	check(!madvise((void *)p, MB2, MADV_HUGEPAGE));
	if (madvise((void *)p, MB2, MADV_COLLAPSE))
		skip("no MADV_COLLAPSE in this kernel, or no huge page free");
	check(pread(pagemap, after, sizeof(after), (uintptr_t)p / PAGE * 8) == sizeof(after));
	for (i = 0; i < PAGES; i += 8) {
		moved += (before[i] ^ after[i]) << 9 != 0;	/* the frame: bits 0 to 54 */
		check_eq(guest_reads(p + i * PAGE), i % 251);
		check_eq(guest_reads(p + i * PAGE + 1), 0x5a);
		guest_writes(p + i * PAGE + 2);
		check_eq(p[i * PAGE + 2], 0x5a);
	}
	check(moved > 0);
}

/* The process may map a device; its guest has no part in that. */
static void device_memory_is_refused(void)
{
	int fd = open("/dev/mem", O_RDWR);
	volatile uint8_t *p;

	if (fd < 0)
		skip("no /dev/mem here, or no right to it");
	p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_32BIT, fd, 0xb8000);
	if (p == MAP_FAILED)
		skip("this kernel does not let the video memory be mapped");
	p[0] = p[0];
	open_one(0);
	guest_may_not(p, false);
	guest_may_not(p + 1, true);
}

/* Guest code: counts up in every page, round and round. */
static void guest_stamps(uint64_t argument)
{
	volatile uint64_t *base = (void *)argument;
	uint64_t n, i;

	for (n = 1; ; n++) {
		for (i = 0; i < 64; i++)
			base[1024 + i * 512] = n;
		base[0] = n;	/* all pages have n */
	}
}

static void *run_stamps(void *base)
{
	struct vcpu other;

	vcpu_open(&vm, &other, 0);
	vcpu_start(&other, true, guest_stamps, (uintptr_t)base);
	for (;;)
		if (vcpu_run(&other) < 0 && errno != EINTR)
			fail(__FILE__, __LINE__, "vcpu_run");
	return NULL;
}

/*
 * While the guest writes, the pages are protected, discarded, forked and
 * written back; what it has written last is always there (or zero, if it
 * was thrown away), and a page that was taken away is not written to.
 */
static void invalidations_lose_no_write(void)
{
	volatile uint64_t *base = low_pages(68 * PAGE);
	uint64_t n, i, seen;
	pthread_t thread;

	open_one(0);
	check(!pthread_create(&thread, NULL, run_stamps, (void *)base));
	for (n = 0; n < 60; n++) {
		uint64_t done = base[0];

		for (i = 0; i < 64; i++) {
			seen = base[1024 + i * 512];
			check(seen >= done || seen == 0 || n == 0);
		}
		if (n % 3 == 0) {
			pid_t child = fork();

			if (!child) {
				/* A snapshot: it stands still. */
				uint64_t first = base[1024 + 63 * 512];

				usleep(2000);
				check_eq(base[1024 + 63 * 512], first);
				_exit(0);
			}
			check(waitpid(child, (int *)&i, 0) == child);
			check_eq((int)i, 0);
		} else if (n % 3 == 1) {
			check(!mprotect((void *)(base + 1024), 64 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
			check(!mprotect((void *)(base + 1024), 64 * PAGE, PROT_READ | PROT_WRITE));
		} else {
			check(!madvise((void *)(base + 1024), 64 * PAGE, MADV_DONTNEED));
		}
		usleep(1000);
	}
	check(base[0] > 0);
}

#define ALIASES	64

/* A page that many windows show goes out of all of them, by one flush. */
static void aliases_go_by_one_flush(void)
{
	volatile uint8_t *p = low_pages(PAGE), *alias = (void *)FOUR_GIB;
	uint64_t *pdpt, *pd = low_pages(PAGE), *pt = low_pages(PAGE);
	uint64_t shootdowns, zapped, i;

	open_one(0);
	/* Windows behind the one that there is; in the guest, behind its 4 GiB. */
	pdpt = (void *)(vm.pml4[0] & ~(PAGE - 1));
	pdpt[4] = (uintptr_t)pd | 7;
	pd[0] = (uintptr_t)pt | 7;
	for (i = 0; i < ALIASES; i++) {
		struct dune_window w = {
			.gpa = FOUR_GIB + i * PAGE, .hva = (uintptr_t)p, .size = PAGE,
		};

		check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
		pt[i] = w.gpa | 7;
		guest_writes(alias + i * PAGE + i);
		check_eq(p[i], 0x5a);
	}
	zapped = statistic("pages_zapped");
	shootdowns = statistic("shootdowns");
	check(!madvise((void *)p, PAGE, MADV_DONTNEED));
	shootdowns = statistic("shootdowns") - shootdowns;
	zapped = statistic("pages_zapped") - zapped;
	check(zapped >= ALIASES);
	/* The kernel may want another of the process's pages meanwhile. */
	check(shootdowns >= 1 && shootdowns <= 4);
	for (i = 0; i < ALIASES; i++)
		check_eq(guest_reads(alias + i * PAGE + i), 0);
}

/* Of page tables: in KiB. */
static long page_tables(void)
{
	FILE *file = fopen("/proc/self/status", "r");
	char line[256];
	long kib = -1;

	check(file);
	while (fgets(line, sizeof(line), file))
		sscanf(line, "VmPTE: %ld kB", &kib);
	fclose(file);
	check(kib >= 0);
	return kib;
}

/* The OOM killer goes by what this says. That all goes again is looked at by the kernel, when the process ends. */
static void tables_count_for_the_process(void)
{
	struct dune_window all = { .size = FOUR_GIB };
	volatile uint8_t *p = low_pages(32 * MB2);
	long before, with_ept;
	int i;

	open_one(0);
	check(!madvise((void *)p, 32 * MB2, MADV_NOHUGEPAGE));
	for (i = 0; i < 32; i++)
		p[i * MB2] = 1;
	before = page_tables();
	for (i = 0; i < 32; i++)
		guest_writes(p + i * MB2);
	with_ept = page_tables();
	check(with_ept >= before + 32 * 4);
	check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &all));
	check(page_tables() <= with_ept - 32 * 4);
}

#define TEST(name)	{ "memory_" #name, name }
const struct test memory_tests[] = {
	TEST(pages_come_when_touched),
	TEST(what_the_process_cannot_touch_is_an_exit),
	TEST(munmap_takes_it_away),
	TEST(mprotect_is_obeyed),
	TEST(discarded_pages_are_zero),
	TEST(moved_pages_move),
	TEST(fork_copies),
	TEST(file_pages_are_the_files),
	TEST(a_readonly_window_is_readonly),
	TEST(outside_of_the_windows_there_is_nothing),
	TEST(the_guests_page_tables_need_memory_too),
	TEST(another_root_table_is_obeyed),
	TEST(the_stack_grows),
	TEST(the_vvar_page_is_readable),
	TEST(huge_pages_are_mapped_whole_and_split),
	TEST(a_page_of_1_gib_is_one_entry),
	TEST(swapped_pages_come_back),
	TEST(merged_pages_are_copied_by_a_write),
	TEST(collapsed_pages_are_followed),
	TEST(device_memory_is_refused),
	TEST(invalidations_lose_no_write),
	TEST(aliases_go_by_one_flush),
	TEST(tables_count_for_the_process),
	{ NULL, NULL },
};
