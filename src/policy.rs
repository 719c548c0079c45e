//! The operator's decisions about services and endpoints; replaceable while running, as one document.
//!
//! Takes a [`PolicyConfig`]; gives a [`Policy`] that answers for each service, address and application. Knows Istio's
//! grammar and the registry's terms, and neither what is in the registry nor how services are translated.

mod address;
pub mod compiled;
pub mod document;
mod globs;
mod matches;
pub mod visibility;

pub use address::Refusal;
pub use compiled::{Policy, Rules};
pub use document::{Balance, PolicyConfig};
pub use globs::Globs;
pub use matches::{GlobMatches, Matches};
pub use visibility::{Consumers, Mode, Source};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    fn policy(json: serde_json::Value) -> Result<Policy> {
        Policy::new(serde_json::from_value(json).unwrap(), &[], "ns")
    }

    #[test]
    fn exclude_beats_include() {
        let policy = policy(serde_json::json!({"include": ["com.example.*"], "exclude": ["*Internal*"]})).unwrap();
        assert!(policy.serves("com.example.Demo:1.0@DEFAULT#@#x#@#SOFA"));
        assert!(!policy.serves("com.example.InternalDemo:1.0@DEFAULT#@#x#@#SOFA"));
        assert!(!policy.serves("org.example.Demo:1.0@DEFAULT#@#x#@#SOFA"));
    }

    #[test]
    fn an_include_left_blank_is_no_reason_to_serve_nothing() {
        assert!(policy(serde_json::json!({"include": []})).unwrap().serves("any"));
    }

    #[test]
    fn a_bad_document_is_refused_with_every_mistake() {
        let long = format!("{}.io/{}", "x".repeat(31), "y".repeat(30));
        let labels =
            ["security.istio.io/tlsMode", "istio.io/rev", "x.kubernetes.io/y", "-a", "app", "service", &long, "rpcVer"];
        let bad = policy(serde_json::json!({"labels": labels, "exportTo": ["*", "a"], "ports": {"bolt": 0}}));
        let text = bad.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 9, "{text}");
        assert!(text.contains("policy.ports.bolt: 0") && text.contains("policy.exportTo: \"*\""), "{text}");
    }

    #[test]
    fn of_several_overrides_the_most_specific_decides_each_setting() {
        let policy = policy(serde_json::json!({"exportTo": ["."], "overrides": {
            "*": {"port": 1, "exportTo": ["~"], "dns": true},
            "com.example.*": {"port": 2, "protocol": "HTTP"},
            "com.example.Demo*": {"host": "demo.example.com", "dns": false},
            "com.example.?emo*": {"host": "other.example.com"},
        }}))
        .unwrap();
        let rules = policy.rules("com.example.Demo:1.0@DEFAULT#@#x#@#SOFA");
        assert_eq!((rules.host, rules.port, rules.protocol), (Some("demo.example.com"), Some(2), Some("HTTP")));
        assert_eq!((rules.dns, rules.export_to), (false, &["~".to_owned()][..]));
        let rules = policy.rules("org.example");
        assert_eq!((rules.host, rules.port, rules.dns), (None, Some(1), true));
    }

    #[test]
    fn a_bad_override_or_locality_is_named_with_its_path() {
        let bad = policy(serde_json::json!({
            "locality": {"RZ1": "a//b", "RZ2": "a/b/c/d", "RZ3": "cn-hz/rz3"},
            "overrides": {"x*": {"host": "Demo.Example.com", "port": 0, "protocol": "bolt", "exportTo": ["~", "."],
                                 "labels": ["sofa.registry/service"]}},
        }));
        let text = bad.unwrap_err().to_string();
        assert_eq!(text.lines().count(), 7, "{text}");
        for says in ["locality.RZ1", "locality.RZ2", "overrides[x*].host", "[x*].port", "[x*].protocol", "[x*].labels"]
        {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn the_first_mtls_rule_that_matches_decides() {
        let identity = "spiffe://cluster.local/ns/orders/sa/orders";
        let policy = policy(serde_json::json!({"mtls": [
            {"applications": ["ord*"], "cidrs": ["10.0.0.0/8"], "identities": [identity]},
            {"zones": ["RZ1"]},
        ]}))
        .unwrap();
        let ask = |address: &str, application, zone| policy.mtls(address.parse().ok(), application, zone);
        assert_eq!(ask("10.1.1.1", Some("orders"), None).as_deref(), Some(&[identity.to_owned()][..]));
        assert_eq!(ask("11.1.1.1", Some("orders"), None), None);
        assert_eq!(ask("10.1.1.1", None, Some("RZ2")), None);
        assert_eq!(ask("10.1.1.1", Some("orders"), Some("RZ1")).unwrap().len(), 1);
        assert_eq!(ask("11.1.1.1", None, Some("RZ1")).unwrap().len(), 0);
        let bad = super::tests::policy(serde_json::json!({"mtls": [{}, {"zones": ["a"], "identities": ["orders"]}]}));
        let text = bad.unwrap_err().to_string();
        assert!(
            text.contains("policy.mtls[0]: it names no") && text.contains("policy.mtls[1].identities: \"orders\""),
            "{text}"
        );
    }

    #[test]
    fn equal_documents_have_equal_hashes() {
        let hash = |json| policy(json).unwrap().hash().to_owned();
        assert_eq!(hash(serde_json::json!({})), hash(serde_json::json!({"include": ["*"]})));
        assert_ne!(hash(serde_json::json!({})), hash(serde_json::json!({"include": ["a"]})));
    }
}
