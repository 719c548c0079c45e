#!/usr/bin/env bash
# Runs a command in a network of its own that looks like two machines of a mesh; nothing in it reaches the outside, and all
# of it goes when the command ends. Needs root, iproute2 and iptables. Usage: mesh.sh COMMAND...
#
#   10.60.0.1       SOFARegistry and istiod
#   10.50.0.1 - 4   providers; TCP to 10.50.0.0/16 and to virtual addresses is redirected to port 15001, as Istio's init
#                   container does it, but for what uid 1337 sends and for port 19000, where proxies tell of themselves
#   10.50.1.1       a machine of its own, entered by `nsenter --net --target $MESH_POD`; TCP to it goes to its port 15006, and what
#                   it sends to providers and virtual addresses to its port 15001
set -euo pipefail
if [[ ${1:-} != --inside ]]; then
  ((EUID == 0)) || { echo "$0: needs root" >&2; exit 1; }
  exec unshare --net "$0" --inside "$@"
fi
shift

ip link set lo up
ip address add 10.60.0.1/32 dev lo
for i in 1 2 3 4; do ip address add "10.50.0.$i/32" dev lo; done
ip route add 248.0.0.0/6 dev lo
# Triple's ports are among those that the kernel gives to connections.
echo 50051-50054 >/proc/sys/net/ipv4/ip_local_reserved_ports
redirect_out() { # [COMMAND...] that it is done with
  for to in 10.50.0.0/16 248.0.0.0/6; do
    "$@" iptables -t nat -A OUTPUT -p tcp -d "$to" ! --dport 19000 -m owner ! --uid-owner 1337 -j REDIRECT --to-ports 15001
  done
}
redirect_out

# Both die with this process, which becomes the command.
setpriv --pdeathsig KILL unshare --net sleep infinity &
export MESH_POD=$!
until [[ $(readlink "/proc/$MESH_POD/ns/net") != "$(readlink /proc/self/ns/net)" ]]; do :; done
ip link add pod type veth peer name eth0 netns "$MESH_POD"
ip address add 10.50.1.254/24 dev pod
ip link set pod up
pod() { nsenter --net --target "$MESH_POD" "$@"; }
pod ip link set lo up
pod ip address add 10.50.1.1/24 dev eth0
pod ip link set eth0 up
pod ip route add default via 10.50.1.254
pod iptables -t nat -A PREROUTING -p tcp ! --dport 19000 -j REDIRECT --to-ports 15006
redirect_out pod

exec "$@"
