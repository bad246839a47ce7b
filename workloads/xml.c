/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * XML documents, one after the other, each parsed by expat into a DOM on the GC heap (xml_dom.c).
 * By default one generated document of 150 MB, as in Dune's evaluation (OSDI 2012, table 6);
 * --repeat 10 is the paper's ten in a row.  --files takes files and directories of *.xml, for
 * instance the corpus of Debian's unicode-cldr-core.
 *
 * Opening, reading and parsing are timed (the paper left the loading of files out); generating is
 * not: the document is made beforehand, in a memory file, read like any other.  A DOM is dropped
 * when the next one is complete, so two are live at the peak; --keep K keeps the last K.  Each DOM
 * is walked just before it is dropped, when it has lived through the building of the next one, and
 * has to come to the same elements, attributes, text and checksum as the parser's events.
 */
#define _GNU_SOURCE
#include "xml_dom.h"
#include "xml_text.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *files;
static uint64_t bytes = 150000000, seed = 1, repeat = 1, keep = 1;

struct document {
    const char *path; /* NULL: the generated one */
};

static struct document *documents;
static size_t document_count, document_capacity;
static int generated_fd = -1;
static uint64_t generated_elements;

static struct xml_node **kept; /* the last `keep` DOMs; the static is their root */
static struct xml_sums *kept_sums;

static void add_document(const char *path)
{
    if (document_count == document_capacity) {
        document_capacity = document_capacity == 0 ? 64 : 2 * document_capacity;
        documents = realloc(documents, document_capacity * sizeof *documents);
        if (documents == NULL)
            wl_refused("no memory for a list of %zu files", document_capacity);
    }
    documents[document_count++].path = path;
}

