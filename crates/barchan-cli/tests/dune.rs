//! Unmodified programs in guest mode: the same output and exit status as natively.
//!
//! `BARCHAN_DUNE_RUNS` says how often each is run; each run has a time limit.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Emulated hosts and busy machines are slow.
const LIMIT: Duration = Duration::from_secs(300);

fn runs() -> u32 {
    std::env::var("BARCHAN_DUNE_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}

/// Runs a command, or panics when it takes too long.
fn finish(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let start = Instant::now();
    // What is printed here fits a pipe.
    while child.try_wait().expect("our child").is_none() {
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            panic!("{command:?} did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("readable")
}

fn barchan() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barchan"));
    command.env_remove("BARCHAN_ROOT").env_remove("LD_PRELOAD");
    command
}

/// Whether guest mode works here; prints why not.
fn available() -> bool {
    let output = finish(barchan().args(["doctor", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    if report["guest_mode"]["available"] == true {
        return true;
    }
    println!("skipped: no guest mode here: {}", report["guest_mode"]["why"]);
    false
}

/// Compares a shell script in guest mode with the same natively, and that all of it was in guest mode.
fn same(program: &str, arguments: &[&str]) {
    if !available() {
        return;
    }
    if Command::new(program).arg("--version").output().is_err() {
        println!("skipped: {program} is not installed");
        return;
    }
    let native = finish(Command::new(program).args(arguments));
    let directory = tempfile::tempdir().expect("a directory");
    let stats = directory.path().join("stats.json");
    for run in 0..runs() {
        let output = finish(
            barchan()
                .args(["run", "--dune", "--stats"])
                .arg(&stats)
                .args(["--", program])
                .args(arguments),
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&native.stdout),
            "run {run}: {said}"
        );
        assert_eq!(output.status.code(), native.status.code(), "run {run}: {said}");
        let text = std::fs::read_to_string(&stats).expect("counts");
        let counts: Value = serde_json::from_str(&text).expect("JSON");
        let processes = counts["guest_processes"].as_array().expect("a list");
        assert!(!processes.is_empty(), "it was not in guest mode: {said}");
        assert!(processes.iter().any(|p| p["exits"].as_u64() > Some(0)), "{text}");
    }
}

#[test]
fn a_shell_pipeline() {
    let script = "for i in 1 2 3 4 5; do echo $i | cat | tr 1-9 a-i; done; \
                  seq 2000 | sort -r | sort -n | md5sum; ls / | wc -l; exit 3";
    same("bash", &["-c", script]);
}

#[test]
fn python_with_threads_and_children() {
    let script = "
import threading, subprocess, hashlib, signal, os
out = []
def work(i): out.append((i, hashlib.md5(bytes(range(256)) * 100 * i).hexdigest()))
threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(out))
print(subprocess.run('ls / | sort', shell=True, capture_output=True).stdout)
got = []
signal.signal(signal.SIGALRM, lambda *_: got.append('alarm'))
signal.setitimer(signal.ITIMER_REAL, 0.05)
while not got: pass
pid = os.fork()
if pid == 0: os._exit(9)
print(got, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    same("python3", &["-c", script]);
}

#[test]
fn perl_with_a_fork_and_an_alarm() {
    let script = "$s += $_ * 2 for 1 .. 100000; print \"$s\\n\", `echo sub`; \
                  $SIG{ALRM} = sub { print \"alarm\\n\" }; alarm 1; sleep 5; \
                  if (!($p = fork)) { exit 3 } waitpid $p, 0; print $? >> 8, \"\\n\"";
    same("perl", &["-e", script]);
}

#[test]
fn sqlite() {
    let script = "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c \
                  where x<20000) insert into t select x, x*x%97 from c; create index i on t(b); \
                  select b,count(*),sum(a) from t group by b order by b limit 5;";
    same("sqlite3", &[":memory:", script]);
}

#[test]
fn git() {
    same("git", &["-C", env!("CARGO_MANIFEST_DIR"), "log", "--stat", "-2"]);
}

#[test]
fn guile() {
    let script = "(define (f n) (if (< n 2) n (+ (f (- n 1)) (f (- n 2))))) (display (f 20))";
    same("guile", &["-c", script]);
}

#[test]
fn a_compiler_and_what_it_makes() {
    let script = "d=$(mktemp -d) && cd $d && \
                  printf '#include <stdio.h>\\nint main(void){puts(\"made\");return 4;}\\n' >a.c && \
                  cc -O2 a.c -o a && ./a; echo $?; rm -r $d";
    same("sh", &["-c", script]);
}

#[test]
fn programs_that_crash_end_as_natively() {
    for signal in ["SEGV", "ABRT", "KILL", "FPE"] {
        same("bash", &["-c", &format!("bash -c 'kill -{signal} $$'; echo $?")]);
    }
}

#[test]
fn the_collector_on_the_guests_dirty_bits() {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../build");
    let workload = format!("{built}/workloads/gcbench");
    if !std::path::Path::new(&format!("{built}/collector/patched/prefix/lib/libgc.so.1")).exists()
        || !std::path::Path::new(&workload).exists()
    {
        println!("skipped: the collector or the workloads are not built: barchan build");
        return;
    }
    if !available() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let stats = directory.path().join("stats.json");
    for mode in ["generational", "incremental"] {
        let output = finish(
            barchan()
                .args(["run", "--dune", "--tracker", "guest-pte", "--mode", mode, "--stats"])
                .arg(&stats)
                .arg("--")
                .args([&workload, "--scale", "0.1", "--stretch-depth", "15"])
                .args(["--long-depth", "13", "--max-depth", "12", "--json"]),
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mode}: {}: {said}", output.status);
        let result: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        assert_eq!(result["ok"], true, "it checks its own results: {result}");
        assert_eq!(result["incremental"], true, "{result}");
        let text = std::fs::read(&stats).expect("written");
        let stats: Value = serde_json::from_slice(&text).expect("JSON");
        let process = &stats["processes"][0];
        assert_eq!(process["source"], "guest-pte", "{stats}");
        assert!(process["dirty_bits"]["pages_armed"].as_u64() > Some(0), "{stats}");
        assert!(stats["guest_processes"][0]["exits"].as_u64() > Some(0), "{stats}");
    }
}
