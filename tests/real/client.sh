#!/usr/bin/env bash
# A real registry client driven by lines on standard input (see java/client/Client.java). Usage: client.sh [HOST [PORT [APP [CLIENTS [JVM OPTION]]]]]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec java -Xmx64m ${5:+"$5"} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Duser.home="$PWD/target/real/home/client" -cp "$(cat target/real/client.cp)" Client "${1:-127.0.0.1}" "${2:-9603}" "${3:-client}" "${4:-1}"
