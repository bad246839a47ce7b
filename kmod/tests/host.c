// SPDX-License-Identifier: GPL-2.0-only
/*
 * The process, as a host of its guest: what a run must leave as it was (the
 * LDT, segments, port rights, breakpoints), and what it may do to the run page
 * and to descriptors while others use them.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <asm/ldt.h>
#include <errno.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE		4096UL
#define LDT_SELECTOR	7	/* entry 0 of the LDT, ring 3 */

static struct vm vm;
static struct vcpu vcpu;

static void run_a_guest(void)
{
	vcpu_start(&vcpu, true, guest_calls, 1);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
}

/* LDT_SELECTOR is a data segment from there on. */
static void make_an_ldt(const void *data)
{
	struct user_desc desc = {
		.entry_number = 0, .base_addr = (uintptr_t)data, .limit = 0xfffff,
		.seg_32bit = 1, .limit_in_pages = 1, .useable = 1,
	};

	if (syscall(SYS_modify_ldt, 1, &desc, sizeof(desc)))
		skip("no modify_ldt in this kernel");
}

/*
 * An exit leaves LDTR and the data segments null. A process that has an LDT,
 * and selectors of it in its registers, finds both again.
 */
static void the_ldt_and_the_segments_are_restored(void)
{
	uint32_t *data = low_pages(PAGE);
	uint16_t ds, es, gs;
	uint32_t value, old;
	int i;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	make_an_ldt(data);
	data[3] = 4711;
	for (i = 0; i < 5; i++) {
		asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%gs" : : "r" (LDT_SELECTOR));
		run_a_guest();
		asm volatile("mov %%ds, %0; mov %%es, %1; mov %%gs, %2"
			     : "=r" (ds), "=r" (es), "=r" (gs));
		asm volatile("movl %%gs:12, %0" : "=r" (value));
		/* The LDT itself: a selector of it can be loaded still. */
		asm volatile("mov %%gs, %0; mov %1, %%gs; movl %%gs:12, %0"
			     : "=&r" (old) : "r" (LDT_SELECTOR) : "memory");
		check_eq(ds, LDT_SELECTOR);
		check_eq(es, LDT_SELECTOR);
		check_eq(gs, LDT_SELECTOR);
		check_eq(value, 4711);
		check_eq(old, 4711);
	}
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%gs" : : "r" (0));
}

/* As above for FS, where the C library has its thread: nothing but the call in between. */
static void the_fs_segment_is_restored(void)
{
	uint32_t *data = low_pages(PAGE);
	uint64_t base, value, selector;
	long r;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	make_an_ldt(data);
	*(uint64_t *)(data + 2) = 0x1122334455667788;
	vcpu_start(&vcpu, true, guest_calls, 1);
	asm volatile("rdfsbase %[base]\n\t"
		     "mov %[ldt], %%fs\n\t"
		     "syscall\n\t"
		     "mov %%fs, %k[selector]\n\t"
		     "mov %%fs:8, %[value]\n\t"
		     "mov %[null], %%fs\n\t"
		     "wrfsbase %[base]"
		     : "=a" (r), [base] "=&r" (base), [value] "=&r" (value),
		       [selector] "=&r" (selector)
		     : "0" (SYS_ioctl), "D" (vcpu.fd), "S" (DUNE_VCPU_RUN), "d" (0),
		       [ldt] "r" (LDT_SELECTOR), [null] "r" (0)
		     : "rcx", "r11", "memory");
	check(r == 0 || r == -EINTR);
	check_eq(selector, LDT_SELECTOR);
	check_eq(value, 0x1122334455667788);
}

/* The bitmap of ports lies behind the TSS's limit after an exit. */
static void port_rights_are_restored(void)
{
	int i;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	if (ioperm(0x80, 1, 1))
		skip("no ioperm in this kernel");
	for (i = 0; i < 5; i++) {
		outb(i, 0x80);
		run_a_guest();
		outb(i, 0x80);		/* else SIGSEGV */
	}
}

static uint64_t hits(int fd)
{
	uint64_t count;

	check(read(fd, &count, sizeof(count)) == sizeof(count));
	return count;
}

