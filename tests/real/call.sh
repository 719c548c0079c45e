#!/usr/bin/env bash
# One real SOFARPC call of com.example.DemoService; prints the answer. Usage: call.sh bolt://HOST:PORT NAME
set -euo pipefail
cd "$(dirname "$0")/../.."
exec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Duser.home="$PWD/target/real/home/caller" -cp "$(cat target/real/sofarpc.cp)" com.example.Caller "$1" "$2"
