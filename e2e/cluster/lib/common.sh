# shellcheck shell=bash disable=SC2034
# Names, versions, places and words of the test cluster. It starts and changes nothing.

NODE=belay
# What our control groups, nft table and iptables rules are called.
MARK=belay-cluster
BRIDGE=belay0
POD_CIDR=10.88.0.0/16
NODE_IP=10.88.0.1
SERVICE_CIDR=10.96.0.0/16
API_SERVICE_IP=10.96.0.1
DNS_IP=10.96.0.10
SERVER=https://$NODE_IP:6443
ETCD_CLIENT=http://127.0.0.1:23790
ETCD_PEER=http://127.0.0.1:23800

REPO=$(cd "$CLUSTER_DIR/../.." && pwd)
KUBERNETES=$(awk '$1 == "k8s.io/kubernetes" {print $2; exit}' "$CLUSTER_DIR/hyperkube/go.mod")
COREDNS=$(awk '$2 == "github.com/coredns/coredns" {print $3; exit}' "$CLUSTER_DIR/coredns/go.mod")

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/belay
BIN=$CACHE/cluster/$KUBERNETES/bin
IMAGES=$CACHE/cluster/$KUBERNETES/images
RUN=$CACHE/cluster/run
LOGS=$RUN/logs
PIDS=$RUN/pids
PKI=$RUN/pki
KUBECONFIG_PATH=$RUN/kubeconfig
CONTAINERD_SOCKET=$RUN/containerd.sock

# In the order in which they start.
PARTS=(etcd containerd kube-apiserver kube-controller-manager kube-scheduler local-storage enforcer kubelet kube-proxy)

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

need_root() {
  ((EUID == 0)) && return
  say "error: $1 needs root: it starts a kubelet, makes network interfaces and mounts."
  die "Run it as root, or point KUBECONFIG at a kind, minikube or k3d cluster and set CLUSTER=current."
}

kubectl_here() { "$BIN/kubectl" --kubeconfig "$KUBECONFIG_PATH" "$@"; }

ctr_here() { ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io "$@"; }

# Only one `up`, `down` or `load` at a time. What we start must not inherit the lock: see start_part.
lock() {
  mkdir -p "$CACHE/cluster"
  exec {LOCK_FD}>"$CACHE/cluster/lock"
  flock -n "$LOCK_FD" && return
  say "waiting for another command on this cluster to end"
  flock -w 900 "$LOCK_FD" || die "another command has held $CACHE/cluster/lock for 15 minutes"
}
