// SPDX-License-Identifier: GPL-2.0-only
/*
 * The selftests of /dev/dune: dunetest [-v] [NAME ...]. Each test runs in a
 * process of its own with a time limit (DUNETEST_SECONDS); the last line says how many passed.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_SECONDS	"40"
#define EXIT_SKIPPED	77

static const struct test *const groups[] = {
	reject_tests, run_tests, host_tests, memory_tests, pressure_tests, signal_tests,
	pml_tests, smp_tests, event_tests, fuzz_tests, count_tests,
};

void fail(const char *file, int line, const char *what)
{
	printf("# %s:%d: %s\n", file, line, what);
	fflush(stdout);
	_exit(1);
}

void check_equal(const char *file, int line, const char *what, int64_t a, int64_t b)
{
	if (a == b)
		return;
	printf("# %s is %#llx, not %#llx\n", what, (long long)a, (long long)b);
	fail(file, line, what);
}

void check_fails(const char *file, int line, const char *what, long result, int expected)
{
	if (result == -1 && errno == expected)
		return;
	printf("# %ld, errno %d (%s), not %d (%s)\n", result, result < 0 ? errno : 0,
	       result < 0 ? strerror(errno) : "", expected, strerror(expected));
	fail(file, line, what);
}

void skip(const char *why)
{
	printf("skipped: %s\n", why);
	fflush(stdout);
	_exit(EXIT_SKIPPED);
}

enum outcome { PASSED, FAILED, SKIPPED };

static enum outcome run_one(const struct test *test)
{
	const char *limit = getenv("DUNETEST_SECONDS");
	int status = 0;
	pid_t child;

	fflush(stdout);
	child = fork();
	if (!child) {
		setpgid(0, 0);
		alarm(atoi(limit ?: LIMIT_SECONDS));
		test->run();
		fflush(stdout);
		_exit(0);
	}
	while (waitpid(child, &status, 0) < 0)
		;
	kill(-child, SIGKILL);
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
		printf("test %s ... ignored\n", test->name);
		return SKIPPED;
	}
	if (WIFSIGNALED(status))
		printf("# ended by signal %d\n", WTERMSIG(status));
	printf("test %s ... %s\n", test->name, status ? "FAILED" : "ok");
	return status ? FAILED : PASSED;
}

static bool wanted(const char *name, int count, char **names)
{
	int i;

	for (i = 0; i < count; i++)
		if (strstr(name, names[i]))
			return true;
	/* What only counts, loads the module, restarts the machine or has the kernel kill is asked for. */
	return !count && strncmp(name, "count_", 6) && strncmp(name, "load_", 5) &&
	       strncmp(name, "reboot_", 7) && strncmp(name, "oom_", 4);
}

int main(int argc, char **argv)
{
	int counts[3] = { 0 };
	const struct test *test;
	unsigned int i;

	for (i = 0; i < sizeof(groups) / sizeof(*groups); i++)
		for (test = groups[i]; test->name; test++)
			if (wanted(test->name, argc - 1, argv + 1))
				counts[run_one(test)]++;
	printf("test result: %s. %d passed; %d failed; %d ignored\n",
	       counts[FAILED] ? "FAILED" : "ok", counts[PASSED], counts[FAILED], counts[SKIPPED]);
	return counts[FAILED] != 0;
}
