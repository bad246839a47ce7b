/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Nodes, attributes and the table of names are objects that may hold pointers; names, attribute
 * values and text are pointer-free.  Expat's own memory (its buffers, its stack of open elements)
 * stays in malloc: the file is read into expat's buffer, and read(2) into the GC heap fails with
 * EFAULT where libgc write-protects it by mprotect.
 *
 * The checksum is computed from what expat hands over, not from what was stored, so that the walk
 * is an independent reading.
 */
#include "xml_dom.h"

#include <errno.h>
#include <expat.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES 65536
#define NAME_BUCKETS 1024

struct name {
    struct name *next;
    uint64_t bytes;
    char *text;
};

/* Lives on the stack of xml_dom_parse, where the collector sees it. */
struct builder {
    struct name **names;
    struct xml_node *root, *open;
    char *text; /* malloc: the run of text being gathered */
    size_t text_bytes, text_capacity;
    struct xml_sums sums;
};

enum { OPEN_MARK = 1, ATTRIBUTE_MARK, TEXT_MARK, CLOSE_MARK };

static uint64_t add_bytes(uint64_t h, uint64_t mark, const char *p, size_t n)
{
    uint64_t word;
    h = (h ^ mark ^ (uint64_t)n << 8) * UINT64_C(0x9fb21c651e98df25);
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        h = (h ^ word) * UINT64_C(0x9fb21c651e98df25);
        h ^= h >> 29;
    }
    word = 0;
    memcpy(&word, p, n);
    h = (h ^ word) * UINT64_C(0x9fb21c651e98df25);
    return h ^ h >> 32;
}

static const char *copy(const char *s, size_t bytes)
{
    char *c = wl_alloc_atomic(bytes + 1);
    memcpy(c, s, bytes);
    c[bytes] = '\0';
    return c;
}

static const char *intern(struct builder *b, const char *s)
{
    size_t bytes = strlen(s);
    struct name **bucket = &b->names[add_bytes(0, 0, s, bytes) % NAME_BUCKETS], *n;
    for (n = *bucket; n != NULL; n = n->next)
        if (n->bytes == bytes && memcmp(n->text, s, bytes) == 0)
            return n->text;
    n = wl_alloc(sizeof *n);
    n->bytes = bytes;
    n->text = (char *)copy(s, bytes);
    n->next = *bucket;
    *bucket = n;
    return n->text;
}

static struct xml_node *append(struct builder *b)
{
    struct xml_node *n = wl_alloc(sizeof *n), *parent = b->open;
    n->parent = parent;
    if (parent == NULL)
        b->root = n;
    else if (parent->last == NULL)
        parent->first = parent->last = n;
    else
        parent->last = parent->last->next = n;
    return n;
}

/* Expat hands a run of text over in pieces; a node holds the whole run. */
static void flush_text(struct builder *b)
{
    if (b->text_bytes == 0)
        return;
    struct xml_node *n = append(b);
    n->u.text = copy(b->text, b->text_bytes);
    n->text_bytes = b->text_bytes;
    b->sums.checksum = add_bytes(b->sums.checksum, TEXT_MARK, b->text, b->text_bytes);
    b->sums.text_bytes += b->text_bytes;
    b->text_bytes = 0;
}

static void XMLCALL on_text(void *user, const XML_Char *s, int bytes)
{
    struct builder *b = user;
    size_t needed = b->text_bytes + (size_t)bytes;
    if (needed > b->text_capacity) {
        size_t capacity = needed * 2 < 4096 ? 4096 : needed * 2;
        char *grown = realloc(b->text, capacity);
        if (grown == NULL)
            wl_refused("no memory for a run of text of %zu bytes", needed);
        b->text = grown;
        b->text_capacity = capacity;
    }
    memcpy(b->text + b->text_bytes, s, (size_t)bytes);
    b->text_bytes = needed;
}

