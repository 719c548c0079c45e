#!/usr/bin/env bash
# The real Envoy as a sidecar, in the foreground: listeners, clusters and endpoints from istiod at 10.60.0.1, certificates
# from an SDS server. It runs as uid 1337, by which the redirection of mesh.sh knows it.
# Usage: [environment] sidecar.sh NAMESPACE IP SDS_HOST:PORT, with its admin pages on IP:19000
#   ISTIOD_PORT (15010)
set -euo pipefail
cd "$(dirname "$0")/../.."
namespace=$1 ip=$2 sds=$3
mkdir -p target/real/run
config=target/real/run/sidecar-$namespace.yaml
grpc() { # NAME HOST PORT
  cat <<YAML
  - name: $1
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: $1
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: $2, port_value: $3}}}}]}]
YAML
}
cat >"$config" <<YAML
node:
  id: sidecar~$ip~pod.$namespace~$namespace.svc.cluster.local
  cluster: pod.$namespace
  metadata: {NAMESPACE: $namespace, CLUSTER_ID: Kubernetes, ISTIO_VERSION: "1.29.1", INSTANCE_IPS: "$ip", DNS_CAPTURE: "true"}
admin: {address: {socket_address: {address: $ip, port_value: 19000}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: istiod}}]
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
static_resources:
  clusters:
$(grpc istiod 10.60.0.1 "${ISTIOD_PORT:-15010}")
$(grpc sds-grpc "${sds%:*}" "${sds##*:}")
YAML
# The capability lets it read what is below a folder of root's.
exec setpriv --reuid 1337 --regid 1337 --clear-groups --inh-caps +dac_override --ambient-caps +dac_override --pdeathsig KILL \
  target/real/py/bin/envoy -c "$config" --disable-hot-restart --concurrency 1 --log-level warn
