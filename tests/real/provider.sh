#!/usr/bin/env bash
# A real SOFARPC provider of com.example.DemoService on 127.0.0.1. Usage: provider.sh bolt|tri PORT APP [REGISTRY]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Duser.home="$PWD/target/real/home/provider-$2" -cp "$(cat target/real/sofarpc.cp)" \
  com.example.Provider "$1" "$2" "$3" "${4:-127.0.0.1:9603}"
