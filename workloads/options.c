/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Command lines: `--name value`, `--name=value`, `--flag`; no abbreviations, no positional
 * arguments.  Written out rather than getopt_long, so that the table of options also gives the
 * ranges, the help text and one wording for all complaints.
 */
#include "harness_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool wl_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false; /* strtoull would take blanks and signs */
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || n < min || n > max)
        return false;
    *out = n;
    return true;
}

static void help_option(const char *name, const char *placeholder, const char *help)
{
    char left[40];
    snprintf(left, sizeof left, "--%s%s%s", name, placeholder != NULL ? " " : "",
             placeholder != NULL ? placeholder : "");
    printf("  %-22s %s", left, help);
}

static WL_NORETURN void help(const struct wl_workload *w)
{
    printf("%s: %s\n\nUsage: %s [OPTIONS]\n\nOptions:\n", w->name, w->summary, w->name);
    for (size_t i = 0; i < w->option_count; i++) {
        const struct wl_option *o = &w->options[i];
        help_option(o->name, o->placeholder, o->help);
        if (o->kind == WL_U64)
            printf(" [%" PRIu64 "]", *(uint64_t *)o->value);
        else if (o->kind == WL_CHOICE)
            printf(" [%s]", o->choices[*(unsigned *)o->value]);
        putchar('\n');
    }
    help_option("scale", "F", w->scale_help);
    puts(" (0 < F <= 1) [1]");
    help_option("json", NULL, "print one line of JSON at the end, nothing else\n");
    help_option("spoil", NULL, "corrupt one object before the last check: must exit with 1\n");
    help_option("help", NULL, "print this text\n");
    puts("\nThe collector's own variables apply: GC_ENABLE_INCREMENTAL, GC_PAUSE_TIME_TARGET,\n"
         "GC_MARKERS (2 or more starts parallel marking), GC_PRINT_STATS, ...\n"
         "Exit code: 0 checked, 1 a check failed, 2 bad arguments, 3 refused by the machine.");
    exit(fflush(stdout) == 0 ? 0 : 3);
}

static double parse_scale(const char *text)
{
    char *end;
    double f = strtod(text, &end);
    if (end == text || *end != '\0' || !(f > 0.0 && f <= 1.0))
        wl_usage("--scale needs a number above 0 and up to 1, not '%s'", text);
    return f;
}

static void set(const struct wl_option *o, const char *text)
{
    switch (o->kind) {
    case WL_U64:
        if (!wl_parse_u64(text, o->min, o->max, o->value))
            wl_usage("--%s needs a whole number from %" PRIu64 " to %" PRIu64 ", not '%s'",
                     o->name, o->min, o->max, text);
        return;
    case WL_CHOICE:
        for (unsigned i = 0; o->choices[i] != NULL; i++)
            if (strcmp(o->choices[i], text) == 0) {
                *(unsigned *)o->value = i;
                return;
            }
        wl_usage("--%s needs %s, not '%s'", o->name, o->placeholder, text);
    case WL_TEXT:
        if (*text == '\0')
            wl_usage("--%s needs a text that is not empty", o->name);
        *(const char **)o->value = text;
        return;
    case WL_FLAG:
        *(bool *)o->value = true;
    }
}

static const struct wl_option *find(const struct wl_workload *w, const char *name, size_t len)
{
    for (size_t i = 0; i < w->option_count; i++)
        if (strlen(w->options[i].name) == len && strncmp(w->options[i].name, name, len) == 0)
            return &w->options[i];
    return NULL;
}

void wl_options_parse(int argc, char **argv, const struct wl_workload *w, struct wl_settings *out)
{
    const char *scale = NULL;
    const struct wl_option common[] = {
        {.name = "json", .kind = WL_FLAG, .value = &out->json},
        {.name = "spoil", .kind = WL_FLAG, .value = &out->spoil},
        {.name = "scale", .kind = WL_TEXT, .value = &scale},
    };
    const struct wl_workload shared = {.options = common, .option_count = WL_COUNT(common)};

    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (strcmp(arg, "--help") == 0)
            help(w);
        if (strncmp(arg, "--", 2) != 0)
            wl_usage("unexpected argument '%s': options begin with --", arg);
        const char *name = arg + 2, *value = strchr(name, '=');
        size_t len = value != NULL ? (size_t)(value - name) : strlen(name);
        const struct wl_option *o = find(&shared, name, len);
        if (o == NULL)
            o = find(w, name, len);
        if (o == NULL)
            wl_usage("unknown option '%.*s'", (int)len + 2, arg);
        if (o->kind == WL_FLAG) {
            if (value != NULL)
                wl_usage("--%s takes no value", o->name);
            set(o, "");
            continue;
        }
        if (value != NULL)
            value++;
        else if (++i < argc)
            value = argv[i];
        else
            wl_usage("--%s needs a value", o->name);
        set(o, value);
    }
    if (scale != NULL)
        out->scale = parse_scale(scale);
}
