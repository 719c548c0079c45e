#!/usr/bin/env bash
# Builds the peers of the benchmarks under target/bench: go-control-plane and slime's istio-mcp (Go), nacos-istio (Gradle).
# Run it as often as you like: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../../.."
bench=$PWD/target/bench
mkdir -p "$bench"

for peer in go-control-plane slime; do
  from=("tests/bench/peers/$peer/"{go.mod,go.sum,main.go})
  if ! { [[ -x $bench/$peer ]] && cat "${from[@]}" | cmp -s "$bench/$peer.from" -; }; then
    echo "peers: $peer (a minute or two the first time, then from Go's cache)"
    (cd "tests/bench/peers/$peer" && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" -o "$bench/$peer" .)
    cat "${from[@]}" >"$bench/$peer.from"
  fi
done

nacos=(tests/bench/peers/build.gradle tests/bench/peers/nacos)
made_here() { grep -qF "$bench/" "$bench/nacos.cp" 2>/dev/null; } # class paths are absolute; a folder may be moved
if ! made_here || [[ -n $(find "${nacos[@]}" -newer "$bench/nacos.cp") ]]; then
  echo "peers: nacos-istio from Maven Central (a minute the first time)"
  gradle --console=plain -q :peers:nacosClasspath
  touch "$bench/nacos.cp"
fi
echo "peers: ready"
