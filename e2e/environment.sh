# Sourced by the demos and cluster-tests: a cluster, its kubectl on the PATH, images loaded, Belay installed.
# shellcheck shell=bash
cache="${XDG_CACHE_HOME:-$HOME/.cache}/belay"
host=$(rustc -vV | sed -n 's/^host: //p')
export BELAY_BIN="${CARGO_TARGET_DIR:-$PWD/target}/$host/debug"

use_cluster() {
  if [ "${CLUSTER:-embedded}" = current ]; then
    e2e/cluster/up
  else
    KUBECONFIG=$(e2e/cluster/up)
    export KUBECONFIG PATH="$cache/cluster/$(cluster_version)/bin:$PATH"
  fi
}

cluster_version() { (CLUSTER_DIR=$PWD/e2e/cluster && . e2e/cluster/lib/common.sh && echo "$KUBERNETES"); }

# Seconds since the epoch with fractions, for what the demo says it took.
now() { date +%s.%N; }

# A line of a demo that begins something new.
step() {
  if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}
