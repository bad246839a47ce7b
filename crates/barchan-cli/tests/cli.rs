//! The command from outside: exit codes, messages, files.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use serde_json::Value;

fn barchan(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_barchan"))
        .args(args)
        .env_remove("BARCHAN_ROOT")
        .output()
        .expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ok(args: &[&str]) -> Output {
    let output = barchan(args);
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, stderr(&output));
    output
}

fn fixture() -> String {
    format!("{}/tests/fixtures/report.json", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_possible() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "unrecognized subcommand"),
        (&["bench", "--workload", "nope"], "possible values: gcbench"),
        (&["bench", "--config", "nope"], "barchan bench --list"),
        (&["bench", "--rounds", "0"], "0 is not in 1..=1000"),
        (&["bench", "--scale", "2"], "above 0 and up to 1"),
        (&["bench", "--pause-ms", "x"], "invalid digit"),
        (&["bench", "--vary", "GC_FREE_SPACE_DIVISOR=3"], "two values or more"),
        (&["bench", "--vary", "GC_MARKERS=1,2"], "set by the benchmark"),
        (&["bench", "--vary", "PATH=1,2"], "not the collector's"),
        (&["bench", "--markers", "17"], "17 is not in 1..=16"),
        (&["bench", "paper", "--rounds", "0"], "0 is not in 1..=1000"),
        (&["bench", "paper", "--scale", "0"], "above 0 and up to 1"),
        (&["bench", "paper", "--only", "nope"], "possible values: micro, collector"),
        (&["bench", "paper", "--workload", "tree"], "possible values: gcbench, list, hashmap, xml"),
        (
            &["bench", "paper", "--only", "micro", "--scale", "0.1"],
            "cannot be used with --only micro",
        ),
        (&["bench", "--quick", "paper"], "unexpected argument 'paper'"),
        (&["bench", "--workload", "xml", "--", "true"], "cannot be used with"),
        (&["bench", "--scale", "0.5", "--", "true"], "cannot be used with"),
        (&["paper-probe", "nope", "linux"], "no row has this name"),
        (&["run"], "PROG"),
        (&["run", "--tracker", "nope", "--", "true"], "possible values: guest-pte, pagemap-scan"),
        (&["run", "--mode", "fast", "--", "true"], "possible values: full"),
        (&["run", "--dune", "--mode", "full", "--", "true"], "cannot be used with --dune unless"),
        (&["run", "--dune", "--markers", "2", "--", "true"], "cannot be used with --dune unless"),
        (&["run", "--markers", "0", "--", "true"], "not in 1..=16"),
        (&["run", "--pause-ms", "3", "--", "true"], "--pause-ms needs --mode incremental"),
        (&["run", "--mode", "full", "--tracker", "mprotect", "--", "true"], "has no effect"),
        (&["run", "--collector", "pinned", "--tracker", "mprotect", "--", "true"], "the patched"),
        (&["run", "--ring", "0", "--", "true"], "--dune"),
        (&["run", "--dune", "--ring", "1", "--", "true"], "possible values: 0, 3"),
        (&["build", "--only", "nope"], "possible values: stock"),
        (&["report"], "FILE.json"),
    ];
    for (args, wanted) in cases {
        let output = barchan(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(wanted), "{args:?}: {}", stderr(&output));
        assert!(stdout(&output).is_empty(), "{args:?} writes to standard output");
    }
}

#[test]
fn help_teaches() {
    let text = stdout(&ok(&["--help"]));
    for wanted in ["barchan doctor", "barchan bench --quick", "Exit codes"] {
        assert!(text.contains(wanted), "{text}");
    }
    assert!(stdout(&ok(&["run", "--help"])).contains("barchan run -- guile"));
    assert!(stdout(&ok(&["bench", "--help"])).contains("pinned/generational/mprotect"));
    let text = stdout(&ok(&["bench", "paper", "--help"]));
    for wanted in ["OSDI 2012", "--only micro", "a row that says why", "barchan report paper.json"]
    {
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn ring_0_is_refused_where_it_is_not_real() {
    if dune::host::kind::hardware().is_some() {
        println!("skipped: this processor has virtualization, so ring 0 may work");
        return;
    }
    let output = barchan(&["run", "--dune", "--ring", "0", "--", "echo", "begun"]);
    let text = stderr(&output);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(126), ""), "{text}");
    assert!(text.contains("cannot run at ring 0: this processor has neither"), "{text}");
    assert!(text.contains("use a machine with VT-x or SVM"), "{text}");
    // The other ring is as without the option.
    let output = ok(&["run", "--dune", "--ring", "3", "--", "echo", "begun"]);
    assert_eq!(stdout(&output), "begun\n");
}

