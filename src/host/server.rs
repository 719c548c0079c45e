//! Binds an engine's listeners: streams on a port for everything and one for each partition, and the admin pages.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use tokio::{net::TcpListener, runtime::Handle};

use crate::{
    error::{Error, Result},
    host::{admin, engine::Engine, hour, status::Bound},
    snapshot::partition::Partition,
    xds::{
        drain::Drain,
        limits::StreamLimits,
        listener::{self, Door},
        server::Ads,
        tls::Tls,
        workers::Workers,
    },
};

impl Engine {
    /// Binds the listeners and serves; a second call answers the same addresses. All bind or none.
    pub fn listen(self: &Arc<Self>) -> Result<Bound> {
        let mut listeners = self.listeners.lock();
        if let Some(bound) = &listeners.bound {
            return Ok(bound.clone());
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let config = &self.shared.config;
        let tls = Tls::open(&config.tls)?;
        let (mox, mox_address) = bind(&self.handle, config.listen)?;
        let mut ports = vec![(mox, Partition::WHOLE)];
        let mut partitions: BTreeMap<usize, Vec<SocketAddr>> = BTreeMap::new();
        for partition in config.partitions.iter().flat_map(|count| Partition::all_of(*count)) {
            // With port 0 each takes a free one.
            let offset = if config.listen.port() == 0 { 0 } else { partition.number() as u16 };
            let address = SocketAddr::new(config.listen.ip(), config.listen.port() + offset);
            let (port, address) = bind(&self.handle, address)?;
            ports.push((port, partition));
            partitions.entry(partition.count()).or_default().push(address);
        }
        let pages = self.pages.as_ref().zip(config.admin_listen);
        let admin = pages.map(|(pages, address)| bind(pages, address)).transpose()?;
        let bound = Bound { mox: mox_address, partitions, admin: admin.as_ref().map(|(_, address)| *address) };
        let limits = StreamLimits::new(config);
        let ads = Ads {
            view: self.shared.view.subscribe(),
            signals: Arc::clone(&self.shared.signals),
            drain: Drain::new(self.draining.subscribe(), self.fenced.subscribe()),
            streams: Arc::clone(&self.streams),
            prime: config.push.prime,
            limits,
        };
        let (allow, streams) = (config.allow_cidrs.clone(), Arc::clone(&self.streams));
        let door = Arc::new(Door::new(allow, limits.streams, tls, streams));
        let (connections, wanted) = (door.most_connections(), 2 * limits.streams.in_all);
        if connections < wanted {
            let event = "connections_bounded";
            tracing::info!(
                event,
                connections,
                wanted,
                "half of the files that the process may open (ulimit -n) are for istiods"
            );
        }
        let (workers, connections) = Workers::new(self.serving.iter().cloned());
        let workers = Arc::new(workers);
        for (port, partition) in ports {
            let accepting = listener::accept(port, partition, Arc::clone(&door), Arc::clone(&workers));
            listeners.servers.push(self.handle.spawn(accepting));
        }
        let relieving = self.handle.spawn({
            let (streams, view) = (Arc::clone(&self.streams), self.shared.view.subscribe());
            async move { streams.relieve(view).await }
        });
        let serve = |(runtime, connections): (Handle, _)| {
            let served = ads.clone().serve(connections);
            runtime.spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(event = "listener_failed", %error, "the MoX listener failed");
                }
            })
        };
        let serving: Vec<_> = connections.into_iter().map(serve).collect();
        listeners.servers.push(self.handle.spawn(async move {
            for served in serving {
                // A server that panicked has stopped as well.
                let _ = served.await;
            }
            relieving.abort();
        }));
        if let (Some((admin, _)), Some(pages)) = (admin, &self.pages) {
            let (engine, draining) = (Arc::downgrade(self), self.draining.subscribe());
            let served = admin::listener::serve(admin, engine, draining, admin::listener::Limits::default());
            listeners.servers.push(pages.spawn(served));
        }
        let (hour, shared, streams) = (Arc::clone(&self.hour), Arc::clone(&self.shared), Arc::clone(&self.streams));
        listeners.servers.push(self.handle.spawn(hour::fill(hour, shared, streams, self.draining.subscribe())));
        listeners.bound = Some(bound.clone());
        let now = self.shared.clock.now();
        self.order(|orders| orders.listening_since = Some(now));
        tracing::info!(event = "listening", mox = %bound.mox, partitions = ?config.partitions, tls = config.tls.cert.is_some(), "listening");
        Ok(bound)
    }
}

/// Binds a listener whose runtime is this.
fn bind(runtime: &Handle, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let _in_runtime = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    });
    bound.map_err(|source| Error::Bind { address, source })
}
