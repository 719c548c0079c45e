#!/usr/bin/env bash
# A real consumer of com.example.DemoService, driven by lines on standard input (see java/api/com/example/Load.java).
# Usage: [environment] consumer.sh Consumer|DubboConsumer ARGUMENT...   (see java/sofarpc and java/dubbo)
#   HOSTS_FILE  where it looks host names up, instead of a DNS server
set -euo pipefail
cd "$(dirname "$0")/../.."
parts=sofarpc
[[ $1 != Dubbo* ]] || parts=dubbo
exec java -Xmx128m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  ${HOSTS_FILE:+"-Djdk.net.hosts.file=$HOSTS_FILE"} -Duser.home="$PWD/target/real/home/consumer-$$" \
  -cp "$(cat "target/real/$parts.cp")" "com.example.$1" "${@:2}"
