#!/usr/bin/env bash
# Real SOFARPC providers of com.example.DemoService in one process; protocols are bolt, tri, h2c and rest.
# Usage: [environment] provider.sh APP PROTOCOL:PORT[:UNIQUE_ID:WEIGHT[:KEY=VALUE]...]...
#   REGISTRY_ADDRESS (127.0.0.1:9603)  PROVIDER_HOST (127.0.0.1)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Dprovider.host="${PROVIDER_HOST:-127.0.0.1}" -Duser.home="$PWD/target/real/home/provider-$$" \
  -cp "$(cat target/real/sofarpc.cp)" com.example.Provider "${REGISTRY_ADDRESS:-127.0.0.1:9603}" "$@"
