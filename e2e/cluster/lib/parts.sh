# shellcheck shell=bash
# Configures and starts every part in order, and waits for each. It knows flags, and nothing about building.

# FILE: a file of config/ with this machine's places and addresses.
render() {
  local resolv=/etc/resolv.conf
  [[ -s /run/systemd/resolve/resolv.conf ]] && resolv=/run/systemd/resolve/resolv.conf
  sed -e "s|@RUN@|$RUN|g" -e "s|@MARK@|$MARK|g" -e "s|@NODE_IP@|$NODE_IP|g" -e "s|@BRIDGE@|$BRIDGE|g" \
    -e "s|@POD_CIDR@|$POD_CIDR|g" -e "s|@DNS_IP@|$DNS_IP|g" -e "s|@COREDNS@|$COREDNS|g" \
    -e "s|@CNI@|$(cni_plugins)|g" -e "s|@RESOLV@|$resolv|g" "$CLUSTER_DIR/config/$1"
}

write_config() {
  mkdir -p "$RUN"/{etcd,volumes,containerd,config,cni/conf,cni/networks,kubelet,pods} "$LOGS" "$PIDS"
  chmod 700 "$RUN/etcd"
  local file
  for file in containerd.toml kubelet.yaml kube-proxy.yaml audit.yaml addons.yaml; do
    render "$file" >"$RUN/config/$file"
  done
  render cni.conflist >"$RUN/cni/conf/10-belay.conflist"
  "$BIN/certs" -out "$PKI" -server "$SERVER" -node "$NODE" -node-ip "$NODE_IP" -service-ip "$API_SERVICE_IP" ||
    die "the cluster's certificates could not be written to $PKI"
  install -m 600 "$PKI/admin.kubeconfig" "$KUBECONFIG_PATH"
}

start_etcd() {
  start_part etcd "$BIN/etcd" --name "$NODE" --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "$ETCD_CLIENT" --advertise-client-urls "$ETCD_CLIENT" \
    --listen-peer-urls "$ETCD_PEER" --initial-advertise-peer-urls "$ETCD_PEER" --initial-cluster "$NODE=$ETCD_PEER"
}

start_containerd() {
  start_part containerd containerd --config "$RUN/config/containerd.toml"
}

start_apiserver() {
  start_part kube-apiserver "$BIN/kube-apiserver" \
    --etcd-servers "$ETCD_CLIENT" --bind-address "$NODE_IP" --secure-port 6443 --advertise-address "$NODE_IP" \
    --service-cluster-ip-range "$SERVICE_CIDR" --authorization-mode Node,RBAC \
    --enable-admission-plugins NodeRestriction --allow-privileged=true --endpoint-reconciler-type lease \
    --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --kubelet-preferred-address-types InternalIP --kubelet-certificate-authority "$PKI/ca.crt" \
    --kubelet-client-certificate "$PKI/apiserver-kubelet-client.crt" \
    --kubelet-client-key "$PKI/apiserver-kubelet-client.key" \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$PKI/sa.key" \
    --service-account-signing-key-file "$PKI/sa.key" \
    --audit-policy-file "$RUN/config/audit.yaml" --audit-log-path "$LOGS/audit.log" \
    --audit-log-maxsize 200 --audit-log-maxbackup 2
}

start_controllers() {
  start_part kube-controller-manager "$BIN/kube-controller-manager" \
    --kubeconfig "$PKI/kube-controller-manager.kubeconfig" --leader-elect=false --use-service-account-credentials \
    --bind-address 127.0.0.1 --secure-port 23757 --root-ca-file "$PKI/ca.crt" \
    --service-account-private-key-file "$PKI/sa.key" \
    --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key" \
    --kube-api-qps 200 --kube-api-burst 400 --flex-volume-plugin-dir "$RUN/kubelet/plugins"
  start_part kube-scheduler "$BIN/kube-scheduler" --kubeconfig "$PKI/kube-scheduler.kubeconfig" \
    --leader-elect=false --bind-address 127.0.0.1 --secure-port 23759 --kube-api-qps 200 --kube-api-burst 400
  start_part local-storage "$BIN/local-storage" --kubeconfig "$PKI/local-storage.kubeconfig" \
    --root "$RUN/volumes" --node "$NODE"
}

start_kubelet() {
  start_part kubelet "$BIN/kubelet" --config "$RUN/config/kubelet.yaml" \
    --kubeconfig "$PKI/kubelet-client.kubeconfig" --hostname-override "$NODE" --node-ip "$NODE_IP" \
    --root-dir "$RUN/kubelet"
}

start_proxy() {
  start_part kube-proxy "$BIN/kube-proxy" --config "$RUN/config/kube-proxy.yaml" --hostname-override "$NODE"
}

# Makes NetworkPolicies real: no CNI that does is to be had as a package.
start_enforcer() {
  start_part enforcer "$BIN/enforcer" -kubectl "$BIN/kubectl" -kubeconfig "$KUBECONFIG_PATH" -table "$MARK-policies"
}

# Pods' control groups hang under one of ours, so that whatever runs there is known to be ours.
make_cgroups() {
  local controller
  if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    for controller in $(</sys/fs/cgroup/cgroup.controllers); do
      echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true
    done
    mkdir -p "/sys/fs/cgroup/$MARK"
    return
  fi
  for controller in /sys/fs/cgroup/*/; do
    mkdir -p "$controller$MARK"
    # A cpuset without processors takes no process.
    if [[ -e $controller$MARK/cpuset.cpus ]]; then
      cat "${controller}cpuset.cpus" >"$controller$MARK/cpuset.cpus"
      cat "${controller}cpuset.mems" >"$controller$MARK/cpuset.mems"
    fi
  done
}

load_system_images() {
  local tar
  for tar in "$IMAGES/pause.tar" "$IMAGES/coredns.tar"; do
    ctr_here images import "$tar" >>"$LOGS/images.log" 2>&1 || fail_part containerd "could not import $tar"
  done
}

node_is_ready() { kubectl_here wait --for=condition=Ready "node/$NODE" --timeout 1s; }

apply_addons() {
  kubectl_here apply --server-side --force-conflicts -f "$RUN/config/addons.yaml"
}

# Steps without a log of their own end the run in words too.
step_failed() {
  say "error: could not start the cluster: '$BASH_COMMAND' failed. Logs: $LOGS"
  sweep
  exit 1
}

start_cluster() {
  trap step_failed ERR
  make_network
  make_cgroups
  write_config
  start_etcd
  start_containerd
  start_apiserver
  wait_for containerd 20 ctr_here version
  load_system_images
  wait_for kube-apiserver 60 kubectl_here --request-timeout 2s get --raw /readyz
  # From an earlier run: their last status would pass for today's.
  kubectl_here --namespace kube-system delete pods --all --force --grace-period 0 >/dev/null 2>&1 || true
  start_controllers
  start_enforcer
  start_kubelet
  start_proxy
  wait_for kube-apiserver 30 apply_addons
  wait_for kubelet 60 node_is_ready
  wait_for_dns
  trap - ERR
}

wait_for_dns() {
  local pods
  kubectl_here --namespace kube-system rollout status deployment/coredns --timeout 60s >/dev/null 2>&1 && return
  say "error: CoreDNS did not become ready. What its pods say:"
  pods=$(kubectl_here --namespace kube-system describe pods --selector k8s-app=kube-dns 2>&1 | tail -n 15)
  say "$pods"
  kubectl_here --namespace kube-system logs deployment/coredns --tail 10 >&2 || true
  fail_part kubelet "could not bring CoreDNS up"
}
