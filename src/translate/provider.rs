//! A provider in the text of a payload, read as the registry's own clients read it: SOFARPC 5.13 (`SofaRegistryHelper`), Dubbo
//! 2.7 and 3 (`URL.valueOf`, `RegistryDirectory`, `SofaRegistryServiceDiscovery`). `tests/real/corpus.rs` compares with them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Schemes of Dubbo's registry that name no provider (`UrlUtils.isProvider`, `RegistryDirectory.notify`).
const NO_PROVIDERS: [&str; 7] = ["override", "route", "condition", "script", "consumer", "empty", "provider"];
/// The application of a provider, by the first of these that is not blank: SOFARPC's three in its order, then Dubbo's.
const APPLICATION: [&str; 5] = ["appName", "app_name", "self_app_name", "application", "app"];
/// The same for a provider of Dubbo, whose consumers look at its own alone.
const APPLICATION_OF_DUBBO: [&str; 5] = ["application", "app", "appName", "app_name", "self_app_name"];

/// A payload's text, taken apart.
#[derive(Debug)]
pub struct Provider<'a> {
    /// The scheme of a text that has one.
    pub scheme: Option<&'a str>,
    /// The host as it is written, without brackets and zone id.
    pub host: &'a str,
    /// The port; of an instance 0, which has one for each protocol.
    pub port: u16,
    /// Whether Dubbo's clients read the text, and not SOFARPC's.
    is_dubbo: bool,
    parameters: Parameters<'a>,
}

/// Why a text is no provider.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The text has none of the known forms.
    Form,
    /// The text has no port, or a port outside 1..65535.
    Port,
    /// The scheme names no provider; such a text needs no port.
    Scheme,
}

/// Parameters, by name.
#[derive(Debug)]
enum Parameters<'a> {
    /// Of a URL: the pairs of its query, in their order.
    Query(Vec<Pair<'a>>),
    /// Of a Dubbo 3 instance.
    Instance(&'a Instance),
}

/// A pair of a query.
#[derive(Debug)]
struct Pair<'a> {
    name: &'a str,
    /// What stands behind the first `=`, if there is one.
    value: Option<&'a str>,
}

/// An instance of Dubbo 3's service discovery.
#[derive(Debug, serde::Deserialize)]
pub struct Instance {
    host: String,
    port: u32,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    metadata: Option<BTreeMap<String, Value>>,
}

/// An entry of an instance's `dubbo.endpoints`; a port that it does not tell is 0.
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct InstancePort {
    port: u32,
    protocol: String,
}

impl Instance {
    /// An instance from a text that begins with `{`.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        serde_json::from_str(text).map_err(|_| Fault::Form)
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(key)?.as_str()
    }

    /// The ports that `dubbo.endpoints` tells, by protocols in lower case. There stand all by which the instance is called
    /// (`ProtocolPortsMetadataCustomizer`), and of two of one name the first counts (`ServiceInstanceMetadataUtils.java:194-204`).
    /// Empty: it does not tell, and the instance has its own port. Without that it is none (`DefaultServiceInstance`).
    pub fn ports(&self) -> Result<BTreeMap<String, u32>, Fault> {
        if self.port == 0 {
            return Err(Fault::Port);
        }
        let told = self.metadata("dubbo.endpoints").map(serde_json::from_str::<Vec<InstancePort>>);
        let mut ports = BTreeMap::new();
        for InstancePort { port, protocol } in told.and_then(Result::ok).into_iter().flatten() {
            ports.entry(protocol.to_ascii_lowercase()).or_insert(port);
        }
        Ok(ports)
    }

    /// Its own port.
    pub fn own_port(&self) -> u32 {
        self.port
    }
}

/// A port from what an instance says of it.
pub fn port(port: u32) -> Result<u16, Fault> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or(Fault::Port)
}

/// A host without the brackets of an IPv6 address and without its zone id, which means something on the provider's own machine
/// only.
fn bare(host: &str) -> &str {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.split_once('%') {
        Some((address, _)) if address.contains(':') => address,
        _ => bare,
    }
}

