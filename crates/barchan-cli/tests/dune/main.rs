//! Unmodified programs in guest mode: the same output and exit status as natively.
//!
//! `BARCHAN_DUNE_RUNS` says how often each is run, and lets those run that take minutes; each run has a
//! time limit.

mod collector;
mod compilers;
mod cpython;
mod crashes;
mod same;

use same::Case;

/// Both ends in this status, and prints this.
fn same(command: &[&str], status: i32, says: &str) {
    Case { command, status, says, runs: 2 }.same();
}

#[test]
fn a_shell_pipeline() {
    let script = "for i in 1 2 3 4 5; do echo $i | cat | tr 1-9 a-i; done; \
                  seq 2000 | sort -r | sort -n | md5sum; ls / | wc -l; exit 3";
    same(&["bash", "-c", script], 3, "e\n");
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
    same(&["python3", "-c", script], 0, "['alarm'] 9");
}

#[test]
fn perl_with_a_fork_and_an_alarm() {
    let script = "$s += $_ * 2 for 1 .. 100000; print \"$s\\n\", `echo sub`; \
                  $SIG{ALRM} = sub { print \"alarm\\n\" }; alarm 1; sleep 5; \
                  if (!($p = fork)) { exit 3 } waitpid $p, 0; print $? >> 8, \"\\n\"";
    same(&["perl", "-e", script], 0, "alarm\n3\n");
}

#[test]
fn sqlite() {
    let script = "create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c \
                  where x<20000) insert into t select x, x*x%97 from c; create index i on t(b); \
                  select b,count(*),sum(a) from t group by b order by b limit 5;";
    same(&["sqlite3", ":memory:", script], 0, "0|206|");
}

#[test]
fn git() {
    let script = "set -e; d=$(mktemp -d); cd $d; export HOME=$d GIT_CONFIG_NOSYSTEM=1; \
                  export GIT_AUTHOR_DATE=@1700000000 GIT_COMMITTER_DATE=@1700000000; \
                  git init -q -b main .; git config user.name n; git config user.email n@example.org; \
                  seq 300 >a; git add a; git commit -qm one; \
                  git checkout -qb side; seq 2 301 >a; git commit -qam two; \
                  git checkout -q main; echo b >b; git add b; git commit -qm three; \
                  git merge -q --no-edit side; git repack -adq; git fsck --strict; \
                  git clone -q . c; git -C c log --stat --format=%H%n%s; rm -rf $d";
    same(&["bash", "-c", script], 0, "Merge branch 'side'");
}

#[test]
fn guile() {
    let script = "(define (f n) (if (< n 2) n (+ (f (- n 1)) (f (- n 2))))) (display (f 20))";
    same(&["guile", "-c", script], 0, "6765");
}

/// The project's own workloads on the distribution's collector, whole and generational. Not `stress` in the latter: it
/// forks, and that collector unprotects a page before it notes that it is dirty. A child forked between the two loses
/// what it writes there, natively too (1 of 290 runs); in guest mode there is more time for it.
#[test]
fn the_workloads() {
    if !same::available() || !same::installed("make") || !same::installed("python3") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("UTF-8");
    let workloads = concat!(env!("CARGO_MANIFEST_DIR"), "/../../workloads");
    let mut make = std::process::Command::new("make");
    let made = same::finish(make.args(["-s", "-C", workloads]).arg(format!("OUT={path}")));
    assert!(made.status.success(), "{}{}", made.stdout, made.stderr);
    let script = format!(
        "set -e; cd {path}; \
         for w in gcbench list hashmap xml tree mtalloc stress; do for mode in 0 1; do \
         if [ $w$mode = stress1 ]; then continue; fi; \
         unset GC_ENABLE_INCREMENTAL GC_PAUSE_TIME_TARGET; \
         if [ $mode = 1 ]; then export GC_ENABLE_INCREMENTAL=1 GC_PAUSE_TIME_TARGET=999999; fi; \
         ./$w --scale 0.02 --json >out; \
         python3 -c 'import json; j = json.load(open(\"out\")); \
         print(j[\"workload\"], j[\"ok\"], j[\"params\"], j[\"results\"])'; done; done"
    );
    Case { command: &["bash", "-c", &script], status: 0, says: "stress True", runs: 1 }.same();
}
