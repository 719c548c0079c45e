#!/usr/bin/env bash
# What a client reads in texts of the registry, which come on standard input (see java/api/com/example/Reading.java).
# Usage: reading.sh SofaRpcReading|DubboReading PARAMETER...
set -euo pipefail
cd "$(dirname "$0")/../.."
parts=sofarpc
[[ $1 != Dubbo* ]] || parts=dubbo
exec java -Xmx256m -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Duser.home="$PWD/target/real/home/reading-$$" -cp "$(cat "target/real/$parts.cp")" "com.example.$1" "${@:2}"
