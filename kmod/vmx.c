// SPDX-License-Identifier: GPL-2.0-only
/*
 * VMX operation: what the CPUs can do, and turning it on while there are VMs.
 *
 * It is on only while a VM exists, so the module and an idle kvm_intel can be
 * loaded side by side. Whoever finds CR4.VMXE set by somebody else gets EBUSY.
 * CPUs that come and go are handled by a hotplug state that lives as long.
 */
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/module.h>
#include <linux/reboot.h>
#include <linux/sched/smt.h>
#include <asm/cpufeature.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/perf_event.h>
#include <asm/msr-index.h>
#include <asm/tlbflush.h>

#include "compat.h"
#include "dune.h"

static bool allow_l1tf;
module_param(allow_l1tf, bool, 0444);
MODULE_PARM_DESC(allow_l1tf, "load on CPUs with L1TF that cannot flush their L1 cache, or have SMT on (default 0)");
static bool enable_pml = true;
module_param(enable_pml, bool, 0444);
MODULE_PARM_DESC(enable_pml, "offer the page-modification log where the CPU has it (default 1)");
static bool enable_vpid = true;
module_param(enable_vpid, bool, 0444);
MODULE_PARM_DESC(enable_vpid, "tag TLB entries of guests where the CPU can (default 1)");
static uint large_pages = 1;
module_param(large_pages, uint, 0444);
MODULE_PARM_DESC(large_pages, "2 MiB and 1 GiB pages in the EPT: 0 never, 1 unless a guest could hang the CPU by them (default), 2 always");

struct dune_vmx_caps dune_caps;

static DEFINE_PER_CPU(struct page *, vmxon_region);
static DEFINE_PER_CPU(bool, vmx_on);
static DEFINE_MUTEX(users_lock);
static int users;
static int hotplug_state;
static bool rebooting;

bool dune_vmx_on(void)
{
	return this_cpu_read(vmx_on);
}

void dune_vmwrite_failed(unsigned long field, u64 value)
{
	pr_warn_ratelimited("dune: VMWRITE of %#llx to field %#lx failed, VM-instruction error %llu\n",
			    value, field, vmcs_read(VM_INSTRUCTION_ERROR));
}

/* A VMCS control word: what is asked for, within what the CPU allows and demands. */
static int control(const char *name, u32 msr, u32 required, u32 wanted, u32 *result)
{
	u64 caps = dune_rdmsr(msr);
	u32 must = caps, may = caps >> 32;

	*result = ((required | wanted) & may) | must;
	if (required & ~*result) {
		pr_err("dune: this CPU lacks %s controls %#x\n", name, required & ~*result);
		return -EOPNOTSUPP;
	}
	return 0;
}

