/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * int dune_vmenter(struct dune_regs *regs, bool launched)
 *
 * Enters the guest with the general registers in *regs, and returns 0 after
 * its exit with them there again, or 1 if the CPU refused to enter. RSP, RIP
 * and RFLAGS are in the VMCS. *regs may be shared with user space: nothing
 * in it means anything to this code.
 *
 * Interrupts are off, on both sides (SDM 3C, "Loading Host RFLAGS").
 */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <linux/stringify.h>
#include <asm/alternative.h>
#include <asm/asm.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>

#if !defined(DUNE_HAVE_CLEAR_CPU_BUFFERS) || !defined(DUNE_HAVE_CLEAR_BRANCH_HISTORY)
#error "this kernel's headers have no CLEAR_CPU_BUFFERS or CLEAR_BRANCH_HISTORY_VMEXIT, against MDS and BHI: dune needs 6.1.85, 6.6.26, 6.8.5, or later ones"
#endif

#define VMCS_HOST_RSP	0x6c14
#define VMCS_HOST_RIP	0x6c16

/* struct dune_regs; checked by vmcs.c */
#define REG_RAX		0
#define REG_RCX		16
#define REG_RDX		24
#define REG_RBX		8
#define REG_RBP		56
#define REG_RSI		32
#define REG_RDI		40
#define REG_R8		64
#define REG_R9		72
#define REG_R10		80
#define REG_R11		88
#define REG_R12		96
#define REG_R13		104
#define REG_R14		112
#define REG_R15		120

.section .text, "ax"

SYM_FUNC_START(dune_vmenter)
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	push	%rdi

	/* The exit finds this stack: (%rsp) is regs. */
	mov	$VMCS_HOST_RSP, %eax
	vmwrite	%rsp, %rax

	/* MDS and its kin: nothing of the kernel's is loaded from here on. */
#ifdef VM_CLEAR_CPU_BUFFERS
	VM_CLEAR_CPU_BUFFERS
#endif
	CLEAR_CPU_BUFFERS

	testb	%sil, %sil
	mov	REG_RAX(%rdi), %rax
	mov	REG_RCX(%rdi), %rcx
	mov	REG_RDX(%rdi), %rdx
	mov	REG_RBX(%rdi), %rbx
	mov	REG_RBP(%rdi), %rbp
	mov	REG_RSI(%rdi), %rsi
	mov	REG_R8(%rdi), %r8
	mov	REG_R9(%rdi), %r9
	mov	REG_R10(%rdi), %r10
	mov	REG_R11(%rdi), %r11
	mov	REG_R12(%rdi), %r12
	mov	REG_R13(%rdi), %r13
	mov	REG_R14(%rdi), %r14
	mov	REG_R15(%rdi), %r15
	mov	REG_RDI(%rdi), %rdi
	jz	.Llaunch
	vmresume
	jmp	.Lrefused
.Llaunch:
	vmlaunch
	jbe	.Lrefused

	/* An exit: all registers but RSP are the guest's. */
SYM_INNER_LABEL(dune_vmexit, SYM_L_GLOBAL)
	ANNOTATE_NOENDBR	/* reached by an exit, which is no indirect jump */
	push	%rax
	mov	8(%rsp), %rax
	pop	REG_RAX(%rax)
	mov	%rcx, REG_RCX(%rax)
	mov	%rdx, REG_RDX(%rax)
	mov	%rbx, REG_RBX(%rax)
	mov	%rbp, REG_RBP(%rax)
	mov	%rsi, REG_RSI(%rax)
	mov	%rdi, REG_RDI(%rax)
	mov	%r8, REG_R8(%rax)
	mov	%r9, REG_R9(%rax)
	mov	%r10, REG_R10(%rax)
	mov	%r11, REG_R11(%rax)
	mov	%r12, REG_R12(%rax)
	mov	%r13, REG_R13(%rax)
	mov	%r14, REG_R14(%rax)
	mov	%r15, REG_R15(%rax)

	/*
	 * The predictors are the guest's: no RET before the return stack is
	 * refilled, and where IBRS is used it has to be written again to
	 * take effect.
	 */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE
	ALTERNATIVE "", __stringify(movl $MSR_IA32_SPEC_CTRL, %ecx; rdmsr; wrmsr; lfence), X86_FEATURE_KERNEL_IBRS
	CLEAR_BRANCH_HISTORY_VMEXIT
	xor	%eax, %eax

.Lout:
	/* No guest value stays in a register that speculation could use. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	add	$8, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	RET

.Lrefused:
	mov	$1, %eax
	jmp	.Lout
SYM_FUNC_END(dune_vmenter)