#[test]
fn failures_are_exit_code_1_and_say_what_to_do() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().to_string_lossy();
    let output = barchan(&["--root", &path, "build"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.starts_with("error: ") && text.contains("is not a checkout"), "{text}");
    assert!(text.contains("do this: give the checkout's path with --root"), "{text}");

    let output = barchan(&["report", "/nonexistent.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot read /nonexistent.json"), "{}", stderr(&output));

    // Before anything is measured.
    for option in ["--json", "--html"] {
        let output = barchan(&["bench", "--no-build", "--quick", option, "/nonexistent/x"]);
        assert_eq!(output.status.code(), Some(1), "{option}");
        assert!(stderr(&output).ends_with("directory (os error 2)\n"), "{}", stderr(&output));
    }

    let both = dir.path().join("both").to_string_lossy().into_owned();
    let output = barchan(&["bench", "--no-build", "--quick", "--json", &both, "--html", &both]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot hold both"), "{}", stderr(&output));

    for (content, wanted) in
        [("x", "expected value"), ("{}", "names no format"), ("{\"format\":99}", "format 99")]
    {
        let file = dir.path().join("bad.json");
        std::fs::write(&file, content).expect("write");
        let output = barchan(&["report", &file.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(1), "{content}");
        assert!(stderr(&output).contains(wanted), "{content}: {}", stderr(&output));
    }
}

#[test]
fn guest_pml_says_what_it_takes() {
    if Path::new("/dev/dune").exists() {
        println!("skipped: there is /dev/dune, so there may be such a log");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_barchan"))
        .args(["run", "--dune", "--", "echo", "begun"])
        .env("BARCHAN_DUNE_PML", "1")
        .output()
        .expect("barchan starts");
    assert_eq!(stdout(&output), "begun\n", "the program runs natively then");
    let said = stderr(&output);
    for wanted in ["BARCHAN_DUNE_PML=1) failed with ENOENT", "kmod/README.md", "without guest mode"]
    {
        assert!(said.contains(wanted), "no {wanted:?} in\n{said}");
    }
}

#[test]
fn doctor_speaks_json_and_tells_every_source() {
    let report: Value = serde_json::from_str(&stdout(&ok(&["doctor", "--json"]))).expect("JSON");
    let sources = report["sources"].as_array().expect("sources");
    let names: Vec<_> = sources.iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(
        names,
        [
            "guest-pte",
            "pagemap-scan",
            "userfaultfd",
            "soft-dirty",
            "guest-pml",
            "guest-tlb",
            "guest-direct",
            "mprotect",
            "all-dirty"
        ]
    );
    for source in sources {
        if source["available"] == true {
            assert!(source["kernel_writes"].is_string(), "{source}");
        } else {
            assert!(source["why"].is_string() && source["kind"].is_string(), "{source}");
        }
    }
    assert_eq!(sources[8]["available"], true, "all-dirty works everywhere");
    assert!(report["best"].is_string());
    assert!(report["machine"]["kernel"].is_string());
    let guest = &report["guest_mode"];
    if guest["available"] == true {
        assert!(guest["kind"].is_string() && guest["system_call_ns"].is_u64(), "{guest}");
    } else {
        assert!(guest["why"].is_string(), "{guest}");
    }

    let text = stdout(&ok(&["doctor"]));
    for name in names {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn report_draws_the_table_and_a_page_of_its_own() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let html = dir.path().join("report.html");
    let output = ok(&["report", &fixture(), "--html", &html.to_string_lossy()]);
    let table = stdout(&output);
    for wanted in [
        "debian/generational/mprotect",
        "barchan/incremental",
        "round 2: killed after 300 s",
        "left incremental mode",
        "CONFIG_MEM_SOFT_DIRTY",
        "barchan against the better baseline",
        "(≤0.50)",
    ] {
        assert!(table.contains(wanted), "no {wanted:?} in\n{table}");
    }

    let page = std::fs::read_to_string(&html).expect("page");
    for needs_a_network in ["http:", "https:", "<script", "<link", "src="] {
        assert!(!page.contains(needs_a_network), "the page holds {needs_a_network}");
    }
    assert_eq!(page.matches("<svg").count(), 2, "one figure a workload");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert!(page.contains("Example CPU") && page.contains("0123456789ab"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "a number went wrong");
}

#[test]
fn different_results_are_pointed_out() {
    let text = std::fs::read_to_string(fixture()).expect("fixture");
    let mut report: Value = serde_json::from_str(&text).expect("JSON");
    let last = report["runs"].as_array_mut().and_then(|runs| runs.last_mut()).expect("runs");
    last["sample"]["results"]["spoiled"] = 1.into();
    let config = last["config"].as_str().expect("name").to_owned();
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("wrong.json");
    std::fs::write(&file, report.to_string()).expect("write");
    let html = dir.path().join("wrong.html");
    let warned = || {
        let (file, html) = (file.to_string_lossy(), html.to_string_lossy());
        let table = stdout(&ok(&["report", &file, "--html", &html]));
        let line = table.lines().find(|line| line.starts_with("WRONG RESULTS")).expect("a warning");
        assert!(line.contains(&config), "{line}");
        let page = std::fs::read_to_string(&*html).expect("page");
        assert_eq!(page.matches("<b>Wrong results:</b>").count(), 1);
    };
    warned();
    // Where there is nothing to compare with, they are wrong all the same.
    for key in ["configs", "runs"] {
        let name = if key == "runs" { "config" } else { "name" };
        let all = report[key].as_array_mut().expect("an array");
        all.retain(|item| item[name].as_str().is_some_and(|name| name.starts_with("barchan/")));
    }
    std::fs::write(&file, report.to_string()).expect("write");
    warned();
}

#[test]
fn runs_that_failed_are_no_success() {
    let text = std::fs::read_to_string(fixture()).expect("fixture");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("failed.json");
    // The table of the report in which runs of one configuration of ours have failed.
    let table = |is_spared: fn(usize) -> bool| {
        let mut report = report.clone();
        let runs = report["runs"].as_array_mut().expect("runs");
        let ours = runs.iter_mut().filter(|run| run["config"] == "barchan/generational");
        for (n, run) in ours.enumerate() {
            if !is_spared(n) {
                run["outcome"] = "failed".into();
                run["why"] = "signal: 11".into();
            }
        }
        std::fs::write(&file, report.to_string()).expect("write");
        stdout(&ok(&["report", &file.to_string_lossy()]))
    };
    let untouched = table(|_| true);
    assert!(!untouched.contains("not judged") && !untouched.contains("runs failed"), "{untouched}");
    let some = table(|n| n > 0);
    assert!(some.contains("; ✗ some of its runs failed"), "{some}");
    let all = table(|_| false);
    assert!(all.contains("not judged, as every run of barchan failed: "), "{all}");
}

/// Builds the pinned collector, once for all tests; later tests find it there.
fn build_pinned() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| drop(ok(&["build", "--only", "stock"])));
}

/// A program that uses the collector and has an event callback of its own.
fn gc_program(dir: &Path) -> PathBuf {
    gc_program_linked(dir, &[])
}

/// Where the pinned collector is.
fn pinned() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/collector/stock/prefix")
}

/// The same, with more for the linker.
fn gc_program_linked(dir: &Path, linker: &[String]) -> PathBuf {
    build_pinned();
    let prefix = pinned();
    let program = dir.join("program");
    let status = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/program.c"))
        .arg(format!("-I{}", prefix.join("include").display()))
        .arg(format!("-L{}", prefix.join("lib").display()))
        .arg("-lgc")
        .args(linker)
        .status()
        .expect("cc starts");
    assert!(status.success());
    program
}

/// Runs the program on the pinned collector: exit code, standard error, and the statistics.
fn run_program(mode: &str, argument: &str) -> (Option<i32>, String, Value) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = gc_program(dir.path());
    let stats = dir.path().join("stats.json");
    let output = barchan(&[
        "run",
        "--collector=pinned",
        "--mode",
        mode,
        "--stats",
        &stats.to_string_lossy(),
        "--",
        &program.to_string_lossy(),
        argument,
    ]);
    let text = std::fs::read_to_string(&stats).expect("statistics are written");
    (output.status.code(), stderr(&output), serde_json::from_str(&text).expect("JSON"))
}

#[test]
fn run_sums_up_and_the_programs_own_callback_works() {
    let (code, text, stats) = run_program("generational", "exit");
    assert_eq!(code, Some(0), "the program checks its own callback: {text}");
    let process = &stats["processes"][0];
    assert_eq!(process["program"], "program");
    assert!(process["collections"].as_u64() > Some(10), "{stats}");
    assert!(process["pauses"].as_u64() > Some(10), "{stats}");
    let (p50, max) = (process["pause_p50_ms"].as_f64(), process["pause_max_ms"].as_f64());
    assert!(p50 > Some(0.0) && p50 <= max, "{stats}");
    assert!(process["heap_peak_bytes"].as_u64() >= Some(65536), "{stats}");
    assert_eq!(process["incremental"], true, "{stats}");
    assert!(text.contains("collections") && text.contains("peak heap"), "{text}");
}

#[test]
fn run_sums_up_whatever_way_the_program_ends() {
    for (argument, code) in [("_exit", 7), ("segv", 128 + 11), ("kill", 128 + 9)] {
        let (found, text, stats) = run_program("generational", argument);
        assert_eq!(found, Some(code), "{argument}: {text}");
        assert!(stats["processes"][0]["collections"].as_u64() > Some(10), "{argument}: {stats}");
    }
}

/// A record that has no room, at once or after some thousand pauses, costs the program nothing.
#[test]
fn a_record_without_room_leaves_the_program_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = gc_program(dir.path());
    let stats = dir.path().join("stats.json");
    let run = |bytes: u64| {
        // The shell's unit is 512 bytes.
        let script = format!("ulimit -f {} && exec \"$@\"", bytes / 512);
        let output = Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_barchan"), "run"])
            .args(["--collector=pinned", "--mode=full", "--stats"])
            .arg(&stats)
            .arg("--")
            .arg(&program)
            .arg("often")
            .env_remove("BARCHAN_ROOT")
            .output()
            .expect("sh starts");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{bytes}: {text}");
        let stats = std::fs::read_to_string(&stats).expect("statistics are written");
        (text, serde_json::from_str::<Value>(&stats).expect("JSON")["processes"].clone())
    };
    let (text, processes) = run(8 << 10);
    assert!(text.contains("could leave no record of it"), "{text}");
    assert_eq!(processes.as_array().map(Vec::len), Some(0), "{processes}");
    let mut listed = Vec::new();
    for bytes in [20 << 10, 1 << 20] {
        let (_, processes) = run(bytes);
        let process = &processes[0];
        assert!(process["pauses"].as_u64() > Some(6000), "{bytes}: {process}");
        let (p50, max) = (process["pause_p50_ms"].as_f64(), process["pause_max_ms"].as_f64());
        assert!(p50 > Some(0.0) && p50 <= max, "{bytes}: {process}");
        listed.push(process["pauses_listed"].as_u64());
    }
    assert!(listed[0] < Some(2100), "16 kB of them: {listed:?}");
    assert!(listed[1] > Some(6000), "all of them: {listed:?}");
}

