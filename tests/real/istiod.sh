#!/usr/bin/env bash
# The real istiod, in the foreground; its only sources are MoX servers, which must listen already.
# Up when GRPC_PORT listens (its /ready needs Kubernetes). Usage: [environment] istiod.sh MOX_HOST:PORT...
#   ISTIOD (pilot-discovery)  which one below target/real/bin
#   KUBECONFIG_FILE  of a Kubernetes API server; by default there is none, with which 1.30 and newer crash
#   GRPC_ADDRESS (127.0.0.1)  GRPC_PORT (15010)  HTTP_PORT (8080: /debug/configz)  MONITORING_PORT (15014)
#   ALSO  folder with more configuration, in YAML; then proxies use mTLS where endpoints ask for it
#   ACCESS_LOG  file that the proxies log connections and requests to
#   MTLS (true with ALSO)  false: they do not
set -euo pipefail
cd "$(dirname "$0")/../.."
grpc=${GRPC_PORT:-15010} http=${HTTP_PORT:-8080} monitoring=${MONITORING_PORT:-15014}
mkdir -p target/real/run
mesh=target/real/run/mesh-$grpc.yaml
# By default there are no certificates, and so no mTLS; and without a Kubernetes no ingress to configure.
cat >"$mesh" <<YAML
configSources: [$(printf '{address: "xds://%s"},' "$@")${ALSO:+{address: "fs://$ALSO"\},}${KUBECONFIG_FILE:+{address: "k8s://"\}}]
enableAutoMtls: $([[ -n ${ALSO:-} ]] && echo "${MTLS:-true}" || echo false)
ingressControllerMode: "OFF"
${ACCESS_LOG:+accessLogFile: $ACCESS_LOG}
YAML
export ENABLE_CA_SERVER=false POD_NAME=istiod-0 POD_NAMESPACE=istio-system
# Else clusters, and with mTLS HTTP listeners, carry filters that a stock Envoy does not know, and it refuses them.
export PILOT_ENABLE_METADATA_EXCHANGE=false PILOT_ENABLE_ALPN_FILTER=false
kubernetes=()
if [[ -n ${KUBECONFIG_FILE:-} ]]; then
  kubernetes=(--kubeconfig "$KUBECONFIG_FILE")
  export INJECTION_WEBHOOK_CONFIG_NAME='' VALIDATION_WEBHOOK_CONFIG_NAME=''
fi
exec "target/real/bin/${ISTIOD:-pilot-discovery}" discovery --registries= --meshConfig "$mesh" --networksConfig ./none \
  "${kubernetes[@]}" \
  --httpAddr "127.0.0.1:$http" --httpsAddr "" --grpcAddr "${GRPC_ADDRESS:-127.0.0.1}:$grpc" --secureGRPCAddr "" \
  --monitoringAddr "127.0.0.1:$monitoring" --ctrlz_port 0 --log_output_level default:info,adsc:debug