static int probe_controls(void)
{
	struct dune_vmx_caps *c = &dune_caps;
	/* IA32_PERF_GLOBAL_CTRL is there since version 2. */
	bool perf = boot_cpu_has(X86_FEATURE_ARCH_PERFMON) && (cpuid_eax(10) & 0xff) >= 2;
	u64 ept;
	int r;

	r = control("pin-based", MSR_IA32_VMX_TRUE_PINBASED_CTLS,
		    PIN_BASED_EXT_INTR_MASK | PIN_BASED_NMI_EXITING | PIN_BASED_VIRTUAL_NMIS,
		    0, &c->pin);
	r = r ?: control("processor-based", MSR_IA32_VMX_TRUE_PROCBASED_CTLS,
			 CPU_BASED_HLT_EXITING | CPU_BASED_MWAIT_EXITING |
			 CPU_BASED_MONITOR_EXITING | CPU_BASED_RDPMC_EXITING |
			 CPU_BASED_MOV_DR_EXITING | CPU_BASED_UNCOND_IO_EXITING |
			 CPU_BASED_CR8_LOAD_EXITING | CPU_BASED_CR8_STORE_EXITING |
			 CPU_BASED_USE_MSR_BITMAPS | CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
			 0, &c->cpu);
	r = r ?: control("secondary", MSR_IA32_VMX_PROCBASED_CTLS2,
			 SECONDARY_EXEC_ENABLE_EPT | SECONDARY_EXEC_WBINVD_EXITING,
			 SECONDARY_EXEC_ENABLE_VPID | SECONDARY_EXEC_ENABLE_RDTSCP |
			 SECONDARY_EXEC_ENABLE_INVPCID | SECONDARY_EXEC_ENABLE_PML |
			 SECONDARY_EXEC_ENCLS_EXITING, &c->cpu2);
	r = r ?: control("exit", MSR_IA32_VMX_TRUE_EXIT_CTLS,
			 VM_EXIT_HOST_ADDR_SPACE_SIZE | VM_EXIT_LOAD_IA32_EFER,
			 perf ? VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL : 0, &c->exit);
	r = r ?: control("entry", MSR_IA32_VMX_TRUE_ENTRY_CTLS,
			 VM_ENTRY_IA32E_MODE | VM_ENTRY_LOAD_IA32_EFER |
			 VM_ENTRY_LOAD_DEBUG_CONTROLS,
			 perf ? VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL : 0, &c->entry);
	if (r)
		return r;
	if (c->cpu & (CPU_BASED_CR3_LOAD_EXITING | CPU_BASED_CR3_STORE_EXITING)) {
		pr_err("dune: this CPU cannot leave CR3 to the guest\n");
		return -EOPNOTSUPP;
	}
	if (boot_cpu_has(X86_FEATURE_SGX) && !(c->cpu2 & SECONDARY_EXEC_ENCLS_EXITING)) {
		pr_err("dune: this CPU has SGX and cannot keep it from a guest\n");
		return -EOPNOTSUPP;
	}
	/* Both of the pair, or none. */
	if (!(c->exit & VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL) ||
	    !(c->entry & VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL)) {
		c->exit &= ~VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL;
		c->entry &= ~VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL;
	}

	ept = dune_rdmsr(MSR_IA32_VMX_EPT_VPID_CAP);
	if (!(ept & VMX_EPT_PAGE_WALK_4_BIT) || !(ept & VMX_EPTP_WB_BIT) ||
	    !(ept & VMX_EPT_INVEPT_BIT) || !(ept & VMX_EPT_EXTENT_CONTEXT_BIT) ||
	    !(ept & VMX_EPT_EXTENT_GLOBAL_BIT) || !(ept & VMX_EPT_AD_BIT)) {
		pr_err("dune: this CPU's EPT lacks 4 levels, write-back, INVEPT, or accessed and dirty bits (IA32_VMX_EPT_VPID_CAP is %#llx)\n",
		       ept);
		return -EOPNOTSUPP;
	}
	if (!enable_vpid)
		c->cpu2 &= ~SECONDARY_EXEC_ENABLE_VPID;
	c->vpid = c->cpu2 & SECONDARY_EXEC_ENABLE_VPID;
	/* iTLB multihit: an executable large page in a guest may hang the machine. */
	if (large_pages > 1 || (large_pages && !boot_cpu_has_bug(X86_BUG_ITLB_MULTIHIT))) {
		c->features |= ept & VMX_EPT_2MB_PAGE_BIT ? DUNE_FEATURE_LARGE_2M : 0;
		c->features |= ept & VMX_EPT_1GB_PAGE_BIT ? DUNE_FEATURE_LARGE_1G : 0;
	}
	if (enable_pml && (c->cpu2 & SECONDARY_EXEC_ENABLE_PML))
		c->features |= DUNE_FEATURE_PML;
	c->cpu2 &= ~SECONDARY_EXEC_ENABLE_PML;	/* per VM */
	return 0;
}

static void probe_guest_bits(void)
{
	struct dune_vmx_caps *c = &dune_caps;
	static const struct {
		int feature;
		u64 cr4;
	} optional[] = {
		{ X86_FEATURE_FSGSBASE, X86_CR4_FSGSBASE },
		{ X86_FEATURE_PCID, X86_CR4_PCIDE },
		{ X86_FEATURE_XSAVE, X86_CR4_OSXSAVE },
		{ X86_FEATURE_SMEP, X86_CR4_SMEP },
		{ X86_FEATURE_SMAP, X86_CR4_SMAP },
		{ X86_FEATURE_UMIP, X86_CR4_UMIP },
	};
	int i;

	c->cr0_fixed0 = dune_rdmsr(MSR_IA32_VMX_CR0_FIXED0);
	c->cr0_fixed1 = dune_rdmsr(MSR_IA32_VMX_CR0_FIXED1);
	c->cr4_fixed0 = dune_rdmsr(MSR_IA32_VMX_CR4_FIXED0);
	c->cr4_fixed1 = dune_rdmsr(MSR_IA32_VMX_CR4_FIXED1);
	c->cr4_guest = X86_CR4_PAE | X86_CR4_PSE | X86_CR4_PGE | X86_CR4_DE | X86_CR4_TSD |
		       X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
	for (i = 0; i < ARRAY_SIZE(optional); i++)
		if (boot_cpu_has(optional[i].feature))
			c->cr4_guest |= optional[i].cr4;
	c->cr4_guest &= c->cr4_fixed1;
	/* Not PKRU, CET and AMX: the kernel switches those otherwise. */
	if (boot_cpu_has(X86_FEATURE_XSAVE))
		c->xcr0 = xgetbv(0) & (XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM | XFEATURE_MASK_AVX512);
	c->xsave_bytes = dune_xsave_bytes(c->xcr0);
	c->gpa_bits = min_t(u32, EPT_BITS, boot_cpu_data.x86_phys_bits);
}

