//! Compilers: processes that start others, and map and allocate much.

use crate::same::{Case, installed};

#[test]
fn a_compiler_and_what_it_makes() {
    let script = "d=$(mktemp -d) && cd $d && \
                  printf '#include <stdio.h>\\nint main(void){puts(\"made\");return 4;}\\n' >a.c && \
                  cc -O2 a.c -o a && ./a; echo $?; rm -r $d";
    Case { command: &["sh", "-c", script], status: 0, says: "made\n4\n", runs: 2 }.same();
}

/// sqlite3.c is one file of 9.5 MB. It comes with the crate libsqlite3-sys: `cargo xtask setup --test`
/// has it fetched; Debian's packages have no copy of it.
#[test]
fn gcc_compiles_sqlite() {
    let Some(source) = amalgamation() else {
        println!("skipped: no sqlite3.c in cargo's registry (cargo xtask setup --test)");
        return;
    };
    let script = format!(
        "set -e; d=$(mktemp -d); cd $d; \
         printf '#include <sqlite3.h>\\n#include <stdio.h>\\nint main(void)\
         {{puts(sqlite3_libversion());return 4;}}\\n' >main.c; \
         gcc -O1 -I{source} -o sql {source}/sqlite3.c main.c -lm -lpthread -ldl; md5sum sql; \
         ./sql || echo $?; rm -r $d"
    );
    Case { command: &["bash", "-c", &script], status: 0, says: "  sql\n3.", runs: 1 }.same();
}

/// The directory of the newest sqlite3.c that cargo has unpacked.
fn amalgamation() -> Option<String> {
    let home = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let mut found: Vec<_> = std::fs::read_dir(home.join("registry/src"))
        .ok()?
        .flatten()
        .filter_map(|registry| std::fs::read_dir(registry.path()).ok())
        .flat_map(|crates| crates.flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("libsqlite3-sys-"))
        .map(|entry| entry.path().join("sqlite3"))
        .filter(|directory| directory.join("sqlite3.c").is_file())
        .collect();
    found.sort();
    Some(found.pop()?.to_str()?.to_owned())
}

/// cargo, rustc with its threads, the linker, a build script, and what they make.
///
/// Only what the program prints is compared: rustc does not write the same bytes twice.
#[test]
fn cargo_builds_a_crate() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    if !installed(&cargo) {
        return;
    }
    let script = format!(
        "set -e; d=$(mktemp -d); cd $d; unset RUSTFLAGS RUSTC_WRAPPER CARGO_TARGET_DIR; \
         export PATH=$(dirname {cargo}):$PATH; {cargo} init -q --vcs none --name made .; \
         printf 'fn main() {{ println!(\"cargo:rustc-env=MADE=by a script\"); }}' >build.rs; \
         printf 'use std::collections::BTreeMap;\\n\
         fn main() {{ let mut m = BTreeMap::new(); \
         for i in 0..1000u64 {{ *m.entry(i * i %% 97).or_insert(0) += i; }} \
         println!(\"{{}}: {{m:?}}\", env!(\"MADE\")); std::process::exit(4) }}' >src/main.rs; \
         {cargo} build -q --offline --release; ./target/release/made || echo $?; \
         ls target/release/deps | wc -l; rm -r $d"
    );
    Case { command: &["bash", "-c", &script], status: 0, says: "by a script: {0: ", runs: 1 }
        .same();
}
