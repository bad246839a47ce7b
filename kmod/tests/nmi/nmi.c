// SPDX-License-Identifier: GPL-2.0-only
/*
 * For the selftests: sends an NMI to a CPU and waits until it was handled.
 *
 *   echo CPU > /sys/module/dune_nmi/parameters/send	ETIMEDOUT if it got lost
 *   cat /sys/module/dune_nmi/parameters/handled	how many were
 */
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <asm/apic.h>
#include <asm/nmi.h>

static atomic_t pending, handled;

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	if (atomic_dec_if_positive(&pending) < 0)
		return NMI_DONE;
	atomic_inc(&handled);
	return NMI_HANDLED;
}

static int send(const char *text, const struct kernel_param *kp)
{
	unsigned int cpu, i;
	int r = kstrtouint(text, 0, &cpu);

	if (r)
		return r;
	cpus_read_lock();
	if (cpu < nr_cpu_ids && cpu_online(cpu)) {
		atomic_set(&pending, 1);
		apic->send_IPI(cpu, NMI_VECTOR);
		for (i = 0; i < 100000 && atomic_read(&pending); i++)
			udelay(10);
		/* The next one would be taken for this one: it is not sent any more. */
		r = atomic_xchg(&pending, 0) ? -ETIMEDOUT : 0;
	} else {
		r = -ENXIO;
	}
	cpus_read_unlock();
	return r;
}

static int get_handled(char *buffer, const struct kernel_param *kp)
{
	return sprintf(buffer, "%d\n", atomic_read(&handled));
}

static const struct kernel_param_ops send_ops = { .set = send };
static const struct kernel_param_ops handled_ops = { .get = get_handled };
module_param_cb(send, &send_ops, NULL, 0200);
module_param_cb(handled, &handled_ops, NULL, 0400);

static int __init nmi_init(void)
{
	return register_nmi_handler(NMI_LOCAL, on_nmi, 0, "dune_nmi");
}

static void __exit nmi_exit(void)
{
	unregister_nmi_handler(NMI_LOCAL, "dune_nmi");
}

module_init(nmi_init);
module_exit(nmi_exit);
MODULE_DESCRIPTION("Sends NMIs, for the selftests of dune");
MODULE_AUTHOR("The Barchan authors");
MODULE_LICENSE("GPL");
