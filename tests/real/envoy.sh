#!/usr/bin/env bash
# The real Envoy, in the foreground, on 127.0.0.1: clusters and endpoints from istiod, one static listener that passes bytes
# to CLUSTER. Usage: [environment] envoy.sh CLUSTER, e.g. 'outbound|12200||com.example.demoservice.sofa.mesh'
#   LISTEN_PORT (19001)  ADMIN_PORT (19000)  ISTIOD_PORT (15010)
set -euo pipefail
cd "$(dirname "$0")/../.."
listen=${LISTEN_PORT:-19001} admin=${ADMIN_PORT:-19000} istiod=${ISTIOD_PORT:-15010}
mkdir -p target/real/run
config=target/real/run/envoy-$admin.yaml
cat >"$config" <<YAML
node:
  id: sidecar~127.0.0.1~probe-1.sofa~sofa.svc.cluster.local
  cluster: probe.sofa
  metadata: {NAMESPACE: sofa, CLUSTER_ID: Kubernetes, ISTIO_VERSION: "1.29.1", INSTANCE_IPS: "127.0.0.1"}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: $admin}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: istiod}}]
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:
  - name: istiod
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: istiod
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $istiod}}}}]}]
  listeners:
  - name: probe
    address: {socket_address: {address: 127.0.0.1, port_value: $listen}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: probe
          cluster: "$1"
YAML
exec target/real/py/bin/envoy -c "$config" --disable-hot-restart --concurrency 1 --log-level warn
