//! The part of C that the header keeps to: `#define NAME value` and structures of fixed-width
//! integers, arrays of them, and other structures.

/// What the header defines, in its order.
pub(crate) struct Header {
    pub(crate) items: Vec<Item>,
}

pub(crate) enum Item {
    /// A macro with a value; wide if it is a `ULL` or a size of 64 bits.
    Constant { name: String, wide: bool },
    /// A structure.
    Struct { name: String, fields: Vec<Field> },
}

pub(crate) struct Field {
    pub(crate) name: String,
    c_type: String,
    elements: Option<usize>,
}

impl Field {
    pub(crate) fn rust_type(&self) -> String {
        let scalar = match self.c_type.as_str() {
            "__u8" => "u8",
            "__u16" => "u16",
            "__u32" => "u32",
            "__u64" => "u64",
            "__s32" => "i32",
            other => other.strip_prefix("struct ").expect("a fixed-width type or a structure"),
        };
        match self.elements {
            Some(n) => format!("[{scalar}; {n}]"),
            None => scalar.to_owned(),
        }
    }
}

impl Header {
    pub(crate) fn parse(text: &str) -> Self {
        let text = without_comments(text);
        let mut items = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(definition) = line.strip_prefix("#define ") {
                let (name, value) =
                    definition.split_once(char::is_whitespace).unwrap_or((definition, ""));
                let value = value.trim();
                if !value.is_empty() && !name.contains('(') {
                    items.push(Item::Constant {
                        name: name.to_owned(),
                        wide: value.contains("ULL"),
                    });
                }
            } else if let Some(name) =
                line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix(" {"))
            {
                let body: Vec<_> = lines.by_ref().take_while(|line| *line != "};").collect();
                items.push(Item::Struct { name: name.to_owned(), fields: fields(&body.join(" ")) });
            }
        }
        Self { items }
    }
}

fn without_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("/*") {
        out += before.trim_end_matches([' ', '\t']);
        rest = after.split_once("*/").expect("comments end").1;
    }
    out + rest
}

fn fields(body: &str) -> Vec<Field> {
    let mut out = Vec::new();
    for declaration in body.split(';').map(str::trim).filter(|d| !d.is_empty()) {
        let words = if declaration.starts_with("struct ") { 2 } else { 1 };
        let c_type: Vec<_> = declaration.split_whitespace().take(words).collect();
        let c_type = c_type.join(" ");
        for name in declaration[c_type.len()..].split(',').map(str::trim) {
            let (name, elements) = match name.split_once('[') {
                Some((name, n)) => {
                    let n = n.trim_end_matches(']').parse().expect("a number of elements");
                    (name, Some(n))
                }
                None => (name, None),
            };
            out.push(Field { name: name.to_owned(), c_type: c_type.clone(), elements });
        }
    }
    out
}