/// The same of guest mode's counts.
#[test]
fn counts_without_room_leave_the_program_alone() {
    ok(&["run", "--dune", "--", "/bin/true"]); // which builds what is preloaded
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 2 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_barchan")])
        .args(["run", "--dune", "--", "/bin/echo", "hi"])
        .env_remove("BARCHAN_ROOT")
        .output()
        .expect("sh starts");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(stdout(&output), "hi\n", "{text}");
    assert!(text.contains("left no record of guest mode"), "{text}");
}

#[test]
fn a_signal_to_the_command_reaches_the_program_and_is_summed_up() {
    build_pinned();
    for (name, number) in [("TERM", 15), ("HUP", 1), ("INT", 2), ("USR1", 10)] {
        ended_by(name, number);
    }
}

fn ended_by(name: &str, number: i32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_barchan"))
        .args(["run", "--collector=pinned", "--", "/bin/sh", "-c", "echo $$; exec sleep 600"])
        .env_remove("BARCHAN_ROOT")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut pid = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut pid).expect("a line");
    let id = child.id().to_string();
    let killed = Command::new("kill").args(["-s", name, &id]).status().expect("kill starts");
    assert!(killed.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(128 + number), "{}", stderr(&output));
    let wanted = format!("/bin/sh ended with signal: {number}");
    assert!(stderr(&output).contains(&wanted), "{}", stderr(&output));
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the program is left");
}

