# shellcheck shell=bash
# CLUSTER=current: somebody else's cluster, chosen by KUBECONFIG. It starts and stops nothing.

any_kubectl() {
  if has kubectl; then kubectl "$@"
  elif [[ -x $BIN/kubectl ]]; then "$BIN/kubectl" "$@"
  else die "CLUSTER=current needs kubectl on PATH"
  fi
}

current_context() {
  any_kubectl config current-context 2>/dev/null ||
    die "CLUSTER=current, but ${KUBECONFIG:-~/.kube/config} names no current context. Set KUBECONFIG, or: kubectl config use-context NAME"
}

check_current() {
  local context answer
  context=$(current_context)
  answer=$(any_kubectl version --request-timeout 10s 2>&1) ||
    die "CLUSTER=current: the cluster of context $context does not answer: $answer"
  say "using the cluster of context $context: $(grep -i 'server version' <<<"$answer")"
  echo "${KUBECONFIG:-$HOME/.kube/config}"
}

# TAR...: each kind of local cluster has its own way in.
load_current() {
  local context tar
  context=$(current_context)
  for tar in "$@"; do
    case $context in
      kind-*) need kind && kind load image-archive "$tar" --name "${context#kind-}" ;;
      k3d-*) need k3d && k3d image import "$tar" --cluster "${context#k3d-}" ;;
      minikube) need minikube && minikube image load "$tar" ;;
      *) die "images cannot be loaded into context $context: only kind, k3d and minikube clusters are known. Push $tar to a registry that the cluster pulls from, or load it on its nodes." ;;
    esac || die "$tar could not be loaded into context $context"
  done
}

need() { has "$1" || die "the current context is a $1 cluster, but $1 is not on PATH"; }