static int by_name(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

/* Directories are read recursively, in the order of names. */
static void add_path(char *path)
{
    char *const roots[] = {path, NULL};
    size_t before = document_count;
    FTS *walk = fts_open(roots, FTS_PHYSICAL | FTS_COMFOLLOW | FTS_NOCHDIR, by_name);
    if (walk == NULL)
        wl_refused("cannot look for files in %s: %s", path, strerror(errno));
    for (FTSENT *e; (e = fts_read(walk)) != NULL;) {
        switch (e->fts_info) {
        case FTS_F: {
            const char *suffix = strrchr(e->fts_name, '.');
            if (e->fts_level > 0 && (suffix == NULL || strcmp(suffix, ".xml") != 0))
                break;
            char *copy = strdup(e->fts_path);
            if (copy == NULL)
                wl_refused("no memory for the name of %s", e->fts_path);
            add_document(copy);
            break;
        }
        case FTS_NS:
        case FTS_DNR:
        case FTS_ERR:
            wl_usage("--files: %s: %s", e->fts_path, strerror(e->fts_errno));
        }
    }
    fts_close(walk);
    if (document_count == before)
        wl_usage("--files: no .xml file in %s", path);
}

static void add_files(void)
{
    char *list = strdup(files), *rest = list, *path;
    if (list == NULL)
        wl_refused("no memory for the list of files");
    while ((path = strsep(&rest, ",")) != NULL) {
        if (*path == '\0')
            wl_usage("--files: an empty name in '%s'", files);
        add_path(path);
    }
    free(list);
}

/* Keeps the share `scale` of the documents, evenly spread. */
static void thin_out(double scale)
{
    size_t wanted = wl_scaled(document_count, scale, 1);
    for (size_t i = 0; i < wanted; i++)
        documents[i] = documents[i * document_count / wanted];
    document_count = wanted;
}

static void generate(void)
{
    generated_fd = memfd_create("generated.xml", MFD_CLOEXEC);
    int writing = generated_fd < 0 ? -1 : dup(generated_fd);
    FILE *out = writing < 0 ? NULL : fdopen(writing, "wb");
    if (out == NULL || !xml_text_write(out, bytes, seed, &generated_elements) || fclose(out) != 0)
        wl_refused("cannot generate %llu bytes of XML in memory: %s", (unsigned long long)bytes,
                   strerror(errno));
    add_document(NULL);
}

static void check_and_drop(size_t slot)
{
    if (kept[slot] == NULL)
        return;
    wl_check_begin();
    const struct xml_sums *parsed = &kept_sums[slot];
    struct xml_sums walked = xml_dom_walk(kept[slot]);
    wl_check_end();
    if (walked.elements != parsed->elements || walked.attributes != parsed->attributes ||
        walked.text_bytes != parsed->text_bytes)
        wl_fail("the DOM has %llu elements, %llu attributes, %llu bytes of text; the parser saw "
                "%llu, %llu, %llu",
                (unsigned long long)walked.elements, (unsigned long long)walked.attributes,
                (unsigned long long)walked.text_bytes, (unsigned long long)parsed->elements,
                (unsigned long long)parsed->attributes, (unsigned long long)parsed->text_bytes);
    if (walked.checksum != parsed->checksum)
        wl_fail("the DOM has checksum %#llx, the parser's events %#llx",
                (unsigned long long)walked.checksum, (unsigned long long)parsed->checksum);
    kept[slot] = NULL;
}

static WL_NOINLINE struct xml_node *load(const struct document *d, struct xml_sums *sums)
{
    if (d->path == NULL)
        return xml_dom_parse(generated_fd, "the generated document", sums);
    int fd = open(d->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        wl_refused("cannot open %s: %s", d->path, strerror(errno));
    struct xml_node *root = xml_dom_parse(fd, d->path, sums);
    close(fd);
    return root;
}

/* In a frame of its own, which is gone when the next document is parsed. */
static WL_NOINLINE void one_document(const struct document *d, size_t slot, struct xml_sums *total)
{
    struct xml_sums sums;
    struct xml_node *root = load(d, &sums);
    if (d->path == NULL && sums.elements != generated_elements)
        wl_fail("the parser saw %llu elements, %llu were generated",
                (unsigned long long)sums.elements, (unsigned long long)generated_elements);
    check_and_drop(slot);
    kept[slot] = root;
    kept_sums[slot] = sums;
    total->elements += sums.elements;
    total->attributes += sums.attributes;
    total->text_bytes += sums.text_bytes;
    total->checksum = wl_mix(total->checksum ^ sums.checksum);
}

static void run(void)
{
    struct xml_sums total = {.elements = 0};
    uint64_t parsed = 0;

    kept = wl_alloc(keep * sizeof(struct xml_node *));
    for (uint64_t r = 0; r < repeat; r++)
        for (size_t i = 0; i < document_count; i++)
            one_document(&documents[i], parsed++ % keep, &total);
    if (wl_spoil())
        kept[(parsed - 1) % keep]->name = "spoilt";
    for (size_t slot = 0; slot < keep; slot++)
        check_and_drop(slot);
    wl_result_u64("documents", parsed);
    wl_result_u64("elements", total.elements);
    wl_result_u64("attributes", total.attributes);
    wl_result_u64("text_bytes", total.text_bytes);
    wl_result_u64("checksum", total.checksum & 0xffffffff);
}

static void prepare(double scale)
{
    if (files != NULL) {
        add_files();
        thin_out(scale);
        wl_param_text("files", files);
    } else {
        bytes = wl_scaled(bytes, scale, XML_TEXT_MIN_BYTES);
        generate();
        wl_param_u64("bytes", bytes);
        wl_param_u64("seed", seed);
    }
    kept_sums = wl_shadow(keep, sizeof *kept_sums);
    wl_param_u64("documents", document_count);
    wl_param_u64("repeat", repeat);
    wl_param_u64("keep", keep);
}

static const struct wl_option options[] = {
    {.name = "files", .kind = WL_TEXT, .value = &files, .placeholder = "A,B,...",
     .help = "files, and directories of *.xml, instead of generating"},
    {.name = "bytes", .kind = WL_U64, .value = &bytes, .min = XML_TEXT_MIN_BYTES,
     .max = 10000000000, .placeholder = "N", .help = "size of the generated document"},
    {.name = "seed", .kind = WL_U64, .value = &seed, .max = UINT64_MAX, .placeholder = "S",
     .help = "seed of the generated document"},
    {.name = "repeat", .kind = WL_U64, .value = &repeat, .min = 1, .max = 1000000,
     .placeholder = "R", .help = "times to parse all documents"},
    {.name = "keep", .kind = WL_U64, .value = &keep, .min = 1, .max = 1000000,
     .placeholder = "K", .help = "DOMs to keep alive"},
};

int main(int argc, char **argv)
{
    static const struct wl_workload workload = {
        .name = "xml",
        .summary = "XML documents parsed into DOMs on the GC heap",
        .scale_help = "multiply the generated size, or the number of files",
        .options = options,
        .option_count = WL_COUNT(options),
        .prepare = prepare,
        .run = run,
    };
    return wl_main(argc, argv, &workload);
}
