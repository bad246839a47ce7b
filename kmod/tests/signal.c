// SPDX-License-Identifier: GPL-2.0-only
/* Signals, kicks and deaths: the guest cannot keep the CPU, nor outlive its process. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static struct vm vm;
static struct vcpu vcpu;
static volatile int signals;
static volatile bool last_kick;

static volatile uint64_t *open_spinning(void)
{
	volatile uint64_t *counter = low_pages(4096);

	vm_open(&vm, 0);
	vcpu_open(&vm, &vcpu, 0);
	vcpu_start(&vcpu, true, guest_spin, (uintptr_t)counter);
	return counter;
}

static void on_signal(int number)
{
	signals++;
	vcpu.run->immediate_exit = 1;
}

static void a_signal_ends_the_run(void)
{
	volatile uint64_t *counter = open_spinning();
	/* The first run may take some of it, on a kernel that checks much. */
	struct itimerval timer = { .it_value.tv_usec = 100000 };
	uint64_t before;
	int i;

	signal(SIGVTALRM, on_signal);
	signal(SIGPROF, on_signal);
	for (i = 1; i <= 10; i++) {
		before = *counter;
		vcpu.run->immediate_exit = 0;
		check(!setitimer(i & 1 ? ITIMER_VIRTUAL : ITIMER_PROF, &timer, NULL));
		check(!setitimer(ITIMER_PROF, &timer, NULL));
		while (!vcpu.run->immediate_exit) {
			check(vcpu_run(&vcpu) == -1);
			check_eq(errno, EINTR);
			check_eq(vcpu.run->exit_reason, DUNE_EXIT_INTERRUPTED);
		}
		check(*counter > before);
	}
	check(signals >= 10);
}

/* A guest that is never out of its handlers of faults, which fault: in ring 3 and in ring 0. */
static void a_signal_ends_endless_faults(void)
{
	static void (*const entries[])(uint64_t) = { guest_ud2, guest_write_fault };
	static const int vectors[] = { 6, 14 };
	/* The first run may take some of it, on a kernel that checks much. */
	struct itimerval timer = { .it_value.tv_usec = 100000 };
	uint64_t target = FOUR_GIB - (64 << 20), before;
	int i, n;

	open_spinning();
	vm.pd[3][(target >> 21) & 511] = 0;
	signal(SIGPROF, on_signal);
	for (i = 0; i < 4; i++) {
		vcpu_start(&vcpu, i & 1, entries[i / 2], target);
		set_gate(&vm, vectors[i / 2], (void (*)(void))entries[i / 2], i & 1);
		for (n = 0; n < 5; n++) {
			before = raised;
			vcpu.run->immediate_exit = 0;
			check(!setitimer(ITIMER_PROF, &timer, NULL));
			while (!vcpu.run->immediate_exit) {
				check_errno(vcpu_run(&vcpu), EINTR);
				check_eq(vcpu.run->exit_reason, DUNE_EXIT_INTERRUPTED);
			}
			check(raised > before + 100);
		}
	}
}

static void immediate_exit_is_honoured(void)
{
	volatile uint64_t *counter = open_spinning();

	vcpu.run->immediate_exit = 1;
	check_errno(vcpu_run(&vcpu), EINTR);
	check_errno(vcpu_run(&vcpu), EINTR);
	check_eq(*counter, 0);
}

static void *kick_often(void *target)
{
	int i;

	for (i = 0; i < 300; i++) {
		pthread_kill(*(pthread_t *)target, SIGUSR1);
		if (i % 16 == 0)
			usleep(300);
		else
			sched_yield();
	}
	last_kick = true;
	__sync_synchronize();
	pthread_kill(*(pthread_t *)target, SIGUSR1);
	return NULL;
}

/* A signal at any instant: before, in and after the call, none is slept through. */
static void kicks_are_not_lost(void)
{
	pthread_t thread, self = pthread_self();

	open_spinning();
	signal(SIGUSR1, on_signal);
	check(!pthread_create(&thread, NULL, kick_often, &self));
	while (!last_kick) {
		vcpu.run->immediate_exit = 0;
		__sync_synchronize();
		if (last_kick)
			break;
		check(vcpu_run(&vcpu) == -1);
		check_eq(errno, EINTR);
	}
	check(!pthread_join(thread, NULL));
}

