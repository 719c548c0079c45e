#!/usr/bin/env bash
# make demo-kubernetes: SOFARPC providers -> SOFARegistry with our jar -> a real Kubernetes API server; what kubectl would show.
#   DEMO_MOX_PORT (9700)  DEMO_BOLT_PORT (12200)  DEMO_TRI_PORT (50051)  DEMO_API_PORT (16443, and the two after it)
#   REGISTRY_MOX_JAR (build/libs)
#   DEMO_ONCE=1: end after the story instead of waiting for Ctrl-C
source "$(dirname "$0")/demo-lib.sh"
api=${DEMO_API_PORT:-16443} dir=target/real/home/demo-kubernetes namespace=sofa-registry
kubernetes() { tests/real/kubernetes.sh "$1" "$dir" "$api"; }
printed() { tests/real/get.py "$dir" "$api" "$namespace" get "$1"; }

tests/real/install.sh java kubernetes
free "$api" && free $((api + 1)) && free $((api + 2))
rm -rf "$dir"
step "a Kubernetes API server with etcd, and Istio's kinds; no kubelet, no istiod"
kubernetes prepare
start etcd tests/real/kubernetes.sh etcd "$dir" "$api"
start apiserver tests/real/kubernetes.sh apiserver "$dir" "$api"
wait_for apiserver "starting" kubernetes ready
kubernetes crds
ask() { curl -sf --cacert "$dir/ca.crt" --cert "$dir/admin.crt" --key "$dir/admin.key" -o /dev/null "$@"; }
ask -X POST -H 'Content-Type: application/yaml' "https://127.0.0.1:$api/api/v1/namespaces" \
  --data-binary "{apiVersion: v1, kind: Namespace, metadata: {name: $namespace}}"
# The rights of src/kubernetes/rbac.yaml, a document at a time.
csplit -sz -f "$dir/rbac-" -b %d.yaml src/kubernetes/rbac.yaml '/^---$/' '{*}'
for file in "$dir"/rbac-*.yaml; do
  kind=$(awk '/^kind:/ { print tolower($2) "s" }' "$file")
  ask -X POST -H 'Content-Type: application/yaml' --data-binary "@$file" \
    "https://127.0.0.1:$api/apis/rbac.authorization.k8s.io/v1/namespaces/$namespace/$kind"
done

start_registry -Dmox.kubernetes.enabled=true "-Dmox.kubernetes.kubeconfig=$PWD/$dir/session.kubeconfig" \
  -Dmox.protect.empty-grace=5s

step "what happens to ServiceEntries, from now on:"
setpriv --pdeathsig KILL tests/real/get.py "$dir" "$api" "$namespace" watch serviceentries \
  > >(tee target/real/log/demo-watch.log | sed -u "s/^/  | /") 2>&1 &
pids[watch]=$!

step "two SOFARPC providers of com.example.DemoService register, each from its own process"
provider bolt
provider tri
wait_for watch "both in the API" eval "log_has watch :$bolt_port && log_has watch :$tri_port"
step "kubectl get serviceentries -n $namespace"
printed serviceentries

step "the bolt provider stops: its endpoint goes at once, its service after mox.protect.empty-grace"
stop bolt
wait_for watch "the service goes" log_has watch "DELETED  com.example.demoservice "
step "kubectl get serviceentries -n $namespace"
printed serviceentries

step "and comes back"
lines=$(wc -l <target/real/log/demo-watch.log)
changed() { (($(wc -l <target/real/log/demo-watch.log) > lines)); }
provider bolt
wait_for watch "the service comes" changed
printed serviceentries

until_interrupted wait "where to look next:" \
  "  kubectl --kubeconfig $dir/admin.kubeconfig -n $namespace get serviceentries -o yaml" \
  "  tests/real/provider.sh more bolt:12299        one more provider, from another terminal" \
  "  http://127.0.0.1:9603/mox/kubernetes          how the writing goes" \
  "  target/real/log/demo-*.log                    what each process said"
