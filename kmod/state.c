// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's state from user space and back: what the CPU would take badly
 * in the host is refused here, what it checks itself at VM entry (segments,
 * above all) is left to it and comes back as DUNE_EXIT_FAIL_ENTRY.
 */
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/msr-index.h>

#include "compat.h"
#include "dune.h"

#define CR0_REQUIRED	(X86_CR0_PE | X86_CR0_PG)
#define EFER_REQUIRED	(EFER_LME | EFER_LMA)
/* Type, S, DPL, P, AVL, L, D/B, G and "unusable". */
#define AR_BITS		0x1f0ff

/* VMCS order of the segment fields: es cs ss ds fs gs ldtr tr, two apart. */
static const struct {
	u16 offset, index;
} segments[] = {
	{ offsetof(struct dune_state, es), 0 }, { offsetof(struct dune_state, cs), 1 },
	{ offsetof(struct dune_state, ss), 2 }, { offsetof(struct dune_state, ds), 3 },
	{ offsetof(struct dune_state, fs), 4 }, { offsetof(struct dune_state, gs), 5 },
	{ offsetof(struct dune_state, ldtr), 6 }, { offsetof(struct dune_state, tr), 7 },
};

static bool is_fs_or_gs(int i)
{
	return segments[i].index == 4 || segments[i].index == 5;
}

/* The SDM's "canonical", for the paging that the host runs with. */
static bool canonical(u64 address)
{
	int shift = 64 - (pgtable_l5_enabled() ? 57 : 48);

	return (u64)((s64)(address << shift) >> shift) == address;
}

static int check(const struct dune_state *state)
{
	const struct dune_vmx_caps *c = &dune_caps;
	int i;

	for (i = 0; i < ARRAY_SIZE(segments); i++) {
		const struct dune_segment *s = (const void *)state + segments[i].offset;

		if ((s->access_rights & ~AR_BITS) || s->reserved0 || s->reserved1 ||
		    (is_fs_or_gs(i) && s->base))
			return -EINVAL;
	}
	if (state->gdt.reserved0 || state->idt.reserved0 ||
	    state->gdt.limit > 0xffff || state->idt.limit > 0xffff ||
	    memchr_inv(state->reserved, 0, sizeof(state->reserved)))
		return -EINVAL;
	if ((state->cr0 & ~DUNE_CR0_GUEST) || (state->cr0 & CR0_REQUIRED) != CR0_REQUIRED ||
	    (state->cr4 & ~c->cr4_guest) || !(state->cr4 & X86_CR4_PAE) ||
	    (state->efer & ~DUNE_EFER_GUEST) || (state->efer & EFER_REQUIRED) != EFER_REQUIRED)
		return -EINVAL;
	if (state->cr3 >> c->gpa_bits || ((state->cr4 & X86_CR4_PCIDE) && (state->cr3 & 0xfff)))
		return -EINVAL;
	/* These go into host MSRs, where the CPU would, or may, raise #GP. */
	if (!canonical(state->lstar) || !canonical(state->kernel_gs_base) || state->fmask >> 32 ||
	    (u32)state->star)
		return -EINVAL;
	return 0;
}

/* With vcpu->lock; on an error nothing has changed. */
int dune_state_set(struct dune_vcpu *vcpu, const struct dune_state *state)
{
	const struct dune_vmx_caps *c = &dune_caps;
	int i, r;

	r = check(state);
	if (r)
		return r;
	if (!dune_vmcs_begin(vcpu))
		return -EINTR;
	for (i = 0; i < ARRAY_SIZE(segments); i++) {
		const struct dune_segment *s = (const void *)state + segments[i].offset;
		int field = 2 * segments[i].index;

		vmcs_write(GUEST_ES_SELECTOR + field, s->selector);
		vmcs_write(GUEST_ES_LIMIT + field, s->limit);
		vmcs_write(GUEST_ES_AR_BYTES + field, s->access_rights);
		if (!is_fs_or_gs(i))
			vmcs_write(GUEST_ES_BASE + field, s->base);
	}
	vmcs_write(GUEST_GDTR_BASE, state->gdt.base);
	vmcs_write(GUEST_GDTR_LIMIT, state->gdt.limit);
	vmcs_write(GUEST_IDTR_BASE, state->idt.base);
	vmcs_write(GUEST_IDTR_LIMIT, state->idt.limit);
	vmcs_write(GUEST_CR0, (state->cr0 | c->cr0_fixed0) & c->cr0_fixed1);
	vmcs_write(CR0_READ_SHADOW, state->cr0);
	vmcs_write(GUEST_CR3, state->cr3);
	/* A machine check in the guest must be one, not a shutdown. */
	vmcs_write(GUEST_CR4, state->cr4 | c->cr4_fixed0 | X86_CR4_MCE);
	vmcs_write(CR4_READ_SHADOW, state->cr4);
	vmcs_write(GUEST_IA32_EFER, state->efer);
	vmcs_write(GUEST_INTERRUPTIBILITY_INFO, 0);
	vmcs_write(GUEST_PENDING_DBG_EXCEPTIONS, 0);
	dune_vmcs_end();
	vcpu->star = state->star;
	vcpu->lstar = state->lstar;
	vcpu->fmask = state->fmask;
	vcpu->kernel_gs_base = state->kernel_gs_base;
	vcpu->redeliver = 0;
	vcpu->flushed_gen = 0;	/* with a tag, CR3 and CR4 from here would flush nothing */
	vcpu->has_run_state = true;
	return 0;
}

