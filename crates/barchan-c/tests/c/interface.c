/*
 * Exercises every function of barchan.h on the tracker named by argv[1].
 * Exits 0 if all is right, 77 if the tracker is not available here (saying why), else 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "barchan.h"

#define PAGE 4096u
#define PAGES 200u
#define WORDS ((PAGES + 63) / 64)

static int failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__,            \
                    #condition, barchan_last_error());                                             \
            failures++;                                                                            \
        }                                                                                          \
    } while (0)

static int bit(const uint64_t *bits, unsigned page) { return bits[page / 64] >> (page % 64) & 1; }

static unsigned count(const uint64_t *bits) {
    unsigned n = 0;
    for (unsigned page = 0; page < PAGES; page++) n += bit(bits, page);
    return n;
}

static barchan_source parse(const char *name) {
    for (int s = BARCHAN_SOURCE_AUTO; s <= BARCHAN_SOURCE_GUEST_PML; s++)
        if (strcmp(name, barchan_source_name((barchan_source)s)) == 0) return (barchan_source)s;
    fprintf(stderr, "no such tracker: %s\n", name);
    exit(2);
}

static void bad_arguments(barchan_tracker *t, barchan_region *r, char *p) {
    uint64_t bits[WORDS] = {0};
    barchan_region *other = (barchan_region *)1;
    CHECK(barchan_tracker_open((barchan_source)99, &t) == BARCHAN_ERR_INVALID && t == NULL);
    CHECK(strstr(barchan_last_error(), "99") != NULL);
    CHECK(barchan_tracker_open(BARCHAN_SOURCE_AUTO, NULL) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_track(NULL, p, PAGE, &other) == BARCHAN_ERR_INVALID && other == NULL);
    CHECK(barchan_region_arm(NULL, p, PAGE) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_arm(r, p + 1, PAGE) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_arm(r, p, (size_t)0 - PAGE) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_arm_among(NULL, p, PAGE, bits, WORDS) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_arm_among(r, p, PAGES * PAGE, bits, WORDS - 1) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_arm_among(r, p, PAGES * PAGE, NULL, WORDS) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_disarm(r, p + PAGES * PAGE, PAGE) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_peek(r, p, PAGES * PAGE, bits, WORDS - 1) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_peek(r, p, PAGES * PAGE, NULL, WORDS) == BARCHAN_ERR_INVALID);
    CHECK(barchan_region_resize(r, p, 0) == BARCHAN_ERR_INVALID);
    CHECK(barchan_tracker_stats(NULL, NULL) == BARCHAN_ERR_INVALID);
    barchan_region_untrack(NULL);
    barchan_tracker_close(NULL);
}

int main(int argc, char **argv) {
    const barchan_source source = parse(argc > 1 ? argv[1] : "auto");
    const int exact = source != BARCHAN_SOURCE_ALL_DIRTY;
    uint64_t bits[WORDS];
    barchan_tracker *t = NULL;
    barchan_region *r = NULL, *second = NULL;
    const size_t len = PAGES * PAGE;

    CHECK(barchan_version() == ((BARCHAN_MAJOR << 16) | (BARCHAN_MINOR << 8) | BARCHAN_PATCH));
    CHECK(barchan_last_error()[0] == '\0');
    const barchan_status opened = barchan_tracker_open(source, &t);
    if (opened == BARCHAN_ERR_UNSUPPORTED || opened == BARCHAN_ERR_DENIED) {
        printf("skipped: %s\n", barchan_last_error());
        return 77;
    }
    CHECK(opened == BARCHAN_OK);
    if (failures) return 1;
    CHECK(source == BARCHAN_SOURCE_AUTO || barchan_tracker_source(t) == source);

    /* Twice the room, so that the region can grow. */
    char *p = mmap(NULL, 2 * len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    CHECK(barchan_region_track(t, p, len, &r) == BARCHAN_OK);
    CHECK(barchan_region_track(t, p + PAGE, PAGE, &second) == BARCHAN_ERR_INVALID);
    CHECK(strstr(barchan_last_error(), "overlap") != NULL);
    bad_arguments(t, r, p);

    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK && count(bits) == PAGES);
    memset(p, 1, len);
    CHECK(barchan_region_arm(r, p, len) == BARCHAN_OK);
    p[7 * PAGE] = 2;
    p[130 * PAGE + 5] = 2;
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 7) && bit(bits, 130) && (!exact || count(bits) == 2));
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_collect_and_reset_stopped(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 7) && bit(bits, 130) && (!exact || count(bits) == 2));
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_collect_and_reset(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(!exact || count(bits) == 0);

    /* The kernel's own writes, and contents that are dropped, are as the library says. */
    const ssize_t written = getrandom(p + 20 * PAGE, 8, 0);
    const int fails = written < 0 && errno == EFAULT;
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK);
    if (barchan_tracker_kernel_writes(t) == BARCHAN_KERNEL_WRITES_TRACKED)
        CHECK(written == 8 && bit(bits, 20));
    else
        CHECK(fails && bit(bits, 20) == !exact);
    CHECK(barchan_tracker_kernel_writes(NULL) == BARCHAN_KERNEL_WRITES_EFAULT);
    CHECK(madvise(p + 21 * PAGE, PAGE, MADV_DONTNEED) == 0);
    if (!barchan_source_sees_discards(barchan_tracker_source(t)))
        CHECK(barchan_region_remapped(r, p + 21 * PAGE, PAGE) == BARCHAN_OK);
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 21));
    CHECK(!barchan_source_sees_discards(BARCHAN_SOURCE_AUTO));
    CHECK(barchan_region_arm(r, p, len) == BARCHAN_OK);

    /* Disarmed pages are dirty until armed again. */
    CHECK(barchan_region_disarm(r, p + 10 * PAGE, 5 * PAGE) == BARCHAN_OK);
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 10) && bit(bits, 14) && (!exact || count(bits) == 5));

    /* Some of them are armed, and no others. */
    memset(bits, 0, sizeof bits);
    bits[0] = 1 << 11 | 1 << 13;
    CHECK(barchan_region_arm_among(r, p, len, bits, WORDS) == BARCHAN_OK);
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 10) && bit(bits, 12) && bit(bits, 14) && (!exact || count(bits) == 3));
    CHECK(barchan_region_disarm(r, p + 10 * PAGE, 5 * PAGE) == BARCHAN_OK);

    /* Growth keeps what is known. */
    CHECK(barchan_region_resize(r, p, len + PAGE) == BARCHAN_OK);
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_peek(r, p + PAGE, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 9) && bit(bits, PAGES - 1) && (!exact || count(bits) == 6));
    CHECK(barchan_region_resize(r, p, len) == BARCHAN_OK);

    /* A replaced mapping is dirty. */
    CHECK(barchan_region_arm(r, p, len) == BARCHAN_OK);
    CHECK(mmap(p + 20 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    CHECK(barchan_region_remapped(r, p + 20 * PAGE, 2 * PAGE) == BARCHAN_OK);
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_collect_and_reset_stopped(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 20) && bit(bits, 21) && (!exact || count(bits) == 2));

    /* In a child everything is dirty, until armed there; the parent notices nothing. */
    p[3 * PAGE] = 9;
    const pid_t child = fork();
    if (child == 0) {
        memset(bits, 0, sizeof bits);
        CHECK(barchan_region_peek(r, p, len, bits, WORDS) == BARCHAN_OK && count(bits) == PAGES);
        CHECK(barchan_region_arm(r, p, len) == BARCHAN_OK);
        p[4 * PAGE] = 9;
        memset(bits, 0, sizeof bits);
        CHECK(barchan_region_collect_and_reset_stopped(r, p, len, bits, WORDS) == BARCHAN_OK);
        CHECK(bit(bits, 4) && (!exact || count(bits) == 1));
        _exit(failures != 0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    memset(bits, 0, sizeof bits);
    CHECK(barchan_region_collect_and_reset_stopped(r, p, len, bits, WORDS) == BARCHAN_OK);
    CHECK(bit(bits, 3) && (!exact || count(bits) == 1));

    barchan_stats stats = {.size_bytes = sizeof stats};
    CHECK(barchan_tracker_stats(t, &stats) == BARCHAN_OK);
    CHECK(stats.size_bytes == sizeof stats && stats.scans >= 7 && stats.pages_reported >= 5);
    stats.size_bytes = 3;
    CHECK(barchan_tracker_stats(t, &stats) == BARCHAN_ERR_INVALID);

    barchan_tracker_close(t); /* refused: a region is left */
    CHECK(strstr(barchan_last_error(), "region") != NULL);
    CHECK(barchan_tracker_source(t) != BARCHAN_SOURCE_AUTO);
    barchan_region_untrack(r);
    memset(p, 3, len);
    barchan_tracker_close(t);
    munmap(p, 2 * len);
    printf("%s: %s\n", barchan_source_name(source), failures ? "FAILED" : "ok");
    return failures != 0;
}