#[test]
fn what_cannot_be_said_is_no_panic_and_leaves_the_exit_code() {
    let full = || std::fs::File::create("/dev/full").expect("a device");
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_barchan"));
        command.args(args).env_remove("BARCHAN_ROOT");
        command
    };
    let output = command(&["report", &fixture()]).stdout(full()).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot write to standard output"), "{}", stderr(&output));

    build_pinned();
    let run = ["run", "--collector=pinned", "--", "/bin/sh", "-c", "exit 5"];
    let output = command(&run).stderr(full()).output().expect("it starts");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn a_forked_child_has_a_record_of_its_own() {
    let (code, text, stats) = run_program("full", "fork");
    assert_eq!(code, Some(0), "{text}");
    let processes = stats["processes"].as_array().expect("processes");
    assert_eq!(processes.len(), 2, "{stats}");
    assert_ne!(processes[0]["pid"], processes[1]["pid"]);
    // In full mode each collection stops the world once: the parent's, which the child's
    // collector goes on counting, are not in the child's record.
    for process in processes {
        let of = |key: &str| process[key].as_i64().unwrap_or(-1);
        assert!(of("pauses") > 10 && (of("collections") - of("pauses")).abs() <= 1, "{stats}");
    }
}

#[test]
fn run_of_a_program_without_a_collector_says_so() {
    build_pinned();
    let output = barchan(&["run", "--collector=pinned", "--", "/bin/true"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("/bin/true did not load libgc.so.1"), "{}", stderr(&output));

    let output = barchan(&["run", "--collector=pinned", "--", "/bin/sh", "-c", "exit 5"]);
    assert_eq!(output.status.code(), Some(5));

    // What its children did is not taken for its own.
    let dir = tempfile::tempdir().expect("temporary directory");
    let script = format!("{} exit; exit 5", gc_program(dir.path()).display());
    let output = barchan(&["run", "--collector=pinned", "--", "/bin/sh", "-c", &script]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("/bin/sh did not load libgc.so.1"), "{text}");
    assert!(text.contains(" (program): "), "the child by its name: {text}");
    assert!(!text.contains("  collections "), "{text}");

    let stats = dir.path().join("stats.json");
    let stats = stats.to_string_lossy();
    let run = ["run", "--collector=pinned", "--stats", &stats, "--", "/nonexistent/program"];
    let output = barchan(&run);
    assert_eq!(output.status.code(), Some(127));
    assert!(stderr(&output).contains("cannot start /nonexistent/program"));
    let text = std::fs::read_to_string(&*stats).expect("statistics are written");
    let stats: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(stats["exit_code"], 127);
    assert!(stats["error"].as_str().is_some_and(|e| e.contains("cannot start")), "{stats}");
    let output = barchan(&["run", "--collector=pinned", "--", env!("CARGO_MANIFEST_DIR")]);
    assert_eq!(output.status.code(), Some(126), "a directory: {}", stderr(&output));
}

#[test]
fn a_tiny_benchmark_goes_all_the_way() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (json, html) = (dir.path().join("b.json"), dir.path().join("b.html"));
    let output = ok(&[
        "bench",
        "--workload=list",
        "--scale=0.02",
        "--rounds=3",
        "--config=pinned/full",
        "--config=pinned/generational/mprotect",
        "--json",
        &json.to_string_lossy(),
        "--html",
        &html.to_string_lossy(),
    ]);
    let text = std::fs::read_to_string(&json).expect("measurements");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let runs = report["runs"].as_array().expect("runs");
    let order: Vec<_> = runs.iter().filter_map(|run| run["config"].as_str()).collect();
    let (full, dirty) = ("pinned/full", "pinned/generational/mprotect");
    assert_eq!(order, [full, dirty, dirty, full, full, dirty], "the order rotates");
    assert!(runs.iter().all(|run| run["outcome"] == "measured"), "{text}");
    assert!(runs.iter().all(|run| run["sample"]["total_s"].as_f64() > Some(0.0)), "{text}");
    assert_eq!(report["configs"][1]["reported_source"], "mprotect");
    // Without a terminal the progress is plain lines.
    let progress = stderr(&output);
    assert!(progress.contains("[6/6] round 3: list on") && !progress.contains('\r'), "{progress}");

    let again = ok(&["report", &json.to_string_lossy()]);
    assert_eq!(stdout(&again), stdout(&output), "the table is drawn again as it was");
    assert!(html.is_file());
}

