/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the selftests share: a process whose first 4 GiB are a guest's memory,
 * at the same addresses on all three levels, so that a function of this
 * program can be run in the guest as it is.
 */
#ifndef GUEST_H
#define GUEST_H

#include <linux/dune.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#define FOUR_GIB	(1ULL << 32)
#define KERNEL_CS	0x08
#define TSS_SELECTOR	0x28

/* A guest's memory and what describes it. */
struct vm {
	int device;
	int fd;
	struct dune_info info;
	uint64_t *pml4;
	uint64_t *pd[4];	/* 2 MiB pages, identity */
	uint64_t *gdt;
	uint64_t *idt;		/* two words a gate */
	uint32_t *tss;
};

struct vcpu {
	struct vm *vm;
	int fd;
	struct dune_run *run;
	struct dune_ring *ring;
	uint64_t *ring_gpas;
	uint32_t ring_entries;
	uint8_t *stack;		/* top */
};

/* main.c */
#define check(condition)	\
	((condition) ? (void)0 : fail(__FILE__, __LINE__, #condition))
#define check_eq(a, b)		check_equal(__FILE__, __LINE__, #a, (int64_t)(a), (int64_t)(b))
#define check_errno(call, e)	check_fails(__FILE__, __LINE__, #call, (call), (e))
void fail(const char *file, int line, const char *what) __attribute__((noreturn));
void check_equal(const char *file, int line, const char *what, int64_t a, int64_t b);
void check_fails(const char *file, int line, const char *what, long result, int expected);
void skip(const char *why) __attribute__((noreturn));

struct test {
	const char *name;
	void (*run)(void);
};
extern const struct test reject_tests[], run_tests[], host_tests[], memory_tests[],
	pressure_tests[], signal_tests[], pml_tests[], smp_tests[], event_tests[], fuzz_tests[],
	count_tests[];

/* guest.c */
void *low_pages(size_t bytes);
void make_tables(struct vm *vm);
void vm_open(struct vm *vm, uint64_t features);
void vcpu_open(struct vm *vm, struct vcpu *vcpu, uint32_t ring_entries);
void vcpu_close(struct vcpu *vcpu);
void default_state(const struct vm *vm, struct dune_state *state, bool user);
void vcpu_start(struct vcpu *vcpu, bool user, void (*entry)(uint64_t), uint64_t argument);
int vcpu_run(struct vcpu *vcpu);
void run_to(struct vcpu *vcpu, uint32_t exit_reason);
uint64_t statistic(const char *name);
void set_gate(struct vm *vm, int vector, void (*handler)(void), bool user);

/* A thread with a vCPU whose guest counts. */
struct runner {
	struct vm *vm;
	pthread_t thread;
	int cpu;			/* where it begins */
	volatile uint64_t *counter;	/* where its guest counts */
	void (*entry)(uint64_t);
	uint32_t ring_entries;
	struct vcpu vcpu;
	volatile pid_t tid;
	volatile uint64_t stalls;	/* memory exits that it has taken */
	volatile uint64_t released;	/* of which it may leave so many behind */
};

/* runner.c */
void pin(pid_t tid, int cpu);
void need_two_cpus(void);
void start_runner(struct vm *vm, struct runner *r, int cpu, void (*entry)(uint64_t),
		  volatile uint64_t *counter);
void wait_for_progress(volatile const uint64_t *counter);

/* memory.c */
void swap_on(void);
void swap_off(void);

/* stubs.S */
void stub_syscall(void);	/* LSTAR: VMCALL, SYSRET */
void stub_fault(void);		/* a gate: VMCALL with rax = FAULT_CALL, pops the error code, IRET */
void guest_spin(uint64_t);
void guest_registers(uint64_t);
void guest_syscall(uint64_t);
void guest_touch(uint64_t);	/* write a byte, then DONE */
void guest_read(uint64_t);	/* read a byte, then DONE with rbx = it */
void guest_calls(uint64_t);	/* as many VMCALLs as the argument says, then DONE */
void guest_syscalls(uint64_t);
void guest_xmm(uint64_t);
void guest_swapgs(uint64_t);
void guest_keeps(uint64_t);	/* counts as long as its registers are what it put there */
void guest_int1(uint64_t);
void guest_misaligned(uint64_t);
void guest_ud2(uint64_t);
void guest_write_fault(uint64_t);
extern volatile uint64_t raised;

#define DONE_CALL	0xd0
#define FAULT_CALL	0xfa

/* Guest code: the host sees number in rax, and argument in rdi; gives back rax. */
static inline uint64_t vmcall(uint64_t number, uint64_t argument)
{
	asm volatile("vmcall" : "+a" (number) : "D" (argument) : "memory");
	return number;
}

#endif /* GUEST_H */
