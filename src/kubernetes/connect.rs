//! Where the API server is, and who we are to it.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::failure::Failure;
use crate::config;

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(5);

/// Reads where the API server is and who we are.
pub(super) async fn connect(settings: &config::Kubernetes) -> Result<Client, String> {
    let mut config = match &settings.kubeconfig {
        Some(file) => {
            let shown = file.display();
            let read =
                Kubeconfig::read_from(file).map_err(|error| format!("mox.kubernetes.kubeconfig {shown}: {error}"))?;
            let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
            let config = Config::from_custom_kubeconfig(read, &options).await;
            config.map_err(|error| format!("mox.kubernetes.kubeconfig {shown}: {error}"))?
        }
        None => Config::incluster().map_err(|error| {
            format!(
                "no service account of a pod is here ({error}); set mox.kubernetes.kubeconfig outside of Kubernetes"
            )
        })?,
    };
    // A child process and its signals do not belong into a host that is not ours.
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        return Err(
            "the kubeconfig's user has an exec plugin or auth provider; use a token, a token file or a client \
                    certificate"
                .to_owned(),
        );
    }
    let no_proxy = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| std::env::var(name).ok());
    without_proxy(&mut config, no_proxy.as_deref())?;
    (config.connect_timeout, config.read_timeout, config.default_retry) = (Some(CONNECT), None, false);
    Client::try_from(config).map_err(|error| Failure::of_error(&error).to_string())
}

/// A proxy that the environment or the kubeconfig names is of no use: none is spoken to here. NO_PROXY and the loopback do
/// without it.
fn without_proxy(config: &mut Config, no_proxy: Option<&str>) -> Result<(), String> {
    let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']);
    let Some(proxy) = config.proxy_url.as_ref().filter(|_| !is_direct(host, no_proxy.unwrap_or_default())) else {
        config.proxy_url = None;
        return Ok(());
    };
    let proxy = proxy.authority().map_or("", |proxy| proxy.as_str().rsplit('@').next().unwrap_or_default());
    Err(format!(
        "the API server {host} is to be reached through the proxy {proxy}, which HTTPS_PROXY or the kubeconfig's proxy-url \
         names; this is not possible from here, so name {host} in NO_PROXY if it can be reached without"
    ))
}

/// Whether NO_PROXY, or the loopback, keeps a host off the proxy. Entries are hosts, domains (`.example.com`, which
/// `example.com` is as well), addresses, networks, or `*`.
fn is_direct(host: &str, no_proxy: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let domain = entry.trim_start_matches("*.").trim_start_matches('.');
        let is_below = host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let in_network = || address.zip(entry.parse::<IpNet>().ok()).is_some_and(|(ip, network)| network.contains(&ip));
        entry == "*" || (address.is_none() && is_below) || entry == host || in_network()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_passed_by_or_named() {
        for (host, no_proxy, direct) in [
            ("127.0.0.1", "", true),
            ("::1", "", true),
            ("localhost", "", true),
            ("api.example.com", "", false),
            ("api.example.com", "*", true),
            ("api.example.com", "other.com, example.com", true),
            ("api.example.com", ".example.com", true),
            ("api.example.com", "pi.example.com,le.com", false),
            ("10.1.2.3", "10.1.2.0/24", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "2.3,10.1.3.0/24", false),
            ("fd00::7", "fd00::/8", true),
        ] {
            assert_eq!(is_direct(host, no_proxy), direct, "{host} with {no_proxy}");
        }
        let mut config = Config::new("https://[fd00::7]:6443".parse().unwrap());
        assert_eq!(without_proxy(&mut config, None), Ok(()));
        config.proxy_url = Some("http://user:secret@proxy:3128".parse().unwrap());
        let error = without_proxy(&mut config, Some("10.0.0.0/8")).unwrap_err();
        assert!(error.contains("name fd00::7 in NO_PROXY") && error.contains("the proxy proxy:3128"), "{error}");
        assert_eq!((without_proxy(&mut config, Some("fd00::/8")), config.proxy_url), (Ok(()), None));
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_is_named() {
        let kubeconfig = Some("/nowhere/kubeconfig".into());
        let settings = config::Kubernetes { kubeconfig, ..config::Kubernetes::default() };
        let error = connect(&settings).await.err().unwrap();
        assert!(error.contains("mox.kubernetes.kubeconfig /nowhere/kubeconfig"), "{error}");
    }
}
