//! The bindings are what the header says: generated once more and compared, letter by letter.
//!
//! Names and types come from the header's text, which keeps to a small part of C; sizes,
//! offsets and values come from the C compiler.

mod header;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use header::{Header, Item};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Has the C compiler evaluate expressions over the header.
fn evaluate(expressions: &[String]) -> Vec<u64> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Relaxed);
    let dir = std::env::temp_dir().join(format!("dune-sys-abi-{}-{run}", std::process::id()));
    fs::create_dir_all(&dir).expect("a temporary directory can be made");
    let mut program = String::from(
        "#include <linux/dune.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n",
    );
    for expression in expressions {
        writeln!(program, "printf(\"%llu\\n\", (unsigned long long)({expression}));")
            .expect("a string takes all");
    }
    program += "return 0; }\n";
    let source = dir.join("abi.c");
    fs::write(&source, program).expect("the program can be written");
    let binary = dir.join("abi");
    let compiled = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Werror", "-I"])
        .arg(root().join("kmod/include/uapi"))
        .arg(&source)
        .arg("-o")
        .arg(&binary)
        .status()
        .expect("cc can be started");
    assert!(compiled.success(), "cc refused the header");
    let output = Command::new(&binary).output().expect("the program can be started");
    fs::remove_dir_all(&dir).ok();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.parse().expect("a number a line"))
        .collect()
}

fn generate(header: &Header) -> String {
    let mut expressions = Vec::new();
    for item in &header.items {
        match item {
            Item::Constant { name, .. } => expressions.push(name.clone()),
            Item::Struct { name, fields } => {
                expressions.push(format!("sizeof(struct {name})"));
                expressions.push(format!("_Alignof(struct {name})"));
                for field in fields {
                    expressions.push(format!("offsetof(struct {name}, {})", field.name));
                }
            }
        }
    }
    let mut values = evaluate(&expressions).into_iter();
    let mut value = || values.next().expect("a value for each expression");
    let mut text = String::from(
        "// Generated from kmod/include/uapi/linux/dune.h by tests/abi; changes here are lost.\n\
         #![allow(missing_docs, non_camel_case_types)]\n\n",
    );
    let mut asserts = String::new();
    for item in &header.items {
        match item {
            Item::Constant { name, wide } => {
                let ty = if *wide { "u64" } else { "u32" };
                writeln!(text, "pub const {name}: {ty} = {:#x};", value())
            }
            Item::Struct { name, fields } => {
                write!(
                    text,
                    "\n#[repr(C)]\n#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]\n\
                     pub struct {name} {{\n"
                )
                .expect("a string takes all");
                let (size, alignment) = (value(), value());
                writeln!(asserts, "    assert!(size_of::<{name}>() == {size});")
                    .expect("a string takes all");
                writeln!(asserts, "    assert!(align_of::<{name}>() == {alignment});")
                    .expect("a string takes all");
                for field in fields {
                    writeln!(text, "    pub {}: {},", field.name, field.rust_type())
                        .expect("a string takes all");
                    writeln!(
                        asserts,
                        "    assert!(core::mem::offset_of!({name}, {}) == {});",
                        field.name,
                        value()
                    )
                    .expect("a string takes all");
                }
                writeln!(text, "}}")
            }
        }
        .expect("a string takes all");
    }
    write!(text, "\nconst _: () = {{\n{asserts}}};\n").expect("a string takes all");
    text
}

#[test]
fn the_bindings_are_what_the_header_says() {
    let path = root().join("kmod/include/uapi/linux/dune.h");
    let text = fs::read_to_string(&path).expect("the header can be read");
    let generated = generate(&Header::parse(&text));
    let bindings = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bindings.rs");
    if std::env::var_os("DUNE_SYS_GENERATE").is_some() {
        fs::write(&bindings, &generated).expect("the bindings can be written");
    }
    let checked_in = fs::read_to_string(&bindings).unwrap_or_default();
    assert!(
        checked_in == generated,
        "src/bindings.rs is not what the header says: DUNE_SYS_GENERATE=1 cargo test -p dune-sys --test abi"
    );
}

#[test]
fn no_structure_has_a_hole() {
    // A hole would carry what was in memory from the kernel to the user, or be ignored on the
    // way in. So the fields must add up.
    let text = fs::read_to_string(root().join("kmod/include/uapi/linux/dune.h"))
        .expect("the header can be read");
    let header = Header::parse(&text);
    let mut expressions = Vec::new();
    let mut names = Vec::new();
    for item in &header.items {
        if let Item::Struct { name, fields } = item {
            let sum: Vec<_> = fields
                .iter()
                .map(|f| format!("sizeof(((struct {name} *)0)->{})", f.name))
                .collect();
            expressions.push(format!("sizeof(struct {name}) - ({})", sum.join(" + ")));
            names.push(name);
        }
    }
    assert!(names.len() > 8, "the header was not understood");
    for (name, hole) in names.iter().zip(evaluate(&expressions)) {
        assert_eq!(hole, 0, "struct {name} has a hole");
    }
}