/// The report of a program of the user's on the pinned collector, and what was printed.
fn bench_program(words: &[&str]) -> (Value, String) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (json, html) = (dir.path().join("b.json"), dir.path().join("b.html"));
    let (json, html) = (json.to_string_lossy(), html.to_string_lossy());
    let configs = ["--config=pinned/full", "--config=pinned/generational/mprotect"];
    let files = ["--rounds=2", "--json", &json, "--html", &html, "--"];
    let output = ok(&[&["bench"], &configs[..], &files, words].concat());
    let text = std::fs::read_to_string(&*json).expect("measurements");
    (serde_json::from_str(&text).expect("JSON"), stdout(&output))
}

#[test]
fn a_program_of_the_users_is_measured() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let program = gc_program(dir.path());
    let (report, text) = bench_program(&[&program.to_string_lossy(), "exit"]);
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 4, "{text}");
    for run in runs {
        let sample = &run["sample"];
        assert!(sample["pauses"].as_u64() > Some(10), "{run}");
        assert!(sample["heap_peak_bytes"].as_u64() > Some(10_000), "{run}");
        assert!(sample["max_rss_bytes"].as_u64() > Some(1_000_000), "{run}");
        assert!(sample["total_s"].as_f64() > Some(0.0), "{run}");
        assert!(sample["alloc_longest_ms"].is_null(), "nobody knows: {run}");
        let is_dirty = run["config"] != "pinned/full";
        assert_eq!(sample["incremental"], is_dirty, "{run}");
    }
    assert!(text.contains("program: a program of yours; the same output"), "{text}");
    let command = report["command"].as_str().expect("a command");
    assert!(command.ends_with(&format!("-- {} exit", program.display())), "{command}");

    // What a child collected counts too, and an output that changes is no wrong result.
    let script = format!("{} exit; echo $$ 'and more'", program.display());
    let (report, text) = bench_program(&["sh", "-c", &script]);
    assert!(report["runs"][0]["sample"]["pauses"].as_u64() > Some(10), "{report}");
    assert!(text.contains("sh: a program of yours; its output differs"), "{text}");
    let command = report["command"].as_str().expect("a command");
    let words = shlex::split(command).expect("a shell can read it");
    assert_eq!(words[words.len() - 3..], ["sh", "-c", &script], "{command}");
}