/* With vcpu->lock. */
int dune_state_get(struct dune_vcpu *vcpu, struct dune_state *state)
{
	int i;

	memset(state, 0, sizeof(*state));
	if (!dune_vmcs_begin(vcpu))
		return -EINTR;
	for (i = 0; i < ARRAY_SIZE(segments); i++) {
		struct dune_segment *s = (void *)state + segments[i].offset;
		int field = 2 * segments[i].index;

		s->selector = vmcs_read(GUEST_ES_SELECTOR + field);
		s->limit = vmcs_read(GUEST_ES_LIMIT + field);
		s->access_rights = vmcs_read(GUEST_ES_AR_BYTES + field) & AR_BITS;
		if (!is_fs_or_gs(i))
			s->base = vmcs_read(GUEST_ES_BASE + field);
	}
	state->gdt.base = vmcs_read(GUEST_GDTR_BASE);
	state->gdt.limit = vmcs_read(GUEST_GDTR_LIMIT);
	state->idt.base = vmcs_read(GUEST_IDTR_BASE);
	state->idt.limit = vmcs_read(GUEST_IDTR_LIMIT);
	state->cr0 = vmcs_read(CR0_READ_SHADOW);
	state->cr3 = vmcs_read(GUEST_CR3);
	state->cr4 = vmcs_read(CR4_READ_SHADOW);
	state->efer = vmcs_read(GUEST_IA32_EFER);
	dune_vmcs_end();
	state->star = vcpu->star;
	state->lstar = vcpu->lstar;
	state->fmask = vcpu->fmask;
	state->kernel_gs_base = vcpu->kernel_gs_base;
	return 0;
}

/* Bytes of a standard-format XSAVE image of these components; 0: as of FXSAVE, and a header. */
u32 dune_xsave_bytes(u64 xcr0)
{
	u32 bytes = 512 + 64, size, offset, c, d;
	int i;

	for (i = 2; i < 63; i++) {
		if (!(xcr0 & BIT_ULL(i)))
			continue;
		cpuid_count(0xd, i, &size, &offset, &c, &d);
		bytes = max(bytes, offset + size);
	}
	return bytes;
}

/* What XSAVE would write after FNINIT with all components initial. */
void dune_xsave_reset(void *xsave)
{
	memset(xsave, 0, dune_caps.xsave_bytes);
	*(u16 *)xsave = 0x37f;			/* FCW */
	*(u32 *)(xsave + 24) = 0x1f80;		/* MXCSR */
	if (!dune_caps.xcr0)			/* FXSAVE writes no header */
		*(u64 *)(xsave + 512) = XFEATURE_MASK_FPSSE;
}

/*
 * With vcpu->lock. XRSTOR of a bad image raises #GP in the kernel, so the
 * header and MXCSR are checked, on a copy that user space cannot change.
 */
int dune_xsave_set(struct dune_vcpu *vcpu, const struct dune_buffer *buffer)
{
	u64 *header;
	void *copy;
	int r = -EINVAL;

	if (buffer->reserved0 || buffer->size < dune_caps.xsave_bytes)
		return -EINVAL;
	copy = memdup_user(u64_to_user_ptr(buffer->addr), dune_caps.xsave_bytes);
	if (IS_ERR(copy))
		return PTR_ERR(copy);
	header = copy + 512;
	if (!(header[0] & ~(vcpu->vm->xcr0 ?: XFEATURE_MASK_FPSSE)) && !memchr_inv(header + 1, 0, 56) &&
	    !(*(u32 *)(copy + 24) & ~dune_caps.mxcsr_mask)) {
		if (!vcpu->vm->xcr0)
			header[0] = XFEATURE_MASK_FPSSE;
		memcpy(vcpu->xsave, copy, dune_caps.xsave_bytes);
		r = 0;
	}
	kfree(copy);
	return r;
}

int dune_xsave_get(struct dune_vcpu *vcpu, const struct dune_buffer *buffer)
{
	if (buffer->reserved0 || buffer->size < dune_caps.xsave_bytes)
		return -EINVAL;
	if (copy_to_user(u64_to_user_ptr(buffer->addr), vcpu->xsave, dune_caps.xsave_bytes))
		return -EFAULT;
	return 0;
}