/// Whether a protocol's name could be a scheme; that of an instance is any text.
pub fn is_scheme(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

impl<'a> Provider<'a> {
    /// The provider that an instance is.
    pub fn of_instance(instance: &'a Instance) -> Self {
        let parameters = Parameters::Instance(instance);
        Self { scheme: None, host: bare(&instance.host), port: 0, is_dubbo: true, parameters }
    }

    /// The provider in `[scheme://]host:port[/path][?parameters]`; to Dubbo's clients it may have a user before the host and a
    /// fragment after the path.
    pub fn of_url(text: &'a str, is_dubbo: bool) -> Result<Self, Fault> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
            Some((before, _)) if !before.contains('?') => return Err(Fault::Form),
            _ => (None, text),
        };
        let is_other = |scheme: &str| NO_PROVIDERS.iter().any(|known| known.eq_ignore_ascii_case(scheme));
        if scheme.is_some_and(is_other) {
            return Err(Fault::Scheme);
        }
        let (authority, query) = match rest.find(|c| c == '/' || c == '?' || is_dubbo && c == '#') {
            Some(end) => (&rest[..end], rest[end..].split_once('?').map_or("", |(_, query)| query)),
            None => (rest, ""),
        };
        let authority = match authority.rsplit_once('@') {
            Some((_, address)) if is_dubbo => address,
            _ => authority,
        };
        let (host, number) = authority.rsplit_once(':').ok_or(Fault::Form)?;
        let port = number.parse().ok().filter(|port| *port != 0).ok_or(Fault::Port)?;
        let parameters = Parameters::Query(pairs(query, is_dubbo));
        Ok(Self { scheme, host: bare(host), port, is_dubbo, parameters })
    }

    /// The value of a parameter.
    pub fn parameter(&self, key: &str) -> Option<&'a str> {
        match &self.parameters {
            Parameters::Query(pairs) => in_query(pairs, key, self.is_dubbo),
            Parameters::Instance(instance) => instance.metadata(key),
        }
    }

    /// The value of a parameter, unless it is blank.
    fn text(&self, key: &str) -> Option<&'a str> {
        self.parameter(key).filter(|value| !value.trim().is_empty())
    }

    /// The weight that the provider names. To clients a text that is no Java `int` names none.
    pub fn weight(&self) -> Option<i32> {
        let other = || if self.is_dubbo { None } else { self.parameter("_WEIGHT") };
        self.parameter("weight").or_else(other)?.parse().ok()
    }

    /// The zone that the provider names.
    pub fn zone(&self) -> Option<&'a str> {
        self.text("zone")
    }

    /// The application's name as it was given.
    pub fn application(&self) -> Option<&'a str> {
        let name = match &self.parameters {
            Parameters::Query(_) => None,
            // `SofaRegistryServiceDiscovery.java:101`, `InstanceAddressURL.java:195-196`.
            Parameters::Instance(instance) => instance.name.as_deref().filter(|name| !name.trim().is_empty()),
        };
        let keys = if self.is_dubbo { APPLICATION_OF_DUBBO } else { APPLICATION };
        name.or_else(|| keys.iter().find_map(|key| self.text(key)))
    }

    /// Whether Dubbo's consumers take it for a provider, and not for a configurator or something else that stands among
    /// providers (`RegistryDirectory.java:109-146, 484-499`). Among instances nothing else stands.
    pub fn is_provider(&self) -> bool {
        if matches!(self.parameters, Parameters::Instance(_)) {
            return true;
        }
        let category = self.parameter("category").is_none_or(|category| category.is_empty() || category == "providers");
        category && self.parameter("compatible_config").is_none_or(str::is_empty)
    }

    /// Whether Dubbo's consumers call it: `disabled` decides where it is given, else `enabled` (`RegistryDirectory.java:322-331`);
    /// whatever is not `true`, in any case, is false.
    pub fn is_in_service(&self) -> bool {
        let given = |key: &str| self.parameter(key).filter(|value| !value.is_empty());
        match given("disabled") {
            Some(disabled) => !disabled.eq_ignore_ascii_case("true"),
            None => given("enabled").is_none_or(|enabled| enabled.eq_ignore_ascii_case("true")),
        }
    }
}

/// The pairs of a query, without what Java trims around each: U+3000 stays. To Dubbo's clients `;` parts pairs as well.
fn pairs(query: &str, is_dubbo: bool) -> Vec<Pair<'_>> {
    let is_between = |byte: u8| byte == b'&' || is_dubbo && byte == b';';
    let ends = query.bytes().enumerate().filter(|(_, byte)| is_between(*byte)).map(|(at, _)| at);
    let mut pairs = Vec::with_capacity(query.bytes().filter(|byte| is_between(*byte)).count() + 1);
    let mut from = 0;
    for end in ends.chain([query.len()]) {
        let pair = query[from..end].trim_matches(|c| c <= ' ');
        let equals = pair.bytes().position(|byte| byte == b'=');
        pairs.push(match equals {
            Some(at) => Pair { name: &pair[..at], value: Some(&pair[at + 1..]) },
            None => Pair { name: pair, value: None },
        });
        from = end + 1;
    }
    pairs
}