#[test]
fn a_program_that_cannot_be_measured_is_told_why() {
    build_pinned();
    let dir = tempfile::tempdir().expect("temporary directory");
    let html = dir.path().join("b.html").to_string_lossy().into_owned();
    let cases: [(&[&str], &str); 3] = [
        (&["true"], "it loaded no libgc.so.1"),
        (&["sh", "-c", "echo no >&2; exit 3"], "exit status: 3: no"),
        (&["/nonexistent/x"], "cannot start /nonexistent/x"),
    ];
    for (words, wanted) in cases {
        let options = ["bench", "--config=pinned/full", "--html", &html, "--"];
        let output = barchan(&[&options, words].concat());
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let text = stderr(&output);
        assert!(text.contains("cannot be measured: ") && text.contains(wanted), "{text}");
    }
}

/// A program that says itself where its library is does not run on the collector that was meant.
#[test]
fn a_program_with_a_collector_of_its_own_is_told() {
    build_pinned();
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::copy(pinned().join("lib/libgc.so.1"), dir.path().join("libgc.so.1")).expect("a copy");
    let rpath = format!("-Wl,--disable-new-dtags,-rpath,{}", dir.path().display());
    let program = gc_program_linked(dir.path(), &[rpath]);
    let program = program.to_string_lossy();
    let output = barchan(&["run", "--collector=pinned", "--", &program, "exit"]);
    assert_eq!(output.status.code(), Some(0));
    let wanted = format!(") loaded {}, not", dir.path().join("libgc.so.1").display());
    assert!(stderr(&output).contains(&wanted), "{}", stderr(&output));
    let html = dir.path().join("b.html").to_string_lossy().into_owned();
    let bench = ["bench", "--config=pinned/full", "--html", &html, "--", &program, "exit"];
    let output = barchan(&bench);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&wanted), "{}", stderr(&output));
}

/// Prints why the guest's part is skipped, if it is; whether it is there.
fn guest_mode(report: &Value) -> bool {
    let why = &report["guest"]["why"];
    if why.is_string() {
        println!("skipped: the guest's rows: {why}");
    }
    why.is_null()
}

