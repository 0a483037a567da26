# shellcheck shell=bash disable=SC2153,SC2034
# The pods' bridge, their way out, and the rules of ours: made once a start, removed whole.

# Written before anything is made, so that a killed run is still known to own it.
NETWORK_NOTE=$RUN/network

# Whether bridge, rules and control groups of this machine are this folder's: noted, and since the last boot. Another
# user's cluster has the same names, and must not be swept away.
owns_machine() {
  [[ -e $NETWORK_NOTE ]] && grep -qx "boot=$(</proc/sys/kernel/random/boot_id)" "$NETWORK_NOTE"
}

check_network() {
  local other
  other=$(ip -4 route show "$POD_CIDR"; ip -4 route show "$SERVICE_CIDR")
  [[ -z $other ]] || die "this machine already routes the addresses that the cluster needs ($POD_CIDR, $SERVICE_CIDR): $other. If it is a cluster of another user or cache folder, take that one down first."
  if nft list table ip kube-proxy >/dev/null 2>&1; then
    die "another kube-proxy runs on this machine (nft table ip kube-proxy is there). Stop it, or use that cluster with CLUSTER=current."
  fi
}

make_network() {
  modprobe -qa br_netfilter overlay nf_conntrack 2>/dev/null || true
  [[ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]] ||
    die "the kernel has no br_netfilter: pods could not reach Services. Load it: modprobe br_netfilter"
  mkdir -p "$RUN"
  {
    echo "forward=$(</proc/sys/net/ipv4/ip_forward)"
    echo "bridge=$(</proc/sys/net/bridge/bridge-nf-call-iptables)"
    echo "boot=$(</proc/sys/kernel/random/boot_id)"
  } >"$NETWORK_NOTE"
  echo 1 >/proc/sys/net/ipv4/ip_forward
  echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
  ip link add "$BRIDGE" type bridge
  ip address add "$NODE_IP/${POD_CIDR#*/}" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  # So that nothing meant for a Service ever leaves by the default route.
  ip route add "$SERVICE_CIDR" dev "$BRIDGE"
  nft -f - <<RULES
table ip $MARK {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr $POD_CIDR ip daddr != { $POD_CIDR, $SERVICE_CIDR } masquerade
  }
}
RULES
  # Docker and some firewalls drop what is forwarded unless told otherwise.
  if iptables -S FORWARD 2>/dev/null | grep -qx -- '-P FORWARD DROP'; then
    iptables -I FORWARD -i "$BRIDGE" -m comment --comment "$MARK" -j ACCEPT
    iptables -I FORWARD -o "$BRIDGE" -m comment --comment "$MARK" -j ACCEPT
  fi
}

remove_network() {
  owns_machine || return 0
  local forward bridge boot way
  # shellcheck source=/dev/null
  source "$NETWORK_NOTE"
  ip -o link show master "$BRIDGE" 2>/dev/null | sed -E 's/^[0-9]+: ([^@:]+).*/\1/' |
    while read -r way; do ip link delete "$way" 2>/dev/null || true; done
  ip link delete "$BRIDGE" 2>/dev/null || true
  for way in "ip $MARK" "ip $MARK-policies" "ip kube-proxy" "ip6 kube-proxy"; do
    # shellcheck disable=SC2086
    nft delete table $way 2>/dev/null || true
  done
  for way in -i -o; do
    while iptables -D FORWARD "$way" "$BRIDGE" -m comment --comment "$MARK" -j ACCEPT 2>/dev/null; do :; done
  done
  echo "${forward:-0}" >/proc/sys/net/ipv4/ip_forward
  [[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ]] ||
    echo "${bridge:-0}" >/proc/sys/net/bridge/bridge-nf-call-iptables
  # Whatever names a network namespace of ours.
  { grep -lsF "$RUN/" /var/lib/cni/results/* || true; } | xargs -r rm -f
  rmdir /var/lib/cni/results /var/lib/cni 2>/dev/null || true
  rm -f "$NETWORK_NOTE"
}