/* A breakpoint of the host's is there after a run, and not in it. */
static void breakpoints_are_restored(void)
{
	volatile uint8_t *watched = low_pages(PAGE);
	struct perf_event_attr attr = {
		.type = PERF_TYPE_BREAKPOINT, .size = sizeof(attr), .bp_type = HW_BREAKPOINT_W,
		.bp_addr = (uintptr_t)watched, .bp_len = HW_BREAKPOINT_LEN_1,
		.exclude_kernel = 1,
	};
	int fd, i;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	*watched = 1;
	fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	if (fd < 0)
		skip("no hardware breakpoints by perf_event_open here");
	*watched = 2;
	check_eq(hits(fd), 1);
	for (i = 0; i < 5; i++) {
		vcpu_start(&vcpu, true, guest_touch, (uintptr_t)watched);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		check_eq(vcpu.run->regs.rax, DONE_CALL);
		check_eq(*watched, 0x5a);
		check_eq(hits(fd), 1 + i);
		*watched = i;
		check_eq(hits(fd), 2 + i);
	}
}

static volatile bool finished;

static uint64_t random_word(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void *run_always(void *count)
{
	while (!finished) {
		vcpu_run(&vcpu);
		__atomic_add_fetch((uint64_t *)count, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/*
 * Every field of the run page changes at every instant of the call, above all
 * between a check and a use. The guest's memory is a few pages, for it runs
 * anywhere. Afterwards the vCPU works as ever.
 */
static void the_run_page_may_change_during_a_run(void)
{
	struct dune_window all = { .size = FOUR_GIB }, w = { .flags = DUNE_WINDOW_READONLY };
	uint64_t *run, state = 88172645463325252ULL, runs = 0, i, enough;
	void *code = (void *)((uintptr_t)guest_calls & ~(PAGE - 1));
	pthread_t thread;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_calls, 1 << 30);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	/* Only code, and what the guest cannot do without: its tables, which are written to. */
	check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &all));
	w.gpa = w.hva = (uintptr_t)code;
	w.size = 2 * PAGE;
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
	w.flags = 0;
	w.size = PAGE;
	for (i = 0; i < 5; i++) {
		w.gpa = w.hva = i < 4 ? (uintptr_t)vm.pd[i] : (uintptr_t)vm.pml4;
		check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));
	}
	w.gpa = w.hva = vm.pml4[0] & ~(PAGE - 1);
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &w));

	check(!pthread_create(&thread, NULL, run_always, &runs));
	run = (uint64_t *)vcpu.run;
	for (i = 0; i < 60000; i++) {
		uint64_t word = random_word(&state) % (sizeof(*vcpu.run) / 8);

		((volatile uint64_t *)run)[word] =
			random_word(&state) >> (random_word(&state) % 64);
		/* Mostly something that runs, or nothing ever would. */
		vcpu.run->flags = i % 64 == 0 ? i : i & 1;
		if (i % 4)
			vcpu.run->immediate_exit = 0;
		if (i % 8)
			vcpu.run->inject = 0;
		if (i % 16 > 1) {
			vcpu.run->regs.rip = (uintptr_t)guest_calls;
			vcpu.run->fs_base = vcpu.run->gs_base = 0;
			memset(vcpu.run->reserved1, 0, sizeof(vcpu.run->reserved1));
			vcpu.run->reserved0 = 0;
			vcpu.run->reserved4 = 0;
		}
		if (i % 256 == 0)
			sched_yield();
	}
	enough = __atomic_load_n(&runs, __ATOMIC_RELAXED);
	finished = true;
	vcpu.run->immediate_exit = 1;
	check(!pthread_join(thread, NULL));
	printf("# %llu runs\n", (unsigned long long)enough);
	check(enough > 100);
	memset(vcpu.run, 0, sizeof(*vcpu.run));
	for (i = 0; i < 5; i++) {
		w.gpa = i < 4 ? (uintptr_t)vm.pd[i] : (uintptr_t)vm.pml4;
		w.hva = 0;
		check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w));
	}
	w.gpa = vm.pml4[0] & ~(PAGE - 1);
	check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w));
	w.gpa = (uintptr_t)code;
	w.size = 2 * PAGE;
	check(!ioctl(vm.fd, DUNE_VM_UNMAP_WINDOW, &w));
	check(!ioctl(vm.fd, DUNE_VM_MAP_WINDOW, &all));
	make_tables(&vm);	/* the guest could write to the old ones */
	run_a_guest();
}

static void send_fds(int socket, int *fds, int count)
{
	char space[CMSG_SPACE(3 * sizeof(int))] = { 0 }, byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
		.msg_controllen = CMSG_SPACE(count * sizeof(int)),
	};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(count * sizeof(int));
	memcpy(CMSG_DATA(head), fds, count * sizeof(int));
	check(sendmsg(socket, &message, 0) == 1);
}

