# What demo.sh and demo-istio.sh share. Sourced, not run; leaves the working directory at the project's root.
# shellcheck shell=bash disable=SC2034 # read into bash scripts, which use what is set here
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mkdir -p target/real/log
jar=${REGISTRY_MOX_JAR:-$(echo build/libs/registry-mox-*[0-9].jar)} # not -sources, not -javadoc
mox=127.0.0.1:${DEMO_MOX_PORT:-9700}
bolt_port=${DEMO_BOLT_PORT:-12200} tri_port=${DEMO_TRI_PORT:-50051} guest_port=${DEMO_GUEST_PORT:-12298}
console=http://127.0.0.1:9603/mox token=only-for-this-demo

step() { printf '\n==> %s\n' "$*"; }
say() { printf 'demo: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

declare -A pids=()

# start NAME COMMAND...: in the background, logging to target/real/log/demo-NAME.log; it dies with this shell.
start() {
  setpriv --pdeathsig KILL "${@:2}" >"target/real/log/demo-$1.log" 2>&1 </dev/null &
  pids[$1]=$!
}

# stop NAME: asks it to end, and waits until it has.
stop() {
  kill "${pids[$1]}" 2>/dev/null || true
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]"
}

end() {
  local status=$? name
  trap - EXIT INT TERM
  [[ ${#pids[@]} -eq 0 ]] || step "stopping everything"
  # Together first, since each takes a moment.
  kill "${pids[@]}" 2>/dev/null || true
  for name in "${!pids[@]}"; do stop "$name"; done
  exit "$status"
}
trap end EXIT
trap 'exit 0' INT TERM # Ctrl-C is how a demo ends

# awaited NAME WHAT COMMAND...: waits until COMMAND succeeds; false, and said why, when process NAME has ended, or after 3 minutes.
# Shows dots meanwhile, unless a watcher shows what happens.
awaited() {
  local began=$SECONDS dot=.
  [[ -z ${pids[watch]:-} ]] || dot=
  printf '    %s%s' "$2" "${dot:+ }${dot:-$'\n'}"
  until "${@:3}" >/dev/null 2>&1; do
    kill -0 "${pids[$1]}" 2>/dev/null || { say "$1 ended: see target/real/log/demo-$1.log" && return 1; }
    ((SECONDS - began < 180)) || { say "not within 3 minutes: see target/real/log/demo-$1.log" && return 1; }
    printf '%s' "$dot"
    sleep 1
  done
  [[ -z $dot ]] || printf ' %d s\n' $((SECONDS - began))
}

# wait_for NAME WHAT COMMAND...: the same, and the demo is over where that is false.
wait_for() { awaited "$@" || exit 1; }

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }
is_free() { ! listens "$1" 2>/dev/null || { say "port $1 is taken; is another demo or registry running?" && return 1; }; }
free() { is_free "$1" || exit 1; }
get() { python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())' "http://127.0.0.1:$1"; }
# shows URL TEXT: the page has it; fails as well where there is no page.
shows() { local page && page=$(get "$1") && [[ $page == *"$2"* ]]; }
healthy() { shows 9603/health/check '"success":true'; }
log_has() { grep -qF -- "$2" "target/real/log/demo-$1.log"; }

# start_registry OPTION...: with more -D options
# shellcheck disable=SC2120 # options are for those who want some
start_registry() {
  [[ -f $jar ]] || fail "$jar is missing: run 'make jar' first"
  free 9603 && free "${mox#*:}"
  step "SOFARegistry, all in one process, with our jar on its class path; MoX listens on $mox"
  echo "    (the registry's own ports, 9600-9630, listen on all interfaces: that is its nature)"
  REGISTRY_MOX_JAR=$jar start registry tests/real/registry.sh -Dmox.enabled=true "-Dmox.listen=$mox" \
    "-Dmox.admin.token=$token" -Dmox.protect.startup-hold=1s -Dmox.policy.endpoints.allow-loopback=true "$@"
  wait_for registry "starting" healthy
  wait_for registry "MoX listens" listens "${mox#*:}"
  echo "    the console is there now: $console"
}

# registers bolt|tri|guest: a SOFARPC provider in a process of its own; a guest is a second one over bolt. False, and said why, if it
# does not come.
registers() {
  local port_of="$1_port" over=${1/guest/bolt}
  is_free "${!port_of}" || return 1
  start "$1" tests/real/provider.sh orders "$over:${!port_of}"
  awaited "$1" "a SOFARPC provider over $over, port ${!port_of}" log_has "$1" "exported "
}

# provider bolt|tri: the same, and the demo is over if it does not come
provider() { registers "$1" || exit 1; }

# pause SECONDS: a signal ends it, and with it the demo, at once.
pause() {
  setpriv --pdeathsig KILL sleep "$1" &
  wait $!
}

# come_and_go: a guest is there for 15 s, and away for 15 s, for ever; with DEMO_ONCE=1 once, for a second each. A guest that does not
# come is said, and the next one may.
come_and_go() {
  local seconds=${DEMO_ONCE:+1}
  while true; do
    step "another provider registers; see $console"
    if registers guest; then
      pause "${seconds:-15}"
      step "and goes again"
    else
      printf '\n    it did not come; the next one may\n'
    fi
    [[ -z ${pids[guest]:-} ]] || stop guest
    pause "${seconds:-15}"
    [[ -z ${DEMO_ONCE:-} ]] || break
  done
}

# until_interrupted COMMAND TEXT...: what to look at now; then COMMAND until Ctrl-C (`wait` does nothing, and is left out with
# DEMO_ONCE=1).
until_interrupted() {
  printf '\n'
  printf '    %s\n' "${@:2}"
  if [[ -z ${DEMO_ONCE:-} ]]; then
    step "running until Ctrl-C"
  elif [[ $1 == wait ]]; then
    return
  fi
  "$1"
}

step "the console, as soon as the registry is up: $console (its buttons want the token $token)"
