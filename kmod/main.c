// SPDX-License-Identifier: GPL-2.0-only
/*
 * dune: an ordinary process in VMX non-root mode. The device, and loading.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "dune.h"

static int get_info(void __user *user)
{
	struct dune_info info = {
		.abi_version = DUNE_ABI_VERSION,
		.gpa_bits = dune_caps.gpa_bits,
		.features = dune_caps.features,
		.xcr0 = dune_caps.xcr0,
		.cr0 = DUNE_CR0_GUEST,
		.cr4 = dune_caps.cr4_guest,
		.efer = DUNE_EFER_GUEST,
		.xsave_bytes = dune_caps.xsave_bytes,
		.vpid = dune_caps.vpid,
	};

	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int call, unsigned long arg)
{
	struct dune_vm_config config;

	switch (call) {
	case DUNE_GET_INFO:
		return get_info((void __user *)arg);
	case DUNE_CREATE_VM:
		if (copy_from_user(&config, (void __user *)arg, sizeof(config)))
			return -EFAULT;
		return dune_vm_create(&config);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations device_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dune",
	.mode = 0600,	/* the udev rule opens it for a group */
	.fops = &device_fops,
};

static int __init dune_init(void)
{
	int r;

	r = dune_vmx_probe();
	if (r)
		return r;
	r = dune_vmcs_init();
	if (r)
		return r;
	r = dune_vmx_init();
	if (r)
		goto no_vmx;
	r = misc_register(&device);
	if (r)
		goto no_device;
	dune_stats_init();
	pr_info("dune: ABI %d, features %#llx, %u-bit guest-physical addresses\n",
		DUNE_ABI_VERSION, dune_caps.features, dune_caps.gpa_bits);
	return 0;
no_device:
	dune_vmx_exit();
no_vmx:
	dune_vmcs_exit();
	return r;
}

static void __exit dune_exit(void)
{
	dune_stats_exit();
	misc_deregister(&device);
	dune_vmx_exit();
	dune_vmcs_exit();
}

module_init(dune_init);
module_exit(dune_exit);
MODULE_DESCRIPTION("Runs ordinary processes in VMX non-root mode");
MODULE_AUTHOR("The Barchan authors");
MODULE_VERSION("0.1.0");
MODULE_LICENSE("GPL");
