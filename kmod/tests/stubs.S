/* SPDX-License-Identifier: GPL-2.0-only */
/* Guest code that C cannot say. All of it may run in ring 0 and ring 3. */
	.section .note.GNU-stack, "", @progbits
	.text
#define FUNCTION(name)	.globl name; .type name, @function; name:
#define DONE		mov $0xd0, %eax; vmcall; ud2

FUNCTION(stub_syscall)
	vmcall
	sysretq

FUNCTION(stub_fault)
	push	%rax
	mov	$0xfa, %eax
	vmcall
	pop	%rax
	add	$8, %rsp
	iretq

FUNCTION(guest_spin)
	incq	(%rdi)
	jmp	guest_spin

/* Every register to its complement, which the host checks. */
FUNCTION(guest_registers)
	vmcall
	not	%rax
	not	%rcx
	not	%rdx
	not	%rbx
	not	%rbp
	not	%rsi
	not	%rdi
	not	%r8
	not	%r9
	not	%r10
	not	%r11
	not	%r12
	not	%r13
	not	%r14
	not	%r15
	vmcall
	ud2

FUNCTION(guest_syscall)
	mov	$39, %eax
	syscall
	mov	%rax, %rbx
	DONE

FUNCTION(guest_touch)
	movb	$0x5a, (%rdi)
	DONE

FUNCTION(guest_read)
	movzbl	(%rdi), %ebx
	DONE

FUNCTION(guest_calls)
	mov	%rdi, %rbx
1:	mov	$1, %eax
	vmcall
	dec	%rbx
	jnz	1b
	DONE

FUNCTION(guest_syscalls)
	mov	%rdi, %rbx
1:	mov	$39, %eax
	syscall
	dec	%rbx
	jnz	1b
	DONE

/* xmm and x87 over an exit. */
FUNCTION(guest_xmm)
	movq	%rdi, %xmm0
	punpcklqdq %xmm0, %xmm0
	movdqa	%xmm0, %xmm15
	fldpi
	mov	$1, %eax
	vmcall
	movq	%xmm15, %rbx
	fstpl	(%rsi)
	DONE

/* What the guest writes into GS bases comes back, and stays its own. */
FUNCTION(guest_swapgs)
	swapgs
	rdgsbase %rbx
	wrgsbase %rdi
	swapgs
	rdgsbase %rcx
	DONE

/* Counts in (rdi), and comes to DONE only if a register changed by itself. */
FUNCTION(guest_keeps)
	movq	%rdi, %xmm0
	movq	%rdi, %xmm15
	mov	%rdi, %rbx
	mov	%rdi, %r8
	mov	%rdi, %r12
	mov	%rdi, %r15
	wrgsbase %rdi
1:	incq	(%rdi)
	movq	%xmm0, %rax
	xor	%rdi, %rax
	movq	%xmm15, %rcx
	xor	%rdi, %rcx
	or	%rcx, %rax
	rdgsbase %rcx
	xor	%rdi, %rcx
	or	%rcx, %rax
	mov	%rbx, %rcx
	xor	%r8, %rcx
	or	%rcx, %rax
	mov	%r12, %rcx
	xor	%r15, %rcx
	or	%rcx, %rax
	mov	%rbx, %rcx
	xor	%r15, %rcx
	or	%rcx, %rax
	jz	1b
	DONE

/* Exceptions: as a guest, and as the handler of the same exception. Each counts in raised. */
FUNCTION(guest_int1)
	incq	raised(%rip)
	.byte	0xf1
	jmp	guest_int1

FUNCTION(guest_misaligned)
	incq	raised(%rip)
	mov	1(%rdi), %eax
	jmp	guest_misaligned

FUNCTION(guest_ud2)
	incq	raised(%rip)
	ud2

FUNCTION(guest_write_fault)
	incq	raised(%rip)
	movb	$1, (%rdi)
	jmp	guest_write_fault

	.comm	raised, 8, 8