/// The value of a key in a query that clients read into a map from left to right: the last of two counts, and a key without `=`
/// has itself as value (SOFARPC's `SofaRegistryHelper.java:293-307`). To Dubbo's clients `default.x=…` counts where there is no
/// `x`, the first of two (`URL.java:253-267`).
fn in_query<'a>(pairs: &[Pair<'a>], key: &str, is_dubbo: bool) -> Option<&'a str> {
    if let Some(pair) = pairs.iter().rfind(|pair| pair.name == key) {
        return Some(pair.value.unwrap_or(pair.name));
    }
    let is_default = |pair: &&Pair<'a>| pair.value.is_some() && pair.name.strip_prefix("default.") == Some(key);
    if is_dubbo { pairs.iter().find(is_default)?.value } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_a_map_filled_from_left_to_right() {
        for (query, value) in [
            ("x=1", Some("1")),
            ("x=1&x=2", Some("2")),
            ("x=1&y=3&x=", Some("")),
            ("a=1& x=2 ", Some("2")),
            ("x", Some("x")),
            ("x=1&x", Some("x")),
            ("default.x=1", Some("1")),
            ("default.x=1&default.x=2", Some("1")),
            ("x=2&default.x=1", Some("2")),
            ("default.x=1&x=2", Some("2")),
            ("default.x&default.x=2", Some("2")),
            ("a=1;x=2;b=3", Some("2")),
            ("x=a=b", Some("a=b")),
            ("xx=1&[x]=2", None),
            ("a=1&\u{3000}x=2&\u{1}x=3\u{3000}", Some("3\u{3000}")),
            ("", None),
        ] {
            assert_eq!(in_query(&pairs(query, true), "x", true), value, "{query}");
            let means_more = query.contains("default.") || query.contains(';');
            assert!(means_more || in_query(&pairs(query, false), "x", false) == value, "{query}");
        }
        for (query, value) in [("default.x=1", None), ("x=1;x=2", Some("1;x=2")), ("default.x=1&x=2", Some("2"))] {
            assert_eq!(in_query(&pairs(query, false), "x", false), value, "{query}");
        }
    }

    #[test]
    fn a_weight_is_a_java_int() {
        let of = |query: &str, is_dubbo| {
            Provider::of_url(&format!("h:1?{query}"), is_dubbo).ok().and_then(|provider| provider.weight())
        };
        for (text, weight) in
            [("7", Some(7)), ("+7", Some(7)), ("-7", Some(-7)), ("007", Some(7)), ("7.0", None), ("2147483648", None)]
        {
            assert_eq!(of(&format!("weight={text}"), true), weight, "{text}");
            assert_eq!(of(&format!("_WEIGHT={text}"), false), weight, "{text}");
        }
        assert_eq!(of("weight=&_WEIGHT=5", false), None, "weight is given");
        assert_eq!(of("_WEIGHT=5", true), None, "a word of SOFARPC's");
    }

    #[test]
    fn the_application_is_the_first_that_is_named() {
        let read = |query: &str, is_dubbo| {
            let text = format!("10.0.0.1:1?{query}");
            Provider::of_url(&text, is_dubbo).unwrap().application().map(str::to_owned)
        };
        let of = |query: &str| read(query, false);
        assert_eq!(of("app_name=a&appName=b&self_app_name=c&application=d&app=e"), Some("b".into()));
        assert_eq!(of("app=e&application=d&self_app_name=c&app_name=a&appName="), Some("a".into()));
        assert_eq!(of("app_name=%20&application= "), Some("%20".into()));
        assert_eq!(of("app_name= &application=支付"), Some("支付".into()));
        assert_eq!(of("zone=a"), None);
        assert_eq!(read("appName=a&app=b&application=c", true), Some("c".into()));
        assert_eq!(read("appName=a&application=", true), Some("a".into()));
    }

    #[test]
    fn an_instance_names_its_application_and_its_ports() {
        let read = |json: &str| {
            let instance = Instance::parse(json)?;
            let provider = Provider::of_instance(&instance);
            let (host, app) = (provider.host.to_owned(), provider.application().map(str::to_owned));
            Ok((host, app, instance.own_port(), instance.ports()?.into_iter().collect::<Vec<_>>()))
        };
        let is = |host: &str, app: Option<&str>, own, ports: &[(&str, u32)]| {
            let ports = ports.iter().map(|(protocol, port)| ((*protocol).to_owned(), *port)).collect();
            Ok((host.to_owned(), app.map(str::to_owned), own, ports))
        };
        let with = |endpoints: &str| {
            let endpoints = serde_json::to_string(endpoints).unwrap();
            format!(
                r#"{{"host":"10.0.0.7","port":20880,"name":"demo","metadata":{{"dubbo.endpoints":{endpoints},"app":"x"}}}}"#
            )
        };
        let two = with(r#"[{"port":1,"protocol":"tri"},{"port":2,"protocol":"dubbo"}]"#);
        for (endpoints, ports) in [
            ("[]", &[][..]),
            ("{", &[]),
            ("[null]", &[]),
            (r#"[{"port":1,"protocol":"tri"}]"#, &[("tri", 1)]),
            (r#"[{"port":1,"protocol":"tri"},{"port":2,"protocol":"dubbo"}]"#, &[("dubbo", 2), ("tri", 1)]),
            (r#"[{"port":1,"protocol":"TRI"},{"port":2,"protocol":"tri"}]"#, &[("tri", 1)]),
            (r#"[{"port":70000,"protocol":"tri"},{"port":4}]"#, &[("", 4), ("tri", 70_000)]),
            (r#"[{"protocol":"tri"}]"#, &[("tri", 0)]),
        ] {
            assert_eq!(read(&with(endpoints)), is("10.0.0.7", Some("demo"), 20880, ports), "{endpoints}");
        }
        assert_eq!([0, 1, 65_535, 65_536].map(|number| port(number).ok()), [None, Some(1), Some(65_535), None]);
        assert_eq!(read(r#"{"host":"fe80::1%eth0","port":1,"metadata":null}"#), is("fe80::1", None, 1, &[]));
        assert_eq!(
            read(r#"{"host":"h","port":1,"name":" ","metadata":{"application":"a"}}"#),
            is("h", Some("a"), 1, &[])
        );
        assert_eq!(read(r#"{"host":"h"}"#), Err(Fault::Form));
        assert_eq!(read(&two.replace("20880", "0")), Err(Fault::Port));
        let instance = Instance::parse(r#"{"host":"h","port":1,"metadata":{"category":"routers","disabled":"True"}}"#);
        let instance = instance.unwrap();
        let provider = Provider::of_instance(&instance);
        assert_eq!((provider.is_provider(), provider.is_in_service()), (true, false));
    }

    #[test]
    fn a_zone_id_is_cut_off() {
        for (text, host) in [
            ("dubbo://2001:db8:1:0:0:0:0:10%3:20880/x", "2001:db8:1:0:0:0:0:10"),
            ("[fe80::1%eth0]:1", "fe80::1"),
            ("[2001:db8::1]:1", "2001:db8::1"),
            ("10.0.0.1%eth0:1", "10.0.0.1%eth0"),
        ] {
            assert_eq!(Provider::of_url(text, false).unwrap().host, host, "{text}");
        }
    }

    #[test]
    fn users_and_fragments_are_known_to_dubbo_alone() {
        for (text, of_dubbo, of_sofarpc) in [
            ("dubbo://user:secret@10.0.0.1:1/x", Ok(("10.0.0.1", 1)), Ok(("user:secret@10.0.0.1", 1))),
            ("dubbo://10.0.0.1:1#x?disabled=true", Ok(("10.0.0.1", 1)), Err(Fault::Port)),
            ("://10.0.0.1:1", Err(Fault::Form), Err(Fault::Form)),
        ] {
            let read = |is_dubbo| Provider::of_url(text, is_dubbo).map(|provider| (provider.host, provider.port));
            assert_eq!(read(true), of_dubbo, "{text}");
            assert_eq!(read(false), of_sofarpc, "{text}");
        }
    }

    #[test]
    fn a_url_is_a_provider_in_service_as_dubbo_sees_it() {
        let look = |text: &str| {
            let provider = Provider::of_url(text, true).unwrap();
            (provider.is_provider(), provider.is_in_service())
        };
        for scheme in NO_PROVIDERS {
            for rest in ["10.0.0.1:1/x", "0.0.0.0/x?category=routers", ""] {
                let fault = Provider::of_url(&format!("{scheme}://{rest}"), true).err();
                assert_eq!(fault, Some(Fault::Scheme), "{scheme}://{rest}");
            }
        }
        for (query, is_provider, is_in_service) in [
            ("", true, true),
            ("category=providers", true, true),
            ("category=configurators", false, true),
            ("compatible_config=true", false, true),
            ("compatible_config=", true, true),
            ("disabled=true", true, false),
            ("disabled=false&enabled=false", true, true),
            ("disabled", true, true),
            ("enabled=false", true, false),
            ("enabled=true", true, true),
            ("disabled=&enabled=false", true, false),
            ("category=", true, true),
            ("disabled=TRUE", true, false),
            ("disabled=1", true, true),
            ("enabled=True", true, true),
            ("enabled=1", true, false),
            ("enabled", true, false),
            ("enabled=", true, true),
        ] {
            assert_eq!(look(&format!("dubbo://10.0.0.1:1/x?{query}")), (is_provider, is_in_service), "{query}");
        }
    }
}
