#!/usr/bin/env bash
# One server of a SOFARegistry with a machine for each, in the foreground, inside hosts.sh. Usage: [environment] server.sh ROLE N
# [JVM options], on machine 10.78.0.N. Roles: database (first), tables (in it, once), meta, data, session; the tests' reader of a
# data server is `reader`, with what it takes as arguments in place of JVM options.
#   REGISTRY_MOX_JAR  our jar, put on a session server's class path (default: none)
#   REGISTRY_HOME     its home folder, with its logs
set -euo pipefail
cd "$(dirname "$0")/../.."
role=$1 n=$2
shift 2
cp=$(cat target/real/server.cp)
database='jdbc:h2:tcp://10.78.0.1:9092/mem:metadatadb;DB_CLOSE_DELAY=-1;MODE=MySQL'
small=(-XX:TieredStopAtLevel=1 -XX:+UseSerialGC --add-opens java.base/java.lang=ALL-UNNAMED)
case $role in
  database) exec java -Xmx64m "${small[@]}" -cp "$cp" org.h2.tools.Server -tcp -tcpAllowOthers -ifNotExists ;;
  tables)
    exec java -Xmx64m "${small[@]}" -cp "$cp" org.h2.tools.RunScript -url "$database" -user sa \
      -script classpath:sql/h2/create_table.sql
    ;;
  reader) exec java -Xmx64m "${small[@]}" -Duser.home="$REGISTRY_HOME" -cp "$cp" Reader "$@" ;;
esac
application=com.alipay.sofa.registry.server.$role.${role^}Application
host=HOST_$n
mkdir -p "$REGISTRY_HOME"
# The leases and the warm-up are what the all-in-one sets for itself; the rest is a production server's own.
exec nsenter --net --target "${!host}" java -Xmx256m "${small[@]}" -Duser.home="$REGISTRY_HOME" \
  -Dregistry.data.slot.num=16 -Dregistry.lease.duration.secs=10 -Dregistry.elector.warm.up.millis=2000 \
  -Dnodes.localDataCenter=DefaultDataCenter -Dnodes.localRegion=DEFAULT_ZONE -Dnodes.localSegmentRegions=DEFAULT_ZONE \
  -Dnodes.metaNode=DefaultDataCenter:10.78.0.2 -Djdbc.driverClassName=org.h2.Driver "-Djdbc.url=$database" \
  '-Djdbc.mapperLocations=classpath:h2-mapper/*.xml' -Djdbc.username=sa -Djdbc.password= \
  -Dsession.server.gracefulShutdown=false -Ddata.server.gracefulShutdown=false \
  "$@" -cp "${REGISTRY_MOX_JAR:+$REGISTRY_MOX_JAR:}$cp" "$application"