static void receive_fds(int socket, int *fds, int count)
{
	char space[CMSG_SPACE(3 * sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
		.msg_controllen = sizeof(space),
	};

	check(recvmsg(socket, &message, 0) == 1);
	check(CMSG_FIRSTHDR(&message) != NULL);
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), count * sizeof(int));
}

/* A descriptor that was sent works no better than one that was inherited, even without its maker. */
static void descriptors_that_were_sent(void)
{
	struct dune_window window = { .gpa = FOUR_GIB, .hva = 0x10000000, .size = PAGE };
	struct dune_vcpu_config config = { 0 };
	struct dune_state state;
	int sockets[2], fds[2], status;
	pid_t child;

	check(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	child = fork();
	if (!child) {
		vm_open(&vm, 0);
		vcpu_open(&vm, &vcpu, 0);
		run_a_guest();
		fds[0] = vm.fd;
		fds[1] = vcpu.fd;
		send_fds(sockets[1], fds, 2);
		pause();
	}
	receive_fds(sockets[0], fds, 2);
	for (status = 0; status < 2; status++) {
		check_errno(ioctl(fds[0], DUNE_VM_MAP_WINDOW, &window), EIO);
		check_errno(ioctl(fds[0], DUNE_VM_CREATE_VCPU, &config), EIO);
		check_errno(ioctl(fds[1], DUNE_VCPU_RUN, 0), EIO);
		check_errno(ioctl(fds[1], DUNE_VCPU_GET_STATE, &state), EIO);
		check(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fds[1], 0) == MAP_FAILED);
		check_eq(errno, EIO);
		if (status)
			break;
		/* The same when the process that it is of is no more. */
		kill(child, SIGKILL);
		check(waitpid(child, NULL, 0) == child);
	}
	check(!close(fds[1]) && !close(fds[0]));
}

/* As many as there may be, and no more; all of them run. */
static void there_is_an_end_to_vcpus(void)
{
	struct rlimit limit = { DUNE_VCPUS_MAX + 64, DUNE_VCPUS_MAX + 64 };
	struct dune_vcpu_config config = { 0 };
	int i, fd = -1;

	if (setrlimit(RLIMIT_NOFILE, &limit))
		skip("so many descriptors are not to be had");
	vm_open(&vm, 0);
	for (i = 0; i < DUNE_VCPUS_MAX - 1; i++) {
		fd = ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config);
		check(fd >= 0);
	}
	vcpu_open(&vm, &vcpu, 0);
	check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config), EMFILE);
	run_a_guest();
	/* One goes, one may come. */
	check(!close(fd));
	check(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config) >= 0);
	check_errno(ioctl(vm.fd, DUNE_VM_CREATE_VCPU, &config), EMFILE);
}

/* Each is an MMU notifier, which costs everything that the process does to its memory, and every fork. */
#define VMS_MAX	64

static void there_is_an_end_to_vms(void)
{
	struct dune_vm_config config = { 0 };
	int i, status, fd = -1;

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	for (i = 0; i < VMS_MAX - 1; i++) {
		fd = ioctl(vm.device, DUNE_CREATE_VM, &config);
		check(fd >= 0);
	}
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EMFILE);
	run_a_guest();
	/* They are the process's, not the descriptors'. */
	if (!fork()) {
		check(ioctl(vm.device, DUNE_CREATE_VM, &config) >= 0);
		check(!close(fd));
		_exit(0);
	}
	check(wait(&status) > 0 && !status);
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EMFILE);
	/* One goes, one may come. */
	check(!close(fd));
	check(ioctl(vm.device, DUNE_CREATE_VM, &config) >= 0);
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EMFILE);
	/* It is there as long as it has a vCPU. */
	check(!close(vm.fd));
	check_errno(ioctl(vm.device, DUNE_CREATE_VM, &config), EMFILE);
	vcpu_close(&vcpu);
	check(ioctl(vm.device, DUNE_CREATE_VM, &config) >= 0);
}

#define TEST(name)	{ "host_" #name, name }
const struct test host_tests[] = {
	TEST(the_ldt_and_the_segments_are_restored),
	TEST(the_fs_segment_is_restored),
	TEST(port_rights_are_restored),
	TEST(breakpoints_are_restored),
	TEST(the_run_page_may_change_during_a_run),
	TEST(descriptors_that_were_sent),
	TEST(there_is_an_end_to_vcpus),
	TEST(there_is_an_end_to_vms),
	{ NULL, NULL },
};
