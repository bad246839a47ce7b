// SPDX-License-Identifier: GPL-2.0-only
/*
 * What happens to the machine while guests run: NMIs, suspending. (CPUs that go
 * and come: smp.c.) The guests compare their registers all the while.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/suspend_ioctls.h>
#include <string.h>
#include <sys/ioctl.h>
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

#define TEST(name)	{ "event_" #name, name }
const struct test event_tests[] = {
	TEST(nmis_in_a_guest_are_the_hosts),
	TEST(nmis_at_entries_and_exits),
	TEST(guests_outlive_a_suspend),
	{ NULL, NULL },
};
