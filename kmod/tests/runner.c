// SPDX-License-Identifier: GPL-2.0-only
/* Threads whose guests count for ever, while somebody else does something to them. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

void pin(pid_t tid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	check(!sched_setaffinity(tid, sizeof(set), &set));
}

void need_two_cpus(void)
{
	cpu_set_t set;

	check(!sched_getaffinity(0, sizeof(set), &set));
	if (!CPU_ISSET(0, &set) || !CPU_ISSET(1, &set))
		skip("this takes two CPUs: cargo xtask kmod --cpus 2");
}

static void *run_counting(void *argument)
{
	struct runner *r = argument;

	if (r->cpu >= 0)
		pin(0, r->cpu);
	vcpu_open(r->vm, &r->vcpu, r->ring_entries);
	vcpu_start(&r->vcpu, true, r->entry, (uintptr_t)r->counter);
	r->tid = syscall(SYS_gettid);
	for (;;) {
		if (vcpu_run(&r->vcpu) < 0) {
			check_eq(errno, EINTR);
			continue;
		}
		/* A guest that calls has found something wrong. */
		check_eq(r->vcpu.run->exit_reason, DUNE_EXIT_MEMORY);
		__atomic_add_fetch(&r->stalls, 1, __ATOMIC_SEQ_CST);
		while (r->released < r->stalls)
			sched_yield();
	}
	return NULL;
}

void start_runner(struct vm *vm, struct runner *r, int cpu, void (*entry)(uint64_t),
		  volatile uint64_t *counter)
{
	r->vm = vm;
	r->cpu = cpu;
	r->entry = entry;
	r->counter = counter;
	check(!pthread_create(&r->thread, NULL, run_counting, r));
	while (!r->tid)
		sched_yield();
}

/* Until the counter, wherever it can be seen, has gone on. */
void wait_for_progress(volatile const uint64_t *counter)
{
	uint64_t seen = *counter;

	while (*counter == seen)
		sched_yield();
}