static void XMLCALL on_open(void *user, const XML_Char *name, const XML_Char **attributes)
{
    struct builder *b = user;
    flush_text(b);
    struct xml_node *n = append(b);
    n->name = intern(b, name);
    b->sums.checksum = add_bytes(b->sums.checksum, OPEN_MARK, name, strlen(name));
    b->sums.elements++;
    struct xml_attribute **link = &n->u.attributes;
    for (; attributes[0] != NULL; attributes += 2) {
        size_t bytes = strlen(attributes[1]);
        struct xml_attribute *a = wl_alloc(sizeof *a);
        a->name = intern(b, attributes[0]);
        a->value = copy(attributes[1], bytes);
        a->value_bytes = bytes;
        b->sums.checksum =
            add_bytes(b->sums.checksum, ATTRIBUTE_MARK, attributes[0], strlen(attributes[0]));
        b->sums.checksum = add_bytes(b->sums.checksum, ATTRIBUTE_MARK, attributes[1], bytes);
        b->sums.attributes++;
        *link = a;
        link = &a->next;
    }
    b->open = n;
}

static void XMLCALL on_close(void *user, const XML_Char *name)
{
    struct builder *b = user;
    flush_text(b);
    b->sums.checksum = add_bytes(b->sums.checksum, CLOSE_MARK, name, strlen(name));
    b->open = b->open->parent;
}

static void read_all(XML_Parser parser, int fd, const char *name)
{
    ssize_t got;
    do {
        void *buffer = XML_GetBuffer(parser, READ_BYTES);
        if (buffer == NULL)
            wl_refused("%s: expat: %s", name, XML_ErrorString(XML_GetErrorCode(parser)));
        do
            got = read(fd, buffer, READ_BYTES);
        while (got < 0 && errno == EINTR);
        if (got < 0)
            wl_refused("cannot read %s: %s", name, strerror(errno));
        wl_clock_start(); /* reading and parsing are no allocation */
        if (XML_ParseBuffer(parser, (int)got, got == 0) != XML_STATUS_OK)
            wl_refused("%s:%lu:%lu: %s", name, (unsigned long)XML_GetCurrentLineNumber(parser),
                       (unsigned long)XML_GetCurrentColumnNumber(parser) + 1,
                       XML_ErrorString(XML_GetErrorCode(parser)));
        wl_clock_stop();
    } while (got > 0);
}

WL_NOINLINE struct xml_node *xml_dom_parse(int fd, const char *name, struct xml_sums *sums)
{
    struct builder b = {.names = NULL};
    XML_Parser parser;

    if (lseek(fd, 0, SEEK_SET) != 0)
        wl_refused("cannot read %s from its beginning: %s", name, strerror(errno));
    parser = XML_ParserCreate(NULL);
    if (parser == NULL)
        wl_refused("%s: no memory for a parser", name);
    b.names = wl_alloc(NAME_BUCKETS * sizeof(struct name *));
    XML_SetUserData(parser, &b);
    XML_SetElementHandler(parser, on_open, on_close);
    XML_SetCharacterDataHandler(parser, on_text);
    read_all(parser, fd, name);
    XML_ParserFree(parser);
    free(b.text);
    *sums = b.sums;
    return b.root;
}

static void sum_node(const struct xml_node *n, struct xml_sums *s)
{
    if (n->name == NULL) {
        s->checksum = add_bytes(s->checksum, TEXT_MARK, n->u.text, n->text_bytes);
        s->text_bytes += n->text_bytes;
        return;
    }
    s->checksum = add_bytes(s->checksum, OPEN_MARK, n->name, strlen(n->name));
    s->elements++;
    for (const struct xml_attribute *a = n->u.attributes; a != NULL; a = a->next) {
        s->checksum = add_bytes(s->checksum, ATTRIBUTE_MARK, a->name, strlen(a->name));
        s->checksum = add_bytes(s->checksum, ATTRIBUTE_MARK, a->value, a->value_bytes);
        s->attributes++;
    }
}

/* Without recursion: the depth of a document is up to its author. */
WL_NOINLINE struct xml_sums xml_dom_walk(const struct xml_node *root)
{
    struct xml_sums s = {.elements = 0};
    const struct xml_node *n = root;

    sum_node(n, &s);
    while (n != NULL) {
        if (n->first != NULL) {
            if (n->first->parent != n)
                wl_fail("the first child of a '%s' element has another parent", n->name);
            n = n->first;
            sum_node(n, &s);
            continue;
        }
        for (; n != NULL; n = n->parent) {
            if (n->name != NULL)
                s.checksum = add_bytes(s.checksum, CLOSE_MARK, n->name, strlen(n->name));
            if (n->next != NULL)
                break;
        }
        if (n != NULL) {
            if (n->next->parent != n->parent)
                wl_fail("neighbours in the document have different parents");
            n = n->next;
            sum_node(n, &s);
        }
    }
    return s;
}