static void others_get_the_cpu(void)
{
	volatile uint64_t *counter = open_spinning();
	int status, i;
	cpu_set_t set;
	pid_t child;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	check(!sched_setaffinity(0, sizeof(set), &set));
	child = fork();
	if (!child) {
		/* A VM of its own: two guests spin on one CPU. */
		counter = open_spinning();
		signal(SIGPROF, on_signal);
		setitimer(ITIMER_PROF, &(struct itimerval){ .it_value.tv_usec = 200000 }, NULL);
		while (!vcpu.run->immediate_exit)
			vcpu_run(&vcpu);
		check(*counter > 0);
		_exit(0);
	}
	signal(SIGPROF, on_signal);
	setitimer(ITIMER_PROF, &(struct itimerval){ .it_value.tv_usec = 200000 }, NULL);
	while (!vcpu.run->immediate_exit)
		vcpu_run(&vcpu);
	check(waitpid(child, &status, 0) == child && !status);
	for (i = 0; i < 3; i++)
		check(*counter > 0);
}

static void *spin_thread(void *unused)
{
	struct vcpu mine;

	vcpu_open(&vm, &mine, 0);
	vcpu_start(&mine, true, guest_spin, (uintptr_t)low_pages(4096));
	for (;;)
		vcpu_run(&mine);
	return NULL;
}

/* Whatever it is at: creating, running, faulting. dmesg and rmmod tell the rest. */
static void kill_9_at_any_instant(void)
{
	unsigned int seed = 1;
	int i, j, status;
	pthread_t thread;
	pid_t child;

	for (i = 0; i < 25; i++) {
		child = fork();
		if (!child) {
			vm_open(&vm, 0);
			for (j = 0; j < 3; j++)
				pthread_create(&thread, NULL, spin_thread, NULL);
			vcpu_open(&vm, &vcpu, 0);
			for (;;) {
				vcpu_start(&vcpu, true, guest_touch, (uintptr_t)low_pages(65536));
				run_to(&vcpu, DUNE_EXIT_VMCALL);
			}
		}
		usleep(rand_r(&seed) % 20000);
		kill(child, SIGKILL);
		check(waitpid(child, &status, 0) == child);
		check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
}

static void descriptors_may_go_in_any_order(void)
{
	open_spinning();
	vcpu_start(&vcpu, true, guest_calls, 3);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	check(!close(vm.fd));
	check(!close(vm.device));
	run_to(&vcpu, DUNE_EXIT_VMCALL);	/* the vCPU holds what it needs */
	check(!close(vcpu.fd));
	vcpu.run->regs.rax = 1;			/* and so does the mapping */
}

static void exec_ends_it(void)
{
	int status;

	open_spinning();
	vcpu_start(&vcpu, true, guest_calls, 3);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
	if (!fork()) {
		vm_open(&vm, 0);
		vcpu_open(&vm, &vcpu, 0);
		vcpu_start(&vcpu, true, guest_calls, 3);
		run_to(&vcpu, DUNE_EXIT_VMCALL);
		execl("/bin/sh", "sh", "-c", "exit 7", NULL);
		_exit(1);
	}
	check(wait(&status) > 0 && WEXITSTATUS(status) == 7);
	run_to(&vcpu, DUNE_EXIT_VMCALL);
}

#define TEST(name)	{ "signal_" #name, name }
const struct test signal_tests[] = {
	TEST(a_signal_ends_the_run),
	TEST(a_signal_ends_endless_faults),
	TEST(immediate_exit_is_honoured),
	TEST(kicks_are_not_lost),
	TEST(others_get_the_cpu),
	TEST(kill_9_at_any_instant),
	TEST(descriptors_may_go_in_any_order),
	TEST(exec_ends_it),
	{ NULL, NULL },
};
