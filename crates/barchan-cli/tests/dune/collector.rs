//! The patched collector in guest mode.

use serde_json::Value;

use crate::same::{available, barchan, finish};

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
        let said = &output.stderr;
        assert!(output.status.success(), "{mode}: {}: {said}", output.status);
        let result: Value = serde_json::from_str(&output.stdout).expect("one line of JSON");
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
