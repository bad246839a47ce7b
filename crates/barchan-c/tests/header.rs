//! `include/barchan.h` is what cbindgen makes of the sources, and is checked in.

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml")).expect("the config");
    // It reads the modules too.
    let source = crate_dir.join("src/lib.rs");
    let builder = cbindgen::Builder::new().with_config(config).with_src(source);
    let mut generated = Vec::new();
    builder.generate().expect("cbindgen reads the sources").write(&mut generated);
    let generated = String::from_utf8(generated).expect("a header is text");
    let path = crate_dir.join("include/barchan.h");
    if std::env::var_os("BARCHAN_WRITE_HEADER").is_some() {
        std::fs::write(&path, &generated).expect("include/ is writable");
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == generated, "include/barchan.h is stale; run\n  cargo xtask header");
}
