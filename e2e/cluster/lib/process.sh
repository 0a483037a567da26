# shellcheck shell=bash disable=SC2153
# Starts the cluster's processes, tells whether one is ours, and ends only those. It knows no part's flags.

# Whether PID runs for this cluster: every part of ours has a path under $RUN among its arguments.
is_ours() {
  local pid=$1 arguments
  [[ $pid =~ ^[0-9]+$ && -r /proc/$pid/cmdline ]] || return 1
  mapfile -d '' -t arguments 2>/dev/null </proc/"$pid"/cmdline || return 1
  [[ ${arguments[*]} == *"$RUN/"* ]]
}

# Prints the part's process id if it runs.
pid_of() {
  local pid
  [[ -r $PIDS/$1.pid ]] && read -r pid <"$PIDS/$1.pid" && is_ours "$pid" && echo "$pid"
}

# By this command, in order: the first to die is the one to blame.
STARTED=()

# NAME COMMAND...: in a session of its own, without our terminal, lock or other open files.
start_part() {
  local name=$1 fd
  shift
  mkdir -p "$LOGS" "$PIDS"
  (
    for fd in /proc/"$BASHPID"/fd/*; do
      fd=${fd##*/}
      ((fd <= 2)) || eval "exec $fd>&-"
    done
    cd /
    exec setsid "$@"
  ) </dev/null >"$LOGS/$name.log" 2>&1 &
  echo $! >"$PIDS/$name.pid"
  STARTED+=("$name")
  # Until it has become the part, it cannot be told from this script.
  while kill -0 $! 2>/dev/null && ! is_ours $!; do sleep 0.01; done
}

# NAME SECONDS COMMAND...: until the command succeeds, a part dies, or the time is over.
wait_for() {
  local name=$1 deadline=$((SECONDS + $2)) part
  shift 2
  until "$@" >/dev/null 2>&1; do
    for part in "${STARTED[@]}"; do
      pid_of "$part" >/dev/null || fail_part "$part" "ended by itself"
    done
    ((SECONDS < deadline)) || fail_part "$name" "did not become ready in time"
    sleep 0.1
  done
}

# Says in words what failed, shows the end of that part's log, and leaves nothing running.
fail_part() {
  local name=$1 what=$2
  say "error: $name $what. The end of $LOGS/$name.log:"
  tail -n 20 "$LOGS/$name.log" | cut -c1-400 | sed 's/^/  /' >&2
  say "stopping what was started"
  sweep
  exit 1
}

stop_part() {
  local pid
  pid=$(pid_of "$1") || return 0
  kill -TERM "$pid" 2>/dev/null || true
  local tries
  for ((tries = 0; tries < 50; tries++)); do
    is_ours "$pid" || break
    sleep 0.1
  done
  is_ours "$pid" && kill -KILL "$pid" 2>/dev/null
  rm -f "$PIDS/$1.pid"
}

# Processes of pods: they live in control groups under ours, and under shims that were given our socket.
pod_processes() {
  owns_machine || return 0
  find /sys/fs/cgroup -path "*/$MARK/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un || true
}

shim_processes() {
  local cmdline
  { grep -aslF -- "$CONTAINERD_SOCKET" /proc/[0-9]*/cmdline || true; } | while read -r cmdline; do
    if [[ $(readlink "${cmdline%/cmdline}/exe") == */containerd-shim* ]]; then basename "${cmdline%/cmdline}"; fi
  done
}

kill_pods() {
  local tries pids
  for ((tries = 0; tries < 50; tries++)); do
    mapfile -t pids < <(shim_processes; pod_processes)
    ((${#pids[@]})) || return 0
    kill -KILL "${pids[@]}" 2>/dev/null || true
    sleep 0.05
  done
  say "warning: these processes of pods did not end: ${pids[*]}"
}
