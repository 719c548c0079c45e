#!/usr/bin/env bash
# The real all-in-one SOFARegistry, in the foreground; it calls itself 127.0.0.1, but its ports (9600-9630, fixed) listen on
# all interfaces. Health: http://127.0.0.1:9603/health/check. Usage: [environment] registry.sh [JVM options, e.g. -Dmox.enabled=true]
#   REGISTRY_MOX_JAR  our jar, put on its class path (default: none). Not MOX_JAR: to Spring MOX_* are mox.* properties.
#   REGISTRY_HOME     its home folder, with its logs (default: target/real/home/registry)
set -euo pipefail
cd "$(dirname "$0")/../.."
home=${REGISTRY_HOME:-$PWD/target/real/home/registry}
mkdir -p "$home"
# Small and quick to start: C1 only, 16 slots instead of 256. Hessian looks into java.lang, hence --add-opens.
# With the usual warm-up of 2 s a quick machine asks the new meta leader too early, once: "renew node error!", and it ends.
exec java -Xmx256m -XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED \
  -Dregistry.data.slot.num=16 -Dmeta.server.metaLeaderWarmupMillis=200 -Duser.home="$home" "$@" \
  -cp "${REGISTRY_MOX_JAR:+$REGISTRY_MOX_JAR:}$(cat target/real/server.cp)" LoopbackRegistry
