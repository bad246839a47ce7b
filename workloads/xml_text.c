/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The document is a catalogue of records, each of 8 to some 40 elements with attributes, nested
 * up to six deep, with words, entities, CDATA, comments and characters of two and three bytes, as
 * data files have them; about half of the bytes are markup.  A comment at the end fills up to the
 * size asked for.
 */
#include "xml_text.h"

#include <string.h>

#define RECORD_CAPACITY 32768

/* The same generator as in harness.h, which this file does not include: it has no collector. */
static uint64_t draw(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ (x >> 32);
}

static unsigned below(uint64_t *state, unsigned bound)
{
    return (unsigned)(((draw(state) >> 32) * bound) >> 32);
}

struct text {
    uint64_t random, elements;
    size_t length;
    char bytes[RECORD_CAPACITY];
};

/* A record has at most some 12 kB: cutting at the capacity is a guard, not a path taken. */
static void put(struct text *t, const char *s)
{
    size_t n = strlen(s);
    if (n > sizeof t->bytes - t->length)
        n = sizeof t->bytes - t->length;
    memcpy(t->bytes + t->length, s, n);
    t->length += n;
}

static void put_number(struct text *t, uint64_t number)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)number);
    put(t, digits);
}

static void put_words(struct text *t, unsigned count)
{
    static const char *const words[] = {
        "barchan", "crescent", "dune",     "drift", "sand",      "ripple",     "wind",
        "erg",     "saltation", "slip",    "face",  "horn",      "migration",  "grain",
        "of",      "the",       "and",     "&amp;", "&lt;5&gt;", "caf\xc3\xa9", "\xc3\xa9rg",
        "\xe7\xa0\x82\xe4\xb8\x98", "windward", "lee", "&#8212;", "avalanche", "transverse", "a",
    };
    for (unsigned i = 0; i < count; i++) {
        if (i > 0)
            put(t, i % 12 == 0 ? "\n      " : " ");
        put(t, words[below(&t->random, sizeof words / sizeof words[0])]);
    }
}

static void indent(struct text *t, unsigned depth)
{
    static const char blanks[] = "                ";
    put(t, "\n");
    put(t, blanks + (sizeof blanks - 1 - 2 * depth));
}

static void open_element(struct text *t, unsigned depth, const char *name)
{
    indent(t, depth);
    put(t, "<");
    put(t, name);
    t->elements++;
}

static void close_element(struct text *t, const char *name)
{
    put(t, "</");
    put(t, name);
    put(t, ">");
}

static void put_leaf(struct text *t, unsigned depth)
{
    static const char *const names[] = {"name", "place", "note", "unit", "method", "observer"};
    const char *name = names[below(&t->random, 6)];
    open_element(t, depth, name);
    if (below(&t->random, 2) == 0) {
        put(t, " lang=\"");
        put(t, below(&t->random, 2) == 0 ? "en" : "fr-TD");
        put(t, "\"");
    }
    put(t, ">");
    if (below(&t->random, 16) == 0)
        put(t, "<![CDATA[1 < 2 & 3 > 2]]>");
    else
        put_words(t, 1 + below(&t->random, 14));
    close_element(t, name);
}

static void put_group(struct text *t, unsigned depth)
{
    open_element(t, depth, "group");
    put(t, " kind=\"");
    put_words(t, 1);
    put(t, "\" n=\"");
    put_number(t, below(&t->random, 100000));
    put(t, "\">");
    for (unsigned i = 1 + below(&t->random, 4); i > 0; i--)
        put_leaf(t, depth + 1);
    if (depth < 5 && below(&t->random, 2) == 0)
        put_group(t, depth + 1);
    indent(t, depth);
    close_element(t, "group");
}

static void put_record(struct text *t, uint64_t number)
{
    t->length = 0;
    open_element(t, 1, "record");
    put(t, " id=\"r");
    put_number(t, number);
    put(t, "\" class=\"");
    put_words(t, 2);
    put(t, "\">");
    if (below(&t->random, 8) == 0)
        put(t, "<!-- surveyed by hand -->");
    for (unsigned i = 1 + below(&t->random, 3); i > 0; i--)
        put_leaf(t, 2);
    open_element(t, 2, "size");
    put(t, " height=\"");
    put_number(t, below(&t->random, 40));
    put(t, "\" width=\"");
    put_number(t, below(&t->random, 900));
    put(t, "\"/>");
    for (unsigned i = 1 + below(&t->random, 3); i > 0; i--)
        put_group(t, 2);
    indent(t, 1);
    close_element(t, "record");
}

static bool fill(FILE *out, uint64_t bytes)
{
    static const char filling[64] = "padding padding padding padding padding padding padding padding";
    while (bytes > 0) {
        size_t n = bytes < sizeof filling - 1 ? (size_t)bytes : sizeof filling - 1;
        if (fwrite(filling, 1, n, out) != n)
            return false;
        bytes -= n;
    }
    return true;
}

bool xml_text_write(FILE *out, uint64_t bytes, uint64_t seed, uint64_t *elements)
{
    static const char head[] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                               "<!-- made by xmlgen -->\n<catalogue version=\"1\">";
    static const char foot[] = "</catalogue>\n", comment[] = "\n<!---->";
    uint64_t end = bytes - (sizeof foot - 1) - (sizeof comment - 1), at = sizeof head - 1;
    static struct text t;

    t.random = seed;
    *elements = 1;
    if (fputs(head, out) == EOF)
        return false;
    for (uint64_t number = 1;; number++) {
        t.elements = 0;
        put_record(&t, number);
        if (t.length > end - at)
            break;
        if (fwrite(t.bytes, 1, t.length, out) != t.length)
            return false;
        at += t.length;
        *elements += t.elements;
    }
    return fputs("\n<!--", out) != EOF && fill(out, end - at) && fputs("-->", out) != EOF &&
           fputs(foot, out) != EOF && fflush(out) == 0;
}
