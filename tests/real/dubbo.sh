#!/usr/bin/env bash
# Real Dubbo 2.7 providers of com.example.DemoService in one process. Dubbo listens on all interfaces whenever it publishes
# a loopback address. Usage: [environment] dubbo.sh APP PORT[,REST_PORT] [GROUP:VERSION[:KEY=VALUE]...]...
#   REGISTRY_ADDRESS (127.0.0.1:9603)  PROVIDER_HOST (127.0.0.1)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Dprovider.host="${PROVIDER_HOST:-127.0.0.1}" -Duser.home="$PWD/target/real/home/dubbo" \
  -cp "$(cat target/real/dubbo.cp)" com.example.DubboProvider "${REGISTRY_ADDRESS:-127.0.0.1:9603}" "$@"