#[test]
fn the_papers_tables_are_made_for_real_at_a_tiny_size() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (json, html) = (dir.path().join("p.json"), dir.path().join("p.html"));
    let output = ok(&[
        "bench",
        "paper",
        "--rounds=2",
        "--scale=0.02",
        "--workload=list",
        "--json",
        &json.to_string_lossy(),
        "--html",
        &html.to_string_lossy(),
    ]);
    let text = std::fs::read_to_string(&json).expect("measurements");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let guest = guest_mode(&report);

    // Tables 2 and 3: each row natively, and in guest mode or with the reason.
    let runs = report["micro"]["runs"].as_array().expect("operations");
    for row in
        ["getpid", "page-fault", "page-walk", "ptrace", "ptrace-sysemu", "trap", "appel1", "appel2"]
    {
        for means in ["linux", "guest"] {
            let of: Vec<_> =
                runs.iter().filter(|run| run["row"] == row && run["means"] == means).collect();
            if means == "guest" && !guest {
                assert!(of.len() == 1 && of[0]["why"].is_string(), "{row}: {of:?}");
                continue;
            }
            assert_eq!(of.len(), 2, "two rounds: {of:?}");
            for run in of {
                assert_eq!(run["outcome"], "measured", "{run}");
                assert!(run["sample"]["tsc_ticks"].as_f64() > Some(0.0), "{run}");
                assert!(run["sample"]["operations"].as_u64() > Some(0), "{run}");
                assert_eq!(run["sample"]["exits"].is_number(), means == "guest", "{run}");
            }
        }
    }

    // Table 6: natively by pagemap-scan and in guest mode by guest-pte, where they are to be had.
    let collector = &report["collector"];
    let measured = |name: &str| {
        let config = collector["configs"].as_array().expect("configurations");
        let config = config.iter().find(|config| config["name"] == name).expect("it is listed");
        if let Some(why) = config["unavailable"].as_str() {
            println!("skipped: {name}: {why}");
            return None;
        }
        let runs = collector["runs"].as_array().expect("runs");
        let of: Vec<_> = runs.iter().filter(|run| run["config"] == name).cloned().collect();
        assert!(!of.is_empty() && of.iter().all(|run| run["outcome"] == "measured"), "{of:?}");
        assert!(of.iter().all(|run| run["sample"]["total_s"].as_f64() > Some(0.0)), "{of:?}");
        Some(of)
    };
    assert!(measured("pinned/full").is_some(), "the pinned collector is always there");
    for mode in ["generational", "incremental"] {
        measured(&format!("barchan/{mode}/pagemap-scan"));
        for source in ["guest-direct", "guest-tlb", "guest-pte"] {
            let in_guest = measured(&format!("barchan/{mode}/{source}"));
            assert_eq!(in_guest.is_some(), guest, "{mode}, {source}");
            for run in in_guest.iter().flatten() {
                assert!(run["sample"]["guest"]["exits"].as_u64() > Some(0), "{run}");
                assert_eq!(run["sample"]["incremental"], true, "{run}");
            }
        }
    }

    let table = stdout(&output);
    for wanted in ["701,413", "15,983", "SCALED DOWN to 0.02", "guest-pml over stock"] {
        assert!(table.contains(wanted), "no {wanted:?} in\n{table}");
    }
    let progress = stderr(&output);
    assert!(progress.contains("[1/") && progress.contains("time left"), "{progress}");
    let again = dir.path().join("again.html");
    let redrawn = ok(&["report", &json.to_string_lossy(), "--html", &again.to_string_lossy()]);
    assert_eq!(stdout(&redrawn), table, "the tables are drawn again as they were");
    let pages = [&html, &again].map(|path| std::fs::read_to_string(path).expect("a page"));
    assert_eq!(pages[0], pages[1], "and so is the page");
}

#[test]
fn a_varied_variable_gives_curves_and_comparisons() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (json, html) = (dir.path().join("v.json"), dir.path().join("v.html"));
    let output = ok(&[
        "bench",
        "--workload=gcbench",
        "--scale=0.05",
        "--rounds=1",
        "--config=pinned/full",
        "--config=barchan/full",
        "--vary=GC_FREE_SPACE_DIVISOR=,1,30",
        "--json",
        &json.to_string_lossy(),
        "--html",
        &html.to_string_lossy(),
    ]);
    let text = std::fs::read_to_string(&json).expect("measurements");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let names: Vec<_> =
        report["runs"].as_array().expect("runs").iter().map(|run| run["config"].as_str()).collect();
    assert_eq!(names.len(), 6, "{text}");
    assert!(names.contains(&Some("barchan/full GC_FREE_SPACE_DIVISOR=30")), "{names:?}");
    assert!(names.contains(&Some("pinned/full GC_FREE_SPACE_DIVISOR unset")), "{names:?}");
    // The variable reached the collector: it collects far more often with the larger divisor.
    let collections = |name: &str| {
        let runs = report["runs"].as_array().expect("runs");
        let run = runs.iter().find(|run| run["config"] == name).expect("the run");
        run["sample"]["collections"].as_u64().expect("a number")
    };
    let of = |value: u32| collections(&format!("barchan/full GC_FREE_SPACE_DIVISOR={value}"));
    assert!(of(30) > 2 * of(1), "{} and {}", of(30), of(1));

    let table = stdout(&output);
    assert!(table.contains("at equal peak heap") && table.contains("a full mode"), "{table}");
    assert!(table.contains("against the variable unset"), "{table}");
    let page = std::fs::read_to_string(&html).expect("the page");
    assert!(page.contains("Time against peak heap") && page.contains("<polyline"), "no curve");
}

#[test]
fn switches_are_drawn_as_what_they_change_and_not_as_a_curve() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let html = dir.path().join("v.html");
    let output = ok(&[
        "bench",
        "--workload=gcbench",
        "--scale=0.05",
        "--rounds=1",
        "--config=barchan/generational",
        "--vary=GC_BARCHAN_OFF=,heat,lift",
        "--html",
        &html.to_string_lossy(),
    ]);
    assert!(stdout(&output).contains("GC_BARCHAN_OFF=lift"), "{}", stdout(&output));
    let page = std::fs::read_to_string(&html).expect("the page");
    assert!(page.contains("barchan/generational: what single values change"), "no figure");
    assert!(page.contains(">heat</text>") && page.contains(">lift</text>"), "no rows");
    assert!(!page.contains("<polyline") && !page.contains("NaN"), "names are no curve");
}

