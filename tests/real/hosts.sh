#!/usr/bin/env bash
# Runs a command in a network of its own with a machine for each server of a registry; nothing in it reaches the outside, and
# all of it goes when the command ends. Needs root, iproute2 and iptables. Usage: hosts.sh COMMAND...
#
#   10.78.0.1         the command; with it clients, istiod and the registry's database
#   10.78.0.2         meta server
#   10.78.0.3         data server
#   10.78.0.11 - 13   session servers
#
# Machine 10.78.0.N is entered by `nsenter --net --target $HOST_N`.
set -euo pipefail
if [[ ${1:-} != --inside ]]; then
  ((EUID == 0)) || { echo "$0: needs root" >&2; exit 1; }
  exec unshare --net "$0" --inside "$@"
fi
shift

ip link set lo up
ip link add lan type bridge
ip address add 10.78.0.1/24 dev lan
ip link set lan up
for n in 2 3 11 12 13; do
  setpriv --pdeathsig KILL unshare --net sleep infinity & # dies with this process, which becomes the command
  until [[ $(readlink "/proc/$!/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do :; done
  ip link add "host$n" type veth peer name eth0 netns "$!"
  ip link set "host$n" master lan up
  nsenter --net --target "$!" ip link set lo up
  nsenter --net --target "$!" ip address add "10.78.0.$n/24" dev eth0
  nsenter --net --target "$!" ip link set eth0 up
  nsenter --net --target "$!" ip route add default via 10.78.0.1
  export "HOST_$n=$!"
done
exec "$@"
