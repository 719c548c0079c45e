#!/usr/bin/env bash
# make demo: the real SOFARegistry with our jar, two SOFARPC providers, and what istiod would receive, live.
#   DEMO_MOX_PORT (9700)  DEMO_BOLT_PORT (12200)  DEMO_TRI_PORT (50051)  DEMO_GUEST_PORT (12298)
#   REGISTRY_MOX_JAR (build/libs)  DEMO_WATCH (target/debug/examples/watch); `make demo` names those that it builds, in target/demo
#   DEMO_ONCE=1: end after the story, and after a guest that comes and goes once, instead of going on until Ctrl-C
source "$(dirname "$0")/demo-lib.sh"
watch=${DEMO_WATCH:-target/debug/examples/watch}
[[ -x $watch ]] || fail "$watch is missing: run 'cargo build --package registry-mox-harness --example watch' first"

tests/real/install.sh demo
start_registry

step "what istiod receives, from now on (tests/harness/examples/watch.rs):"
setpriv --pdeathsig KILL "$watch" "$mox" > >(tee target/real/log/demo-watch.log | sed -u "s/^/  | /") 2>&1 &
pids[watch]=$!

step "two SOFARPC providers of com.example.DemoService register, each from its own process"
provider bolt
provider tri
wait_for watch "both endpoints at the watcher" eval "log_has watch 127.0.0.1:$bolt_port && log_has watch 127.0.0.1:$tri_port"

step "the bolt provider stops: its endpoint goes, its service stays for a while"
lines=$(wc -l <target/real/log/demo-watch.log)
changed() { (($(wc -l <target/real/log/demo-watch.log) > lines)); }
stop bolt
wait_for watch "the change at the watcher" changed

step "and comes back"
lines=$(wc -l <target/real/log/demo-watch.log)
provider bolt
wait_for watch "the change at the watcher" changed

until_interrupted come_and_go "where to look next:" \
  "  $console                     the console: what is served, what needs a decision, why something is not there" \
  "  tests/real/provider.sh more bolt:12299        one more provider, from another terminal" \
  "  $watch $mox        a second watcher" \
  "  $console/explain?q=DemoService  why a service is in the mesh, or is not" \
  "  http://127.0.0.1:9603/mox/status              what the engine holds and who is connected" \
  "  http://127.0.0.1:9603/mox/dump                the entries, as kubectl would print them" \
  "  target/real/log/demo-*.log                    what each process said" \
  "  make demo-istio                               the same with a real istiod and Envoy"
