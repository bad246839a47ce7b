/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * malloc, free and the others of the C library, which may not be called while the world is stopped:
 * a thread may have been stopped with one of their locks held, and the collector would wait for it
 * for ever.  Here such a call is noticed each time, not only when a thread really holds the lock. */
#define _GNU_SOURCE
#include "stress_graph.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* The names under which glibc offers its own to those who replace them. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

static void check(void)
{
    static const char text[] = "stress: check failed: malloc or free with the world stopped\n";
    if (__builtin_expect(!wl_stops_world, 1))
        return;
    wl_stops_world = false;
    if (write(STDERR_FILENO, text, sizeof text - 1) != sizeof text - 1)
        _exit(4);
    _exit(1);
}

void *malloc(size_t bytes)
{
    check();
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    check();
    return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes)
{
    check();
    return __libc_realloc(old, bytes);
}

void free(void *p)
{
    check();
    __libc_free(p);
}

int posix_memalign(void **result, size_t alignment, size_t bytes)
{
    check();
    void *p = __libc_memalign(alignment, bytes);
    if (p == NULL)
        return ENOMEM;
    *result = p;
    return 0;
}
