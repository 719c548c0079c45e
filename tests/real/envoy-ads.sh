#!/usr/bin/env bash
# The real Envoy, in the foreground, on 127.0.0.1, with everything from one ADS server.
# Usage: [environment] envoy-ads.sh GRPC|DELTA_GRPC
#   ADS_PORT (15010)  ADMIN_PORT (19000)
set -euo pipefail
cd "$(dirname "$0")/../.."
ads=${ADS_PORT:-15010} admin=${ADMIN_PORT:-19000}
mkdir -p target/real/run
config=target/real/run/envoy-ads-$admin.yaml
cat >"$config" <<YAML
node: {id: envoy-1, cluster: test}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: $admin}}}
dynamic_resources:
  ads_config:
    api_type: $1
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{envoy_grpc: {cluster_name: ads}}]
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: ads
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: ads
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $ads}}}}]}]
YAML
exec target/real/py/bin/envoy -c "$config" --disable-hot-restart --concurrency 1 --log-level warn
