/* SPDX-License-Identifier: MIT OR Apache-2.0
 * Seeded XML documents of an exact size.  No collector in here. */
#ifndef XML_TEXT_H
#define XML_TEXT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define XML_TEXT_MIN_BYTES 256

/* Writes a well-formed UTF-8 document of exactly `bytes` (>= XML_TEXT_MIN_BYTES) bytes, the same
 * for the same seed; *elements is how many elements it has.  False: writing failed (errno). */
bool xml_text_write(FILE *out, uint64_t bytes, uint64_t seed, uint64_t *elements);

#endif
