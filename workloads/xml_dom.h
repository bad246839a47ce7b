/* SPDX-License-Identifier: MIT OR Apache-2.0
 * A document object model on the GC heap, built by expat. */
#ifndef XML_DOM_H
#define XML_DOM_H

#include "harness.h"

struct xml_attribute {
    struct xml_attribute *next;
    const char *name; /* shared by all of the document with this name */
    const char *value;
    uint64_t value_bytes;
};

/* An element or a run of text. */
struct xml_node {
    struct xml_node *parent, *next, *first, *last;
    const char *name; /* NULL: text */
    union {
        struct xml_attribute *attributes;
        const char *text;
    } u;
    uint64_t text_bytes;
};

/* What a document comes to: summed from the parser's events, and again by walking the DOM. */
struct xml_sums {
    uint64_t elements, attributes, text_bytes, checksum;
};

/* Parses the file open at `fd` from its beginning; `name` is for messages.  A document that is
 * not well-formed ends the program (3). */
struct xml_node *xml_dom_parse(int fd, const char *name, struct xml_sums *sums);

/* Walks the document; also checks that the links between its nodes agree. */
struct xml_sums xml_dom_walk(const struct xml_node *root);

#endif
