/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Does in a child what the argument names, and prints how the child ended. */
#include <errno.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void handled(int signal, siginfo_t *info, void *context) {
    char line[80];
    int len = snprintf(line, sizeof line, "handled %d code %d at 0x%lx\n", signal, info->si_code,
                       (unsigned long)info->si_addr);
    write(1, line, len);
    _exit(0);
}

static void interrupted(int signal) { _exit(7); }

static void handle(int signal) {
    struct sigaction action = {.sa_sigaction = handled, .sa_flags = SA_SIGINFO};
    sigaction(signal, &action, NULL);
}

static int overflow(volatile int depth) {
    volatile char frame[4096];
    frame[0] = depth;
    return overflow(depth + 1) + frame[0];
}

static void *overflowing(void *unused) { return (void *)(intptr_t)overflow(0); }

static void spin(void) {
    for (volatile unsigned long i = 0;; i++) {
    }
}

/* Everything that can be had, and then a store to what could not. */
static void exhaust(void) {
    unsigned long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    if (!statm || fscanf(statm, "%lu", &pages) != 1) _exit(1);
    fclose(statm);
    struct rlimit limit = {pages * 4096 + (64 << 20), RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &limit)) _exit(2);
    size_t got = 0;
    for (;;) {
        char *block = malloc(1 << 20);
        if (!block) break;
        memset(block, 1, 1 << 20);
        got += 1 << 20;
    }
    if (errno != ENOMEM || got < (32 << 20) || got > (64 << 20)) _exit(3);
    /* Smaller ones may do still; the stack may grow, as long as the limit allows. */
    _exit(5);
}

static void act(const char *way) {
    volatile int zero = 0;
    pthread_t thread;
    if (!strcmp(way, "null")) *(volatile int *)(intptr_t)zero = 1;
    if (!strcmp(way, "null-handled")) handle(SIGSEGV), *(volatile int *)(intptr_t)zero = 1;
    if (!strcmp(way, "wild-handled")) handle(SIGSEGV), *(volatile int *)0x123456789000 = 1;
    if (!strcmp(way, "overflow")) overflow(0);
    if (!strcmp(way, "overflow-thread")) {
        pthread_create(&thread, NULL, overflowing, NULL);
        pthread_join(thread, NULL);
    }
    if (!strcmp(way, "abort")) abort();
    if (!strcmp(way, "divide")) zero = 100 / zero;
    if (!strcmp(way, "illegal")) __asm__ volatile("ud2");
    if (!strcmp(way, "trap")) __asm__ volatile("int3");
    if (!strcmp(way, "memory")) exhaust();
    if (!strcmp(way, "ctrl-c-handled")) signal(SIGINT, interrupted);
    if (strstr(way, "spinning")) write(1, "ready\n", 6), spin();
    write(1, "ready\n", 6);
    for (;;) pause();
}

static void ended(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) != child) exit(1);
    if (WIFEXITED(status)) printf("exit %d\n", WEXITSTATUS(status));
    else printf("signal %d core %d\n", WTERMSIG(status), !!WCOREDUMP(status));
}

int main(int argc, char **argv) {
    const char *way = argc > 1 ? argv[1] : "";
    char directory[] = "/tmp/crash.XXXXXX", line[64];
    struct rlimit core = {1 << 20, RLIM_INFINITY}, no_core = {0, RLIM_INFINITY};
    if (!mkdtemp(directory) || chdir(directory)) return 1;
    fflush(NULL);
    /* Whoever runs in a shell's background may ignore what the terminal sends. */
    signal(SIGINT, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
    setrlimit(RLIMIT_CORE, !strncmp(way, "null", 4) ? &core : &no_core);

    int terminal;
    pid_t child = forkpty(&terminal, NULL, NULL, NULL);
    if (child == 0) act(way);
    if (child < 0) return 1;
    size_t len = 0;
    if (strstr(way, "ctrl") || strstr(way, "kill")) {
        while (len < 5 && read(terminal, line + len, 1) == 1) len++;
        struct timespec soon = {0, 20000000};
        nanosleep(&soon, NULL);
    }
    if (strstr(way, "ctrl-c")) write(terminal, "\003", 1);
    if (strstr(way, "ctrl-backslash")) write(terminal, "\034", 1);
    if (strstr(way, "kill")) kill(child, SIGKILL);
    if (strstr(way, "-handled") && !strstr(way, "ctrl"))
        while (read(terminal, line, 1) == 1) putchar(line[0]);
    ended(child);

    char command[64];
    snprintf(command, sizeof command, "rm -r %s", directory);
    return system(command) ? 1 : 0;
}
