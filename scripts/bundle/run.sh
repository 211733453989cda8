#!/bin/sh
# Runs rankzero out of this folder. Needs glibc, sh and gzip (xz or python3, where node.xz is in bin/); a GPU only where it is asked for.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
app=$here/rankzero
node=$here/bin/node

fail() {
  echo "run.sh: $*" >&2
  exit 1
}

usage() {
  cat <<EOF
usage: $0 COMMAND [options]

  doctor              check this machine; doctor --gpu: every op, collective and speed of its GPU
  finetune            without options: the quickstart, 2 CPU ranks, into ./out/quickstart; else as rankzero finetune
  bench NAME          a bench of rankzero/bench, e.g. bench training --quick, bench gpu/training --python python3
  all OUT             everything that a GPU host can prove and measure, with JSON and text in OUT
  plan, generate, convert, run   as rankzero

COMMAND --help has all options. The first run unpacks this folder, which needs 250 MB.
EOF
}

decompress() {
  if [ -f "$node.gz" ]; then gzip -dc "$node.gz"
  elif command -v xz >/dev/null; then xz -dc "$node.xz"
  else python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer, 1 << 20)' "$node.xz"
  fi
}

unpack() {
  machine=$(cat "$here/machine")
  [ "$(uname -m)" = "$machine" ] || fail "this bundle is for $machine, and this machine is $(uname -m)"
  part=$node.$$
  { decompress >"$part" && chmod +x "$part" && mv "$part" "$node"; } || {
    rm -f "$part"
    fail "cannot unpack into $here/bin; put the bundle on a file system that can be written and has 250 MB free"
  }
}

[ $# -gt 0 ] || { usage >&2; exit 2; }
command=$1
shift
case $command in help | --help | -h) usage; exit 0 ;; esac
[ -x "$node" ] || unpack
# A host may lack the C++ library that Node needs, or have one that is too old for the addon.
own_libraries() {
  LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH
}
"$node" --version >/dev/null 2>&1 || own_libraries
[ -f "$here/unpacked" ] || "$node" "$here/unpack.mjs" "$here" || exit 1
[ "$(cat "$here/unpacked")" != "own libraries" ] || own_libraries

# Containers have the driver here, not always where the loader looks. Where the system has no cuBLASLt or NCCL, Python's
# packages often have.
gpu_libraries() {
  driver=/usr/local/nvidia/lib64/libcuda.so.1
  [ ! -f $driver ] || export RANKZERO_CUDA_DRIVER_PATH="${RANKZERO_CUDA_DRIVER_PATH:-$driver}"
  { [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ]; } && command -v python3 >/dev/null || return 0
  found=$(python3 -c 'import nvidia; print(*nvidia.__path__, sep="\n")' 2>/dev/null) || return 0
  # cuBLASLt 13 wants a driver of CUDA 13, whose kernel module is 580 or newer.
  module=$(sed -n 's/^NVRM.* \([0-9][0-9]*\)\.[0-9.]*  .*/\1/p' /proc/driver/nvidia/version 2>/dev/null | head -n 1)
  versions='13 12'
  [ "${module:-580}" -ge 580 ] || versions='12 13'
  for version in $versions; do
    for folder in $found; do
      for file in "$folder"/*/lib/libcublasLt.so.$version; do
        [ ! -f "$file" ] || export RANKZERO_CUBLASLT_PATH="${RANKZERO_CUBLASLT_PATH:-$file}"
      done
    done
  done
  for folder in $found; do
    for file in "$folder"/*/lib/libnccl.so.2; do
      [ ! -f "$file" ] || export RANKZERO_NCCL_PATH="${RANKZERO_NCCL_PATH:-$file}"
    done
  done
}
gpu_libraries

rankzero() { exec "$node" "$app/dist/cli/main.js" "$@"; }
case $command in
  finetune)
    [ $# -gt 0 ] || rankzero finetune --model "$app/examples/moby-llama" \
      --data "$app/examples/data/devils-dictionary.train.jsonl" --eval-data "$app/examples/data/devils-dictionary.eval.jsonl" \
      --out out/quickstart --nproc 2 --epochs 3 --batch-size 8 --lr 6e-4 --schedule linear --weight-decay 0.1 \
      --sample-prompt 'Define comfort (n.)'
    rankzero finetune "$@" ;;
  doctor | plan | generate | convert | run) rankzero "$command" "$@" ;;
  bench)
    [ $# -gt 0 ] && [ -f "$app/bench/$1.mjs" ] || fail "bench NAME: one of $(cd "$app/bench" && echo *.mjs gpu/*.mjs | sed 's/\.mjs//g')"
    bench=$1
    shift
    exec "$node" "$app/bench/$bench.mjs" "$@" ;;
  all) exec "$node" "$app/bench/gpu/visit.mjs" "$@" ;;
  *) usage >&2; fail "no such command: $command" ;;
esac
