/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Writes a seeded XML document of an exact size, for `xml --files`. */
#include "xml_text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "xmlgen: write a well-formed XML document of an exact size\n\n"
    "Usage: xmlgen --bytes N [--seed S] [--output FILE]\n\n"
    "Options:\n"
    "  --bytes N      size of the document, 256 or more\n"
    "  --seed S       the same seed gives the same document [1]\n"
    "  --output FILE  where to write it [standard output]\n"
    "  --help         print this text\n\n"
    "Exit code: 0 written, 2 bad arguments, 3 writing failed.\n";

static void complain(int code, const char *what, const char *detail)
{
    fprintf(stderr, "xmlgen: %s%s%s\n", what, detail, code == 2 ? "\nTry --help." : "");
    exit(code);
}

static uint64_t number(const char *option, const char *text, uint64_t min)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || n < min) {
        fprintf(stderr, "xmlgen: %s needs a whole number from %llu on, not '%s'\nTry --help.\n",
                option, (unsigned long long)min, text);
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    const char *output = NULL;
    uint64_t bytes = 0, seed = 1, elements;

    for (int i = 1; i < argc; i++) {
        const char *option = argv[i];
        if (strcmp(option, "--help") == 0) {
            fputs(usage, stdout);
            return fflush(stdout) == 0 ? 0 : 3;
        }
        bool is_bytes = strcmp(option, "--bytes") == 0, is_seed = strcmp(option, "--seed") == 0;
        if (!is_bytes && !is_seed && strcmp(option, "--output") != 0)
            complain(2, "unknown option ", option);
        if (++i == argc)
            complain(2, option, " needs a value");
        if (is_bytes)
            bytes = number(option, argv[i], XML_TEXT_MIN_BYTES);
        else if (is_seed)
            seed = number(option, argv[i], 0);
        else
            output = argv[i];
    }
    if (bytes == 0)
        complain(2, "--bytes is missing", "");
    FILE *out = stdout;
    if (output != NULL && (out = fopen(output, "wb")) == NULL) {
        fprintf(stderr, "xmlgen: cannot write %s: %s\n", output, strerror(errno));
        return 3;
    }
    if (!xml_text_write(out, bytes, seed, &elements) || fclose(out) != 0) {
        fprintf(stderr, "xmlgen: writing %s: %s\n", output != NULL ? output : "standard output",
                strerror(errno));
        return 3;
    }
    return 0;
}
