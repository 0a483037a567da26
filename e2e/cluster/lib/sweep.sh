# shellcheck shell=bash
# Takes down whatever a run has left, alive or dead: processes, control groups, mounts, interfaces, rules. It keeps data.

sweep() {
  local index
  # First who would start pods again, then who would tidy up after them and lose the shims' notes.
  stop_part kubelet
  stop_part containerd
  kill_pods
  for ((index = ${#PARTS[@]} - 1; index >= 0; index--)); do stop_part "${PARTS[index]}"; done
  remove_mounts
  remove_shim_sockets
  remove_cgroups
  remove_network
  remove_kubelet_traces
  # Of the last boot: a runtime's state, addresses given to pods, what the kubelet had mounted.
  rm -rf "$RUN/containerd/state" "$RUN/containerd/runc" "$RUN/cni/networks" "$RUN/kubelet" "$RUN/pods" "$CONTAINERD_SOCKET" "$CONTAINERD_SOCKET.ttrpc"
}

our_mounts() { awk -v run="$RUN/" 'index($5, run) == 1 {print $5}' /proc/self/mountinfo | sort -r; }

remove_mounts() {
  local mount
  our_mounts | while read -r mount; do
    mount=$(printf '%b' "$mount")
    umount "$mount" 2>/dev/null || umount --lazy "$mount" || say "warning: $mount could not be unmounted"
  done
}

# Shims keep their sockets in a folder that all containerds of a machine share; each notes its own address.
remove_shim_sockets() {
  local note address
  for note in "$RUN"/containerd/state/*/*/*/address; do
    [[ -r $note ]] && read -r address <"$note" || [[ -n ${address:-} ]] || continue
    rm -f "${address#unix://}"
    address=
  done
}

our_cgroups() { find /sys/fs/cgroup -maxdepth 2 -type d -name "$MARK"; }

remove_cgroups() {
  owns_machine || return 0
  local group
  our_cgroups | while read -r group; do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || say "warning: $group could not be removed"
  done
}

# The kubelet makes these whatever its own folder is.
remove_kubelet_traces() {
  local link
  for link in /var/log/containers/*; do
    [[ -L $link && $(readlink "$link") == "$RUN"/* ]] && rm -f "$link"
  done
  grep -qF /var/lib/kubelet/device-plugins/kubelet.sock /proc/net/unix || rm -f /var/lib/kubelet/device-plugins/kubelet.sock
  rmdir /var/log/containers /var/lib/kubelet/device-plugins /var/lib/kubelet 2>/dev/null || true
}
