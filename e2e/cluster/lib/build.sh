# shellcheck shell=bash
# Builds the cluster's binaries and images once and caches them by version and source. It starts nothing.

# Whether FOLDER's sources are the ones that NAME was built from.
is_built() {
  local name=$1 folder=$2
  [[ -x $BIN/$name && -f $BIN/$name.source && $(<"$BIN/$name.source") == "$(digest_of "$folder")" ]]
}

digest_of() { find "$1" -name '*.go' -o -name 'go.*' | LC_ALL=C sort | xargs cat | sha256sum | cut -d' ' -f1; }

# NAME FOLDER PACKAGE [LDFLAG]...
build_go() {
  local name=$1 folder=$2 package=$3
  shift 3
  is_built "$name" "$folder" && return
  check_go
  mkdir -p "$BIN"
  local log=$BIN/$name.log
  if ! (cd "$folder" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $*" -o "$BIN/$name.new" "$package") >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "$name could not be built from ${folder#"$REPO"/}. The whole log: $log"
  fi
  mv "$BIN/$name.new" "$BIN/$name"
  digest_of "$folder" >"$BIN/$name.source"
}

# What an API server alone needs.
build_kubernetes() {
  local version=k8s.io/component-base/version
  is_built hyperkube "$CLUSTER_DIR/hyperkube" ||
    say "building Kubernetes $KUBERNETES from its Go module, once: about 5 minutes on 2 cores"
  build_go hyperkube "$CLUSTER_DIR/hyperkube" . \
    "-X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES")"
  build_go certs "$CLUSTER_DIR/tools" ./certs
  local part
  for part in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy local-storage kubectl; do
    [[ -e $BIN/$part ]] || ln -sfn hyperkube "$BIN/$part"
  done
}

build_all() {
  build_kubernetes
  is_built coredns "$CLUSTER_DIR/coredns" ||
    say "building CoreDNS $COREDNS from its Go module, once: about 1 minute on 2 cores"
  build_go coredns "$CLUSTER_DIR/coredns" .
  build_go pause "$CLUSTER_DIR/tools" ./pause
  build_go enforcer "$CLUSTER_DIR/tools" ./enforcer
  mkdir -p "$IMAGES"
  build_image pause "localhost/belay-pause:1" --entrypoint /pause
  build_image coredns "localhost/belay-coredns:$COREDNS" --entrypoint /coredns
}

image_tar() { (cd "$REPO" && cargo run --quiet --package belay-e2e --bin image-tar -- "$@"); }

# BINARY NAME [IMAGE-TAR OPTION]...
build_image() {
  local binary=$1 name=$2
  shift 2
  [[ $IMAGES/$binary.tar -nt $BIN/$binary ]] && return
  check_cargo
  image_tar --name "$name" --out "$IMAGES/$binary.tar" --add "$BIN/$binary:/$binary:0755" "$@" ||
    die "the image $name could not be written"
}
