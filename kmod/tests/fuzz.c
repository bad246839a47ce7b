// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random calls with random arguments, some nearly right: what comes back does
 * not matter, that the kernel stays well does. The seed is printed; another
 * one: DUNE_FUZZ_SEED. DUNE_FUZZ_CALLS is how many (default 4000).
 *
 * A guest that runs at random addresses may destroy its own process, which is
 * its memory: that is no failure. Eight processes share the calls.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define FDS	24

static struct vm vm;
static uint8_t *area;
static int fds[FDS];
static struct dune_run *runs[FDS];
static uint64_t state;

static uint64_t next(void)
{
	/* xorshift64* (Vigna) */
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dULL;
}

static uint64_t number(void)
{
	static const uint64_t edges[] = {
		0, 1, 0xfff, 0x1000, 0x1001, 0x7fffffff, 0x80000000, 0xffffffff, 1ULL << 32,
		1ULL << 39, 1ULL << 40, 1ULL << 46, 1ULL << 47, (1ULL << 47) - 4096, 1ULL << 48,
		1ULL << 63, -1ULL, -4096ULL, 0xffff800000000000ULL, 0xffffffff81000000ULL,
	};

	switch (next() % 4) {
	case 0:
		return next();
	case 1:
		return next() >> (next() % 64);
	case 2:
		return edges[next() % (sizeof(edges) / sizeof(*edges))];
	default:
		return (uintptr_t)area + (next() % (1 << 20) & ~0xfffULL);
	}
}

static void *argument(void)
{
	static uint64_t words[256];
	unsigned int i;

	if (next() % 8 == 0)
		return (void *)number();
	memset(words, 0, sizeof(words));
	if (next() % 3 == 0) {
		struct dune_state good;

		default_state(&vm, &good, next() & 1);
		memcpy(words, &good, sizeof(good));
	}
	for (i = 0; i < next() % 6; i++)
		words[next() % (next() % 2 ? 4 : 48)] = number();
	return words;
}

static void adopt(int fd)
{
	int i = next() % FDS;

	if (fd < 3)
		return;
	if (runs[i])
		munmap(runs[i], 4096);
	if (fds[i] > 2)
		close(fds[i]);
	fds[i] = fd;
	runs[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (runs[i] == MAP_FAILED)
		runs[i] = NULL;
}

static void scribble(struct dune_run *run)
{
	unsigned int i;

	for (i = 0; i < next() % 5; i++)
		((uint64_t *)run)[next() % (sizeof(*run) / 8)] = number();
	if (next() % 2)
		run->regs.rip = (uintptr_t)guest_calls;
	if (next() % 2)
		run->inject = 0;
	if (next() % 8) {	/* else nothing of it would ever run again */
		run->reserved0 = run->reserved4 = 0;
		memset(run->reserved1, 0, sizeof(run->reserved1));
	}
	run->immediate_exit = next() % 16 == 0;
}

static void on_alarm(int number)
{
	int i;

	for (i = 0; i < FDS; i++)
		if (runs[i])
			runs[i]->immediate_exit = 1;
}

static void random_calls(int n)
{
	static const unsigned long calls[] = {
		DUNE_GET_INFO, DUNE_CREATE_VM, DUNE_VM_MAP_WINDOW, DUNE_VM_UNMAP_WINDOW,
		DUNE_VM_CREATE_VCPU, DUNE_VM_CLEAR_DIRTY, DUNE_VCPU_RUN, DUNE_VCPU_GET_STATE,
		DUNE_VCPU_SET_STATE, DUNE_VCPU_GET_XSAVE, DUNE_VCPU_SET_XSAVE,
	};
	struct itimerval timer = { { 0, 5000 }, { 0, 5000 } };
	struct vcpu vcpu;
	int i, good = 0;

	area = low_pages(1 << 20);
	signal(SIGALRM, on_alarm);
	vm_open(&vm, 0);
	for (i = 0; i < 4; i++) {
		vcpu_open(&vm, &vcpu, 0);
		vcpu_start(&vcpu, true, guest_calls, 1000);
		fds[i] = vcpu.fd;
		runs[i] = vcpu.run;
	}
	fds[4] = dup(vm.fd);
	fds[5] = dup(vm.device);
	check(!setitimer(ITIMER_REAL, &timer, NULL));
	for (i = 0; i < n; i++) {
		int which = next() % FDS;
		unsigned long call = calls[next() % (sizeof(calls) / sizeof(*calls))];
		int r;

		if (next() % 64 == 0)
			call ^= 1UL << next() % 32;
		if (runs[which] && next() % 2) {
			scribble(runs[which]);
			call = next() % 3 ? DUNE_VCPU_RUN : call;
		}
		r = ioctl(fds[which], call,
			  call == DUNE_VCPU_RUN && next() % 8 ? NULL : argument());
		good += r >= 0;
		if (call == DUNE_CREATE_VM || call == DUNE_VM_CREATE_VCPU)
			adopt(r);
		if (next() % 32 == 0)
			madvise(area, 1 << 20, MADV_DONTNEED);
		if (next() % 64 == 0)
			mprotect(area, 1 << 19, next() & 1 ? PROT_READ : PROT_READ | PROT_WRITE);
	}
	printf("# %d of %d calls succeeded\n", good, n);
	check(good > n / 50);
}

static void random_calls_of_eight_processes(void)
{
	const char *seed = getenv("DUNE_FUZZ_SEED"), *count = getenv("DUNE_FUZZ_CALLS");
	int i, status, n = count ? atoi(count) : 4000, whole = 0;

	state = seed ? strtoull(seed, NULL, 0) : 0x9e3779b97f4a7c15ULL;
	printf("# seed %#llx, %d calls\n", (unsigned long long)state, n);
	for (i = 0; i < 8; i++) {
		fflush(stdout);
		if (!fork()) {
			state += i;
			random_calls(n / 8);
			fflush(stdout);
			_exit(0);
		}
		check(wait(&status) > 0);
		check(!WIFEXITED(status) || !WEXITSTATUS(status));
		whole += !status;
	}
	printf("# %d of 8 processes came to their end\n", whole);
	check(whole > 0);
}

const struct test fuzz_tests[] = {
	{ "fuzz_random_calls_of_eight_processes", random_calls_of_eight_processes },
	{ NULL, NULL },
};
