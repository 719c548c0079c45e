#!/usr/bin/env bash
# A real registry client driven by lines on standard input (see java/client/Client.java). Usage: [environment] client.sh [HOST [PORT [APP [CLIENTS [JVM OPTION]]]]]
#   CLIENT_HOST  a process in the network of the machine that it runs on (default: this one)
set -euo pipefail
cd "$(dirname "$0")/../.."
exec ${CLIENT_HOST:+nsenter --net --target "$CLIENT_HOST"} java -Xmx64m ${5:+"$5"} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Duser.home="$PWD/target/real/home/client" -cp "$(cat target/real/client.cp)" Client "${1:-127.0.0.1}" "${2:-9603}" "${3:-client}" "${4:-1}"
