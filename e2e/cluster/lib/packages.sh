# shellcheck shell=bash
# What the cluster needs of the machine: Debian packages and kernel features. It installs packages and nothing else.

# Debian's folder of CNI plugins, or everybody else's.
cni_plugins() {
  local folder
  for folder in /usr/lib/cni /opt/cni/bin; do
    [[ -x $folder/bridge && -x $folder/host-local ]] && echo "$folder" && return
  done
}

# A busybox that runs in an image from scratch.
has_static_busybox() { has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

missing_packages() {
  has containerd || echo containerd
  has runc || echo runc
  [[ -n $(cni_plugins) ]] || echo containernetworking-plugins
  has nft || echo nftables
  has iptables || echo iptables
  has conntrack || echo conntrack
  has ip || echo iproute2
  has_static_busybox || echo busybox-static
  [[ -r /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
}

install_packages() {
  local packages
  mapfile -t packages < <(missing_packages)
  ((${#packages[@]})) || return 0
  has apt-get || die "missing here: ${packages[*]} (Debian's names). Install them with this system's package manager."
  say "installing with apt-get: ${packages[*]}"
  local log=$CACHE/cluster/apt.log
  mkdir -p "$CACHE/cluster"
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    die "apt-get could not install ${packages[*]}. The whole log: $log"
  fi
}

check_go() {
  has go || die "Go is missing: Kubernetes and CoreDNS are built from their Go modules. Install Go 1.25 or later (golang.org, or your system's package manager) and put it on PATH."
}

check_cargo() {
  has cargo || die "cargo is missing: images are written by this repo's image-tar. Install Rust with rustup (rustup.rs)."
}
