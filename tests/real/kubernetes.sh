#!/usr/bin/env bash
# A real kube-apiserver with etcd on the loopback. Usage: kubernetes.sh COMMAND DIR PORT
#   prepare    makes DIR: certificates, tokens, admin.kubeconfig (everything) and session.kubeconfig (only what RBAC gives
#              the service account `session` in `sofa-registry`)
#   etcd       etcd in the foreground, on PORT+1 and PORT+2, with its data in DIR/etcd
#   apiserver  kube-apiserver in the foreground, on PORT (HTTPS)
#   ready      succeeds when it is
#   crds       installs Istio's kinds, in the version that istiod is built from; waits until they are served
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD bin=$PWD/target/real/bin
command=$1 port=$3
mkdir -p "$2"
cd "$2"

ask() { curl -sf --max-time 20 --cacert ca.crt --cert admin.crt --key admin.key "$@"; }

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

# leaf NAME SUBJECT EXTENSIONS
leaf() {
  key "$1.key"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" -extfile <(printf %s "$3") 2>/dev/null
}

# kubeconfig NAME USER
kubeconfig() {
  cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: "https://127.0.0.1:$port", certificate-authority-data: $(base64 -w0 <ca.crt)}}]
users: [{name: $1, user: $2}]
contexts: [{name: test, context: {cluster: test, user: $1}}]
YAML
}

case $command in
prepare)
  umask 077
  key ca.key
  openssl req -x509 -new -key ca.key -subj /CN=test-ca -days 30 -out ca.crt -addext keyUsage=critical,keyCertSign,cRLSign
  leaf server /CN=kube-apiserver "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc
extendedKeyUsage=serverAuth"
  leaf admin /O=system:masters/CN=admin "extendedKeyUsage=clientAuth"
  key sa.key
  openssl pkey -in sa.key -pubout -out sa.pub
  token=$(openssl rand -hex 16)
  printf '%s,system:serviceaccount:sofa-registry:session,1,"system:serviceaccounts,system:serviceaccounts:sofa-registry"\n' \
    "$token" >tokens.csv
  kubeconfig admin "{client-certificate-data: $(base64 -w0 <admin.crt), client-key-data: $(base64 -w0 <admin.key)}"
  kubeconfig session "{token: $token}"
  ;;
etcd)
  exec "$bin/etcd" --name e --data-dir etcd --unsafe-no-fsync --log-level=warn --quota-backend-bytes=2147483648 \
    --listen-client-urls="http://127.0.0.1:$((port + 1))" --advertise-client-urls="http://127.0.0.1:$((port + 1))" \
    --listen-peer-urls="http://127.0.0.1:$((port + 2))" --initial-advertise-peer-urls="http://127.0.0.1:$((port + 2))" \
    --initial-cluster="e=http://127.0.0.1:$((port + 2))"
  ;;
apiserver)
  export GOMEMLIMIT=${GOMEMLIMIT:-700MiB}
  exec "$bin/kube-apiserver" --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$port" \
    --endpoint-reconciler-type=none --etcd-servers="http://127.0.0.1:$((port + 1))" \
    --service-cluster-ip-range=10.96.0.0/24 --cert-dir=. --tls-cert-file=server.crt --tls-private-key-file=server.key \
    --client-ca-file=ca.crt --token-auth-file=tokens.csv --authorization-mode=RBAC \
    --service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file=sa.key \
    --service-account-key-file=sa.pub --disable-admission-plugins=ServiceAccount --profiling=false
  ;;
ready) ask -o /dev/null "https://127.0.0.1:$port/readyz" ;;
crds)
  # A file of many documents; each is applied by its name.
  rm -rf crds
  mkdir crds
  awk '/^---/ { n++; next } { print > sprintf("crds/%02d.yaml", n) }' \
    "$(cd "$root/tests/tools" && go mod download istio.io/api && go list -m -f '{{.Dir}}' istio.io/api)/kubernetes/customresourcedefinitions.gen.yaml"
  url=https://127.0.0.1:$port/apis/apiextensions.k8s.io/v1/customresourcedefinitions
  for crd in crds/*.yaml; do
    grep -q ^kind "$crd" || continue
    ask -o /dev/null -X PATCH -H 'Content-Type: application/apply-patch+yaml' --data-binary "@$crd" \
      "$url/$(awk '/^  name: / { print $2; exit }' "$crd")?fieldManager=test&force=true"
  done
  for kind in serviceentries workloadentries destinationrules; do
    for ((i = 0; i < 300; i++)); do
      ask -o /dev/null "https://127.0.0.1:$port/apis/networking.istio.io/v1/$kind?limit=1" && continue 2
      sleep 0.1
    done
    echo "$kind are not served" >&2
    exit 1
  done
  ;;
*)
  echo "kubernetes.sh: $command is no command" >&2
  exit 2
  ;;
esac
