//! Scenarios in which the registry must do its own job with our jar present and MoX off.

use std::net::{Ipv4Addr, TcpListener};

use harness::{
    parts::{Client, Registry},
    process::connect,
};

use crate::Group;

pub(crate) const NOT_ENABLED: Group = Group {
    start: || {
        assert!(connect(9700).is_err(), "port 9700 is taken, and this test must see it closed");
        Registry::start("not-enabled", None, &[])
    },
    scenarios: &[("not_enabled_the_jar_does_nothing", |registry| {
        registry_does_its_job();
        assert!(connect(9700).is_err());
        assert_eq!(registry.our_errors(), [] as [String; 0]);
    })],
};

pub(crate) const PORT_TAKEN: Group = Group {
    start: || {
        // Taken until the process ends.
        let taken = Box::leak(Box::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()));
        Registry::start("port-taken", Some(taken.local_addr().unwrap().port()), &["-Dmox.enabled=true"])
    },
    scenarios: &[("with_our_port_taken_the_registry_starts_without_us", |registry| {
        registry_does_its_job();
        one_error_with(registry, &[&format!("127.0.0.1:{}", registry.mox)]);
    })],
};

pub(crate) const INVALID_VALUE: Group = Group {
    start: || Registry::start("invalid-value", None, &["-Dmox.enabled=true", "-Dmox.protect.startup-hold=soon"]),
    scenarios: &[("with_an_invalid_value_the_registry_starts_without_us", |registry| {
        registry_does_its_job();
        assert!(connect(9700).is_err());
        one_error_with(registry, &["mox.protect.startup-hold", "soon"]);
    })],
};

fn registry_does_its_job() {
    let data_id = "com.example.Plain:1.0@DEFAULT";
    let (mut publisher, mut subscriber) = (Client::start("client-publisher"), Client::start("client-subscriber"));
    subscriber.tell(&format!("subscribe {data_id}"));
    publisher.tell(&format!("publish a {data_id} 10.9.0.1:12200?weight=100"));
    subscriber.wait_for_data(data_id, &["10.9.0.1:12200?weight=100"]);
    publisher.tell(&format!("publish b {data_id} 10.9.0.2:12200"));
    subscriber.wait_for_data(data_id, &["10.9.0.1:12200?weight=100", "10.9.0.2:12200"]);
    publisher.tell("unpublish a");
    subscriber.wait_for_data(data_id, &["10.9.0.2:12200"]);
    publisher.kill();
    subscriber.wait_for_data(data_id, &[]);
}

fn one_error_with(registry: &Registry, parts: &[&str]) {
    let errors = registry.our_errors();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    for part in parts {
        assert!(errors[0].contains(part), "{part} is not in: {}", errors[0]);
    }
}