/* A flush at entry takes away what was in the L1 data cache, not what a sibling thread puts there meanwhile. */
static int check_smt(void)
{
	if (!boot_cpu_has_bug(X86_BUG_L1TF) || !sched_smt_active() || allow_l1tf)
		return 0;
	pr_err_ratelimited("dune: this CPU has the L1TF bug and SMT is on: boot with nosmt, or write off to /sys/devices/system/cpu/smt/control, or load with allow_l1tf=1 if every user of dune may read what the sibling thread has in the L1 data cache\n");
	return -EPERM;
}

/* Whether this machine will do; says what is missing otherwise. */
int dune_vmx_probe(void)
{
	u64 basic, lock = 0;
	int r;

	if (boot_cpu_data.x86_vendor != X86_VENDOR_INTEL || !(cpuid_ecx(1) & BIT(5))) {
		pr_err("dune: this CPU has no VT-x (or a hypervisor hides it: enable nested virtualization)\n");
		return -ENODEV;
	}
	if (!boot_cpu_has(X86_FEATURE_VMX)) {
		lock = dune_rdmsr(MSR_IA32_FEAT_CTL);
		pr_err("dune: VT-x is disabled by the firmware (IA32_FEATURE_CONTROL is %#llx): enable it in the BIOS setup\n",
		       lock);
		return -EACCES;
	}
#ifdef X86_FEATURE_FRED
	if (cpu_feature_enabled(X86_FEATURE_FRED)) {
		pr_err("dune: cannot work with FRED event delivery: boot with fred=off\n");
		return -EOPNOTSUPP;
	}
#endif
	basic = dune_rdmsr(MSR_IA32_VMX_BASIC);
	dune_caps.revision = basic & 0x7fffffff;
	/* Region size, 64-bit addresses, write-back, the "true" capability MSRs (SDM 3D, A.1). */
	if ((basic >> 32 & 0x1fff) > PAGE_SIZE || (basic & BIT_ULL(48)) ||
	    (basic >> 50 & 15) != 6 || !(basic & BIT_ULL(55))) {
		pr_err("dune: unsuitable VMX (IA32_VMX_BASIC is %#llx)\n", basic);
		return -EOPNOTSUPP;
	}
	r = probe_controls();
	if (r)
		return r;
	if (boot_cpu_has_bug(X86_BUG_L1TF)) {
		dune_caps.flush_l1d = boot_cpu_has(X86_FEATURE_FLUSH_L1D);
		if (!dune_caps.flush_l1d && !allow_l1tf) {
			pr_err("dune: this CPU has the L1TF bug and cannot flush its L1 data cache: update the microcode, or load with allow_l1tf=1 if every user of dune may read all memory\n");
			return -EPERM;
		}
		r = check_smt();
		if (r)
			return r;
		if (sched_smt_active())
			pr_warn("dune: this CPU has the L1TF bug and SMT is on: every user of dune can read what the sibling thread has in the L1 data cache\n");
	}
	probe_guest_bits();
	dune_fpu_probe();
	return 0;
}

static int vmxon(u64 pa)
{
	asm goto("1: vmxon %0\n\t"
		 "jna %l[failed]\n\t"
		 _ASM_EXTABLE(1b, %l[failed])
		 : : "m" (pa) : "memory", "cc" : failed);
	return 0;
failed:
	return -EIO;
}

/* Interrupts off: kvm_intel of 6.1 turns VMX on in one, between any two of these lines. */
static int cpu_on_irqs_off(void)
{
	struct page *region = this_cpu_read(vmxon_region);
	int r;

	if (READ_ONCE(rebooting))
		return -ESHUTDOWN;
	if (__read_cr4() & X86_CR4_VMXE)
		return -EBUSY;
	intel_pt_handle_vmx(1);
	cr4_set_bits(X86_CR4_VMXE);
	*(u32 *)page_address(region) = dune_caps.revision;
	r = vmxon(page_to_phys(region));
	if (r) {
		cr4_clear_bits(X86_CR4_VMXE);
		intel_pt_handle_vmx(0);
		return r;
	}
	vmx_invept(VMX_INVEPT_GLOBAL, 0);
	dune_enter_cpu_init();
	this_cpu_write(vmx_on, true);
	return 0;
}

