//! How long the first sync takes, and what it costs.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::server::{Server, Writer, publish_many};

/// A field of this process's status, in MiB.
fn memory(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() / 1_024
}

/// Answers how long it takes from the first write to the last.
pub(crate) fn first_sync(server: &mut Server, services: usize) -> Duration {
    let namespace = server.namespace();
    // As fast as the API server goes.
    let open = || {
        Writer::with(&server.kubeconfig("session"), &namespace, json!({}), json!({ "rate": 10_000, "lease": "15s" }))
    };
    let writer = open();
    publish_many(&writer, 0..services, 10);
    writer.loaded();
    writer.flush();
    let (before, begin) = (memory("VmRSS:"), Instant::now());
    let report = loop {
        let report = writer.report();
        if report.in_sync {
            break report;
        }
        let late = begin.elapsed().as_secs() > 1_200;
        assert!(!late && report.problem_count == 0, "{report:#?}");
        std::thread::sleep(Duration::from_millis(50)); // the polling interval
    };
    let took = begin.elapsed();
    let seconds = took.as_secs_f64();
    let after = memory("VmRSS:");
    assert_eq!((report.deletes, report.refused), (0, 0));
    println!(
        "    {services} services of 10 endpoints: {} writes in {seconds:.1} s ({:.0} a second), memory {before} -> {after} MiB",
        report.applies,
        report.applies as f64 / seconds
    );
    let applies = report.applies;
    writer.publish("many00001", 2, &["10.0.1.1:80"]);
    let begin = Instant::now();
    let report = writer.sync();
    println!(
        "    a change after it: {} write in {:.0} ms",
        report.applies - applies,
        begin.elapsed().as_secs_f64() * 1e3
    );
    writer.close();
    let writer = open();
    publish_many(&writer, 0..services, 10);
    writer.publish("many00001", 2, &["10.0.1.1:80"]);
    writer.loaded();
    writer.flush();
    let begin = Instant::now();
    let report = writer.sync();
    println!(
        "    after a restart: {} writes, compared in {:.1} s",
        report.applies + report.deletes,
        begin.elapsed().as_secs_f64()
    );
    assert_eq!(report.applies + report.deletes, 0);
    assert_eq!(server.names(&namespace, "serviceentries").len(), services);
    writer.close();
    took
}
