// SPDX-License-Identifier: GPL-2.0
/*
 * A kernel module that does what it is told to do wrong: the tests of `cargo xtask guest-test`
 * load it to see that each fault is noticed.
 */
#include <linux/module.h>

static char *fault = "none";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "none, refuse, warn, oops or late");

static int __init faulty_init(void)
{
	if (!strcmp(fault, "refuse"))
		return -EIO;
	WARN(!strcmp(fault, "warn"), "as told");
	if (!strcmp(fault, "oops"))
		*(int __force *)8 = 1;
	return 0;
}

static void __exit faulty_exit(void)
{
	WARN(!strcmp(fault, "late"), "as told");
}

module_init(faulty_init);
module_exit(faulty_exit);
MODULE_DESCRIPTION("Does what it is told to do wrong");
MODULE_LICENSE("GPL");
