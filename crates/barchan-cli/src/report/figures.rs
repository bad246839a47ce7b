//! The figures of a page as files of their own, for documents that show some of them.

use std::path::Path;

use barchan_boehm::{Error, ErrorKind, Result};

use super::html::STYLE;
use crate::write_file;

/// A figure that was found in a page.
struct Figure<'a> {
    /// Its title as a file's name, without the ending.
    name: String,
    /// What follows `<svg` in the page, to the closing tag.
    rest: &'a str,
}

/// Writes each figure of `page` into `dir`, which is made if need be, and says how many there were.
pub(super) fn write(page: &str, dir: &Path) -> Result<usize> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, &e))?;
    let found = figures(page);
    if found.is_empty() {
        return Err(Error::new(ErrorKind::BadResult, "the report has no figure")
            .tried("no configuration has been measured")
            .remedy("give a report with a run that succeeded"));
    }
    let style = format!(">\n<style>\n{}</style>\n", style());
    for figure in &found {
        let text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1120\"{}\n",
            figure.rest.replacen('>', &style, 1)
        );
        write_file(&dir.join(format!("{}.svg", figure.name)), &text)?;
    }
    Ok(found.len())
}

fn figures(page: &str) -> Vec<Figure<'_>> {
    const END: &str = "</svg>";
    let mut found: Vec<Figure<'_>> = Vec::new();
    for part in page.split("<svg").skip(1) {
        let Some(end) = part.find(END) else { continue };
        let rest = &part[..end + END.len()];
        let title = rest.split_once("aria-label=\"").and_then(|(_, more)| more.split_once('"'));
        let mut name = file_name(title.map_or("figure", |(title, _)| title));
        if found.iter().any(|figure| figure.name == name) {
            name = format!("{name}-{}", found.len());
        }
        found.push(Figure { name, rest });
    }
    found
}

/// What the page's style says of figures, in its light colours, without custom properties: not all that draws
/// a file knows those.
fn style() -> String {
    let light = STYLE.split('}').next().unwrap_or_default();
    let colours: Vec<(&str, &str)> = light
        .split([';', '{'])
        .filter_map(|property| property.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("--"))
        .collect();
    let named = |text: &str| {
        colours.iter().fold(text.to_owned(), |text, (name, colour)| {
            text.replace(&format!("var({name})"), colour)
        })
    };
    let mut rules = named("svg { background: var(--card); }\n");
    for rule in STYLE.split_inclusive('}') {
        let Some((selector, body)) = rule.trim().split_once(" {") else { continue };
        let inside = selector.strip_prefix("svg").filter(|rest| !rest.contains(','));
        let Some(inside) = inside.filter(|_| !body.contains("--c:")) else { continue };
        if !body.contains("var(--c)") {
            rules.push_str(&named(&format!("svg{inside} {{{body}\n")));
            continue;
        }
        // Colours of a collector: the group says of which.
        for collector in ["debian", "pinned", "barchan"] {
            let body = body.replace("var(--c)", &format!("var(--{collector})"));
            rules.push_str(&named(&format!("svg .{collector}{inside} {{{body}\n")));
        }
    }
    rules
}

/// Letters and digits in lower case, everything else a hyphen.
fn file_name(title: &str) -> String {
    let lower = title.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_gets_a_file_that_stands_alone() {
        let page = "<p>a</p><svg viewBox=\"0 0 9 9\" aria-label=\"xml: time, s\"><g/></svg>\n<svg \
                    aria-label=\"xml: time, s\"></svg>";
        let dir = tempfile::tempdir().expect("a directory");
        let below = dir.path().join("new");
        assert_eq!(write(page, &below).expect("written"), 2);
        let text = std::fs::read_to_string(below.join("xml-time-s.svg")).expect("the first");
        assert!(text.starts_with("<svg xmlns=") && text.ends_with("<g/></svg>\n"), "{text}");
        assert!(text.contains("aria-label=\"xml: time, s\">\n<style>"), "{text}");
        assert!(below.join("xml-time-s-1.svg").exists(), "one name, two figures");
        assert!(write("<p>none</p>", &below).is_err());
    }

    #[test]
    fn colours_stand_in_a_file_as_such() {
        let style = style();
        for wanted in
            ["svg .barchan .bar { fill: #0d8a83; }", "svg .debian .curve { stroke: #8793a3;"]
        {
            assert!(style.contains(wanted), "no {wanted} in\n{style}");
        }
        assert!(!style.contains("var(") && !style.contains("@media"), "{style}");
    }
}