#[test]
fn list_names_workloads_and_configurations() {
    let text = stdout(&ok(&["bench", "--list"]));
    for wanted in ["tree-clustered", "barchan/incremental", "debian/generational/soft-dirty"] {
        assert!(text.contains(wanted), "{text}");
    }
}

/// What the collector does not take is not measured as if it did.
#[test]
fn a_value_that_the_collector_refuses_is_not_measured() {
    build_pinned();
    let vary = "--vary=GC_INITIAL_HEAP_SIZE=,4M,nonsense";
    let text = stdout(&ok(&["bench", "--list", "--config=pinned/full", vary]));
    let state = |value: &str| {
        let line = text.lines().find(|line| line.contains(value)).expect("a line");
        line.split_once(value).expect("as found").1.trim().to_owned()
    };
    assert_eq!(state("GC_INITIAL_HEAP_SIZE unset"), "ready");
    assert_eq!(state("GC_INITIAL_HEAP_SIZE=4M"), "ready");
    let refused = state("GC_INITIAL_HEAP_SIZE=nonsense");
    assert!(refused.starts_with("not available: GC Warning: Bad initial heap size"), "{text}");
}

#[test]
fn reports_of_one_machine_are_drawn_as_one_and_others_are_refused() {
    let text = std::fs::read_to_string(fixture()).expect("fixture");
    let dir = tempfile::tempdir().expect("temporary directory");
    let part = |name: &str, workload: &str, change: &dyn Fn(&mut Value)| {
        let mut report: Value = serde_json::from_str(&text).expect("JSON");
        for list in ["workloads", "runs"] {
            let key = if list == "runs" { "workload" } else { "name" };
            report[list].as_array_mut().expect("a list").retain(|entry| entry[key] == workload);
        }
        change(&mut report);
        let file = dir.path().join(name);
        std::fs::write(&file, report.to_string()).expect("write");
        file.to_string_lossy().into_owned()
    };
    let first = part("first.json", "gcbench", &|_| {});
    let second = part("second.json", "hashmap", &|report| {
        report["machine"]["commit"] = "fedcba987654".into();
    });
    let figures = dir.path().join("figures");
    let (html, whole) = (dir.path().join("page.html"), dir.path().join("whole.html"));
    let merged = ok(&[
        "report",
        &first,
        &second,
        "--html",
        &html.to_string_lossy(),
        "--figures",
        &figures.to_string_lossy(),
    ]);
    // All that the whole report says of the workloads, with both commits.
    let whole_text = stdout(&ok(&["report", &fixture(), "--html", &whole.to_string_lossy()]));
    assert!(whole_text.lines().filter(|line| line.starts_with("  ")).count() > 10);
    for line in whole_text.lines().filter(|line| line.starts_with("  ")) {
        assert!(stdout(&merged).contains(line), "{line:?} is missing");
    }
    let page = std::fs::read_to_string(&html).expect("the page");
    assert!(page.contains("0123456789ab, fedcba987654"), "the commits");
    for name in ["gcbench-time-pauses-and-peak-heap.svg", "hashmap-time-pauses-and-peak-heap.svg"] {
        assert!(figures.join(name).exists(), "no {name}");
    }

    // What could not be measured the first time is there as soon as one of them has it.
    let lacking = part("lacking.json", "gcbench", &|report| {
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let mut hashmap = all["workloads"]
            .as_array()
            .and_then(|all| all.iter().find(|workload| workload["name"] == "hashmap"))
            .expect("a workload")
            .clone();
        hashmap["unavailable"] = "not installed then".into();
        report["workloads"].as_array_mut().expect("a list").push(hashmap);
    });
    assert!(stdout(&ok(&["report", &lacking])).contains("not installed then"));
    for files in [[&lacking, &second], [&second, &lacking]] {
        let text = stdout(&ok(&["report", files[0], files[1]]));
        assert!(!text.contains("not installed then"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("hashmap: ")), "{text}");
    }

    let other = |change: &dyn Fn(&mut Value)| part("other.json", "hashmap", change);
    let refused = |file: &str, wanted: &str| {
        let output = barchan(&["report", &first, file]);
        assert_eq!(output.status.code(), Some(1), "{wanted}");
        assert!(stderr(&output).contains(wanted), "{}", stderr(&output));
    };
    refused(&first, "is in both");
    refused(&other(&|report| report["machine"]["cpu"] = "Another CPU".into()), "the machine");
    refused(&other(&|report| report["pause_ms"] = 7.into()), "limit of pauses");
    refused(&other(&|report| report["rounds"] = 3.into()), "the number of rounds");
    let rebuilt = |report: &mut Value| {
        report["collectors"][2]["description"] = "of another build".into();
    };
    refused(&other(&rebuilt), "a collector");
}
