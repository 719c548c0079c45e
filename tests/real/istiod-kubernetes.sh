#!/usr/bin/env bash
# The real istiod, in the foreground, on a Kubernetes API server as its only source. Usage: [environment] istiod-kubernetes.sh KUBECONFIG
#   GRPC_PORT (15010)  HTTP_PORT (8080: /debug/registryz)  MONITORING_PORT (15014)  ISTIOD (target/real/bin/pilot-discovery)
set -euo pipefail
cd "$(dirname "$0")/../.."
grpc=${GRPC_PORT:-15010} http=${HTTP_PORT:-8080} monitoring=${MONITORING_PORT:-15014}
mkdir -p target/real/run
mesh=target/real/run/mesh-$grpc.yaml
cat >"$mesh" <<YAML
configSources: [{address: "k8s://"}]
enableAutoMtls: false
ingressControllerMode: "OFF"
YAML
export ENABLE_CA_SERVER=false POD_NAME=istiod-0 POD_NAMESPACE=istio-system PILOT_ENABLE_METADATA_EXCHANGE=false
export INJECTION_WEBHOOK_CONFIG_NAME="" VALIDATION_WEBHOOK_CONFIG_NAME=""
exec "${ISTIOD:-target/real/bin/pilot-discovery}" discovery --kubeconfig "$1" --meshConfig "$mesh" --networksConfig ./none \
  --httpAddr "127.0.0.1:$http" --httpsAddr "" --grpcAddr "127.0.0.1:$grpc" --secureGRPCAddr "" \
  --monitoringAddr "127.0.0.1:$monitoring" --ctrlz_port 0 --log_output_level default:info