static int cpu_on(void)
{
	unsigned long flags;
	int r;

	local_irq_save(flags);
	r = cpu_on_irqs_off();
	local_irq_restore(flags);
	return r;
}

static void cpu_off(void)
{
	unsigned long flags;

	local_irq_save(flags);
	if (this_cpu_read(vmx_on)) {
		dune_vmcs_clear_cpu();
		this_cpu_write(vmx_on, false);
		asm volatile("vmxoff" : : : "cc", "memory");
		cr4_clear_bits(X86_CR4_VMXE);
		intel_pt_handle_vmx(0);
	}
	local_irq_restore(flags);
}

static int cpu_starting(unsigned int cpu)
{
	int r = cpu_on();

	if (r == -EBUSY)
		pr_err_ratelimited("dune: CPU %u is in VMX operation already: a hypervisor (kvm_intel) has VMs, or keeps it on; end its VMs, or unload it\n",
		       cpu);
	else if (r)
		pr_err_ratelimited("dune: VMX cannot be turned on on CPU %u (error %d)\n", cpu, r);
	return r;
}

static int cpu_stopping(unsigned int cpu)
{
	cpu_off();
	return 0;
}

/* One more VM: VMX is on, on every CPU, until dune_vmx_put. */
int dune_vmx_get(void)
{
	/* SMT may have come on since the module was loaded. */
	int r = check_smt();

	if (r)
		return r;
	mutex_lock(&users_lock);
	if (!users) {
		r = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "x86/dune:online",
				      cpu_starting, cpu_stopping);
		hotplug_state = r;
	}
	if (r >= 0) {
		users++;
		r = 0;
	}
	mutex_unlock(&users_lock);
	return r;
}

void dune_vmx_put(void)
{
	mutex_lock(&users_lock);
	if (!--users)
		cpuhp_remove_state(hotplug_state);
	mutex_unlock(&users_lock);
}

/* Suspend: the other CPUs are unplugged by then, and user space is frozen. */
static bool suspended;

static int dune_suspend(DUNE_SYSCORE_ARG)
{
	suspended = dune_vmx_on();
	cpu_off();
	return 0;
}

static void dune_resume(DUNE_SYSCORE_ARG)
{
	if (suspended && cpu_on())
		pr_err("dune: VMX did not come back after suspend; VMs will wait\n");
}

static
#ifdef DUNE_HAVE_SYSCORE_DATA
const
#endif
struct syscore_ops syscore_ops = {
	.suspend = dune_suspend,
	.resume = dune_resume,
};
#ifdef DUNE_HAVE_SYSCORE_DATA
static struct syscore syscore = { .ops = &syscore_ops };
#endif

static void reboot_off(void *unused)
{
	cpu_off();
}

/* In VMX operation a CPU ignores INIT, which a warm reboot needs: it goes off, for good. */
static int dune_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	WRITE_ONCE(rebooting, true);
	on_each_cpu(reboot_off, NULL, 1);
	return NOTIFY_OK;
}

static struct notifier_block reboot_notifier = { .notifier_call = dune_reboot };

static void free_regions(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		if (per_cpu(vmxon_region, cpu))
			__free_page(per_cpu(vmxon_region, cpu));
}

int dune_vmx_init(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct page *page = alloc_pages_node(cpu_to_node(cpu), GFP_KERNEL | __GFP_ZERO, 0);

		per_cpu(vmxon_region, cpu) = page;
		if (!page) {
			free_regions();
			return -ENOMEM;
		}
		dune_vmcs_cpu_init(cpu);
	}
#ifdef DUNE_HAVE_SYSCORE_DATA
	register_syscore(&syscore);
#else
	register_syscore_ops(&syscore_ops);
#endif
	register_reboot_notifier(&reboot_notifier);
	return 0;
}

/* Only without VMs, so VMX is off. */
void dune_vmx_exit(void)
{
	unregister_reboot_notifier(&reboot_notifier);
#ifdef DUNE_HAVE_SYSCORE_DATA
	unregister_syscore(&syscore);
#else
	unregister_syscore_ops(&syscore_ops);
#endif
	free_regions();
}
