// SPDX-License-Identifier: GPL-2.0-only
/*
 * What happens to the machine while guests run: NMIs, suspending, a reboot. (CPUs
 * that go and come: smp.c.) The guests compare their registers all the while.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/suspend_ioctls.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <unistd.h>

#define NMIS	2000

static struct vm vm;
static struct runner runners[2];

/* Writes to, or reads from, a parameter of the module in nmi/. */
static long nmi_parameter(const char *name, const char *value)
{
	char path[96], text[32] = { 0 };
	long r;
	int fd;

	snprintf(path, sizeof(path), "/sys/module/dune_nmi/parameters/%s", name);
	fd = open(path, value ? O_WRONLY : O_RDONLY);
	if (fd < 0)
		skip("nmi.ko is not loaded");
	r = value ? write(fd, value, strlen(value)) : read(fd, text, sizeof(text) - 1);
	check(r > 0);
	close(fd);
	return strtol(text, NULL, 10);
}

/*
 * An NMI in a guest is the host's: its handler runs once for each, the next
 * one can come, and the guest finds nothing changed. Those that hit the code
 * around entry and exit find guest values in some MSRs.
 */
static void nmis_in_a_guest_are_the_hosts(void)
{
	volatile uint64_t *page = low_pages(4096);
	uint64_t exits, before;
	long handled;
	int i;

	need_two_cpus();
	pin(0, 0);
	handled = nmi_parameter("handled", NULL);
	vm_open(&vm, 0);
	start_runner(&vm, &runners[0], 1, guest_keeps, page);
	wait_for_progress(page);
	exits = statistic("nmi_exits");
	for (i = 0; i < NMIS; i++) {
		before = *page;
		/* Returns when it was handled; an error if it was not. */
		nmi_parameter("send", "1");
		if (i % 16 == 0)
			wait_for_progress(page);
		check(*page >= before);
	}
	wait_for_progress(page);
	exits = statistic("nmi_exits") - exits;
	handled = nmi_parameter("handled", NULL) - handled;
	printf("# %llu of %ld NMIs ended guest mode\n", (unsigned long long)exits, handled);
	check_eq(handled, NMIS);
	check(exits >= NMIS / 4 && exits <= NMIS);
}

static volatile uint64_t calls;

static void *call_always(void *unused)
{
	struct vcpu *vcpu = &runners[0].vcpu;

	pin(0, 1);
	vcpu_open(&vm, vcpu, 0);
	vcpu_start(vcpu, true, guest_syscalls, 1 << 30);
	for (;;) {
		run_to(vcpu, DUNE_EXIT_VMCALL);
		check_eq(vcpu->run->regs.rax, 39);
		calls++;
	}
	return unused;
}

/* A guest that goes in and out all the time: NMIs at every place of an entry and an exit. */
static void nmis_at_entries_and_exits(void)
{
	uint64_t seen;
	int i;

	need_two_cpus();
	pin(0, 0);
	nmi_parameter("handled", NULL);
	vm_open(&vm, 0);
	check(!pthread_create(&runners[0].thread, NULL, call_always, NULL));
	wait_for_progress(&calls);
	for (i = 0; i < NMIS; i++) {
		seen = calls;
		nmi_parameter("send", "1");
		if (i % 16 == 0)
			wait_for_progress(&calls);
		check(calls >= seen);
	}
	wait_for_progress(&calls);
}

/*
 * The kernel takes a snapshot of itself, as for hibernation: all tasks are
 * frozen, the other CPUs unplugged, VMX turned off and on again. Nothing is
 * written and the machine stays on; guests go on where they were.
 */
static void guests_outlive_a_suspend(void)
{
	volatile uint64_t *page = low_pages(4096);
	uint64_t loads;
	int fd, snapshot = 0;

	vm_open(&vm, 0);
	fd = open("/dev/snapshot", O_RDONLY);
	if (fd < 0)
		skip("no /dev/snapshot: CONFIG_HIBERNATION_SNAPSHOT_DEV, and root");
	start_runner(&vm, &runners[0], 0, guest_keeps, page);
	wait_for_progress(page);
	check(!ioctl(fd, SNAPSHOT_FREEZE, 0));
	loads = statistic("vmcs_loads");
	check(!ioctl(fd, SNAPSHOT_CREATE_IMAGE, &snapshot));
	check_eq(snapshot, 1);
	check(!ioctl(fd, SNAPSHOT_FREE, 0));
	check(!ioctl(fd, SNAPSHOT_UNFREEZE, 0));
	wait_for_progress(page);
	/* The one that was active was flushed, and came back. */
	check(statistic("vmcs_loads") > loads);
	close(fd);
}

/*
 * RCU-tasks, which tracing and BPF wait for, has to see every task let go of the CPU of its own
 * will, or in user mode. A thread whose guest only computes does neither, for ever.
 */
static void rcu_tasks_waits_for_no_guest(void)
{
	volatile uint64_t *page = low_pages(4096);
	char path[] = "/sys/module/dune_nmi/parameters/rcu_tasks";
	int fd, i;

	vm_open(&vm, 0);
	start_runner(&vm, &runners[0], 0, guest_keeps, page);
	wait_for_progress(page);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		skip("nmi.ko is not loaded");
	for (i = 0; i < 3; i++) {
		if (write(fd, "15", 2) != 2) {
			if (errno == EOPNOTSUPP)
				skip("no RCU-tasks in this kernel");
			fail(__FILE__, __LINE__, errno == ETIMEDOUT ? "RCU-tasks waits" : path);
		}
		wait_for_progress(page);
	}
	close(fd);
}

/* A byte that nobody else uses, and that is still there after a reset. */
#define CMOS_BYTE	0x7a
#define CMOS_MARK	0xd5

static int cmos(int value)
{
	outb(CMOS_BYTE, 0x70);
	if (value >= 0)
		outb(value, 0x71);
	return inb(0x71);
}

/*
 * The machine is restarted while guests run on all CPUs; no process is ended before (as by
 * "reboot -f"), so VMX goes off under them. Whoever runs this sees to it that the machine
 * comes up again and does the same: then the test passes.
 */
static void the_machine_restarts(void)
{
	volatile uint64_t *page = low_pages(4096);
	int i, count = sysconf(_SC_NPROCESSORS_ONLN);

	if (ioperm(0x70, 2, 1))
		skip("no right to ports");
	if (cmos(-1) == CMOS_MARK) {
		cmos(0);
		printf("# the machine came up again\n");
		return;
	}
	vm_open(&vm, 0);
	for (i = 0; i < 2; i++)
		start_runner(&vm, &runners[i], i % count, guest_keeps, page + 256 * i);
	for (i = 0; i < 20; i++) {
		wait_for_progress(page);
		wait_for_progress(page + 256);
	}
	check_eq(cmos(CMOS_MARK), CMOS_MARK);
	sync();
	reboot(RB_AUTOBOOT);
	fail(__FILE__, __LINE__, "reboot returned");
}

#define TEST(name)	{ "event_" #name, name }
const struct test event_tests[] = {
	TEST(nmis_in_a_guest_are_the_hosts),
	TEST(nmis_at_entries_and_exits),
	TEST(guests_outlive_a_suspend),
	TEST(rcu_tasks_waits_for_no_guest),
	{ "reboot_the_machine_restarts", the_machine_restarts },
	{ NULL, NULL },
};
