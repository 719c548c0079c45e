#!/usr/bin/env bash
# What a client reads in texts of the registry, which come on standard input (see java/api/com/example/Reading.java).
# Usage: reading.sh SofaRpcReading|DubboReading|Dubbo3Reading PARAMETER...
set -euo pipefail
cd "$(dirname "$0")/../.."
declare -A parts=([SofaRpcReading]=sofarpc [DubboReading]=dubbo [Dubbo3Reading]=dubbo3)
exec java -Xmx256m -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Duser.home="$PWD/target/real/home/reading-$$" -cp "$(cat "target/real/${parts[$1]}.cp")" "com.example.$1" "${@:2}"
