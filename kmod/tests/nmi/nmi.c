// SPDX-License-Identifier: GPL-2.0-only
/*
 * For the selftests: sends an NMI to a CPU and waits until it was handled; waits
 * until RCU-tasks has seen every task.
 *
 *   echo CPU > /sys/module/dune_nmi/parameters/send	ETIMEDOUT if it got lost
 *   cat /sys/module/dune_nmi/parameters/handled	how many were
 *   echo SECONDS > /sys/module/dune_nmi/parameters/rcu_tasks	ETIMEDOUT: not in that time
 */
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
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

#ifdef CONFIG_TASKS_RCU
static struct rcu_head rcu_head;
static DECLARE_COMPLETION(seen_all);
static bool under_way;

static void on_seen_all(struct rcu_head *head)
{
	complete(&seen_all);
}

/* One at a time: the kernel has a lock around it. What came too late is taken up by the next call. */
static int rcu_tasks(const char *text, const struct kernel_param *kp)
{
	unsigned int seconds;
	int r = kstrtouint(text, 0, &seconds);

	if (r)
		return r;
	if (!under_way)
		call_rcu_tasks(&rcu_head, on_seen_all);
	under_way = !wait_for_completion_timeout(&seen_all, seconds * HZ);
	return under_way ? -ETIMEDOUT : 0;
}

static void wait_for_callbacks(void)
{
	rcu_barrier_tasks();
}
#else
static int rcu_tasks(const char *text, const struct kernel_param *kp)
{
	return -EOPNOTSUPP;
}

static void wait_for_callbacks(void)
{
}
#endif

static const struct kernel_param_ops send_ops = { .set = send };
static const struct kernel_param_ops handled_ops = { .get = get_handled };
module_param_cb(send, &send_ops, NULL, 0200);
static const struct kernel_param_ops rcu_tasks_ops = { .set = rcu_tasks };
module_param_cb(handled, &handled_ops, NULL, 0400);
module_param_cb(rcu_tasks, &rcu_tasks_ops, NULL, 0200);

static int __init nmi_init(void)
{
	return register_nmi_handler(NMI_LOCAL, on_nmi, 0, "dune_nmi");
}

static void __exit nmi_exit(void)
{
	unregister_nmi_handler(NMI_LOCAL, "dune_nmi");
	wait_for_callbacks();
}

module_init(nmi_init);
module_exit(nmi_exit);
MODULE_DESCRIPTION("Sends NMIs and waits for RCU-tasks, for the selftests of dune");
MODULE_AUTHOR("The Barchan authors");
MODULE_LICENSE("GPL");
