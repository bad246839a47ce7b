//! A C program that calls every function of `barchan.h`, compiled with the system's compiler and
//! linked with the static and with the shared library.

use std::path::{Path, PathBuf};
use std::process::Command;

const TRACKERS: [&str; 10] = [
    "auto",
    "guest-pte",
    "pagemap-scan",
    "userfaultfd",
    "soft-dirty",
    "guest-pml",
    "guest-tlb",
    "guest-direct",
    "mprotect",
    "all-dirty",
];

/// Where cargo put the libraries of the profile under test.
fn libraries() -> PathBuf {
    let exe = std::env::current_exe().expect("a path");
    exe.parent().expect("deps/").to_owned()
}

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compiles the program as `name` with `link` at the end of the command line.
fn compile(name: &str, compiler: &str, link: &[&str]) -> PathBuf {
    let out = libraries().join(name);
    let version =
        |part: &str, value: &str| format!("-DBARCHAN_{part}={}", value.parse::<u32>().expect(part));
    let output = Command::new(compiler)
        .args(["-Wall", "-Wextra", "-Werror", "-O1", "-o"])
        .arg(&out)
        .arg(version("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")))
        .arg(version("MINOR", env!("CARGO_PKG_VERSION_MINOR")))
        .arg(version("PATCH", env!("CARGO_PKG_VERSION_PATCH")))
        .arg("-I")
        .arg(crate_dir().join("include"))
        .arg(crate_dir().join("tests/c/interface.c"))
        .args(link)
        .output()
        .expect("cc is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

/// Runs the program on every tracker; one that is not there is printed with its reason.
fn run_all(program: &Path, library_path: Option<&Path>) {
    let mut ran = 0;
    for tracker in TRACKERS {
        let mut command = Command::new(program);
        command.arg(tracker).env_remove("BARCHAN_TRACKER");
        if let Some(path) = library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
        let output = command.output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stdout);
        match output.status.code() {
            Some(0) => ran += 1,
            Some(77) => print!("{tracker}: {said}"),
            _ => panic!(
                "{tracker}: {}\n{said}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }
    assert!(ran >= 3, "auto, mprotect and all-dirty are everywhere");
}

#[test]
fn with_the_static_library() {
    let library = libraries().join("libbarchan_c.a");
    let library = library.to_str().expect("a path in UTF-8");
    run_all(&compile("interface_static", "cc", &[library, "-lpthread", "-ldl"]), None);
}

#[test]
fn with_the_shared_library_by_its_soname() {
    let library = libraries().join("libbarchan_c.so");
    let program = compile("interface_shared", "cc", &[library.to_str().expect("a path in UTF-8")]);
    let installed = libraries().join("barchan-c-soname");
    std::fs::create_dir_all(&installed).expect("a directory");
    std::fs::copy(&library, installed.join("libbarchan.so.0")).expect("a copy");
    run_all(&program, Some(&installed));
}

#[test]
fn the_header_is_valid_cxx() {
    let header = crate_dir().join("include/barchan.h");
    let Ok(output) = Command::new("c++")
        .args(["-fsyntax-only", "-Wall", "-Werror", "-xc++"])
        .arg(header)
        .output()
    else {
        println!("skipped: no c++ on this machine");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_pkg_config_template_has_the_known_fields() {
    let template = std::fs::read_to_string(crate_dir().join("barchan.pc.in")).expect("checked in");
    let mut fields: Vec<&str> = template.split('@').skip(1).step_by(2).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["includedir", "libdir", "prefix", "version"]);
    assert!(template.contains("-lbarchan"));
}
