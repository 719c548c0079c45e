#!/usr/bin/env bash
# make demo-istio: SOFARPC providers -> SOFARegistry with our jar -> istiod -> Envoy, all real, and calls through Envoy.
#   DEMO_MOX_PORT (9700)  DEMO_BOLT_PORT (12200)  DEMO_TRI_PORT (50051)
#   REGISTRY_MOX_JAR (build/libs)  the ports of istiod.sh and envoy.sh
#   DEMO_ONCE=1: end after the story instead of waiting for Ctrl-C
source "$(dirname "$0")/demo-lib.sh"
export GRPC_PORT=${GRPC_PORT:-15010} HTTP_PORT=${HTTP_PORT:-8080} LISTEN_PORT=${LISTEN_PORT:-19001} ADMIN_PORT=${ADMIN_PORT:-19000}
export MONITORING_PORT=${MONITORING_PORT:-15014}
export ISTIOD_PORT=$GRPC_PORT
host=com.example.demoservice.sofa.mesh

tests/real/install.sh
start_registry
step "two SOFARPC providers of com.example.DemoService register, each from its own process"
provider bolt
provider tri

free "$GRPC_PORT" && free "$HTTP_PORT" && free "$LISTEN_PORT" && free "$ADMIN_PORT" && free "$MONITORING_PORT"
step "istiod, with xds://$mox as its only source of configuration"
start istiod tests/real/istiod.sh "$mox"
wait_for istiod "starting" listens "$GRPC_PORT"
wait_for istiod "$host in its configuration" shows "$HTTP_PORT/debug/configz" "\"$host\""

step "Envoy, fed by that istiod; its listener 127.0.0.1:$LISTEN_PORT passes bytes to $host"
start envoy tests/real/envoy.sh "outbound|12200||$host"
endpoint() { shows "$ADMIN_PORT/clusters" "outbound|12200||$host::127.0.0.1:$bolt_port::"; }
no_endpoint() { shows "$ADMIN_PORT/clusters" "$host" && ! endpoint; }
wait_for envoy "the provider's endpoint in Envoy" endpoint

call() {
  echo "    tests/real/call.sh bolt://127.0.0.1:$LISTEN_PORT world"
  tests/real/call.sh "bolt://127.0.0.1:$LISTEN_PORT" world 2>>target/real/log/demo-call.log | sed 's/^/    answer: /'
}
step "a real SOFARPC call through Envoy"
call

step "the bolt provider stops: Envoy has nobody to pass it to"
stop bolt
wait_for envoy "the endpoint goes" no_endpoint
if call; then fail "the call was answered, though there is no provider"; else echo "    no answer, as it should be"; fi

step "and comes back"
provider bolt
wait_for envoy "the endpoint comes" endpoint
call

until_interrupted wait "where to look next:" \
  "  tests/real/call.sh bolt://127.0.0.1:$LISTEN_PORT you        one more call through Envoy, from another terminal" \
  "  http://127.0.0.1:$HTTP_PORT/debug/configz                   what istiod holds" \
  "  http://127.0.0.1:$ADMIN_PORT/clusters                       what Envoy holds" \
  "  target/real/log/demo-*.log                                  what each process said"
