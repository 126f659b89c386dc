#!/usr/bin/env bash
# Everything that is asked of a GPU, in ten minutes; its JSON files go to the folder that is given.
#
#   benchmarks/gpu.sh OUT MAP LOG       # on a machine with a GPU; MAP has SuperPoint features
#   D2S_DEVICE=cpu benchmarks/gpu.sh OUT MAP LOG   # its steps where there is none
#   D2S_FIGURES="--record" benchmarks/gpu.sh OUT MAP LOG   # also benchmarks/results/gpu.json
#
# The tests that need a GPU; a map that is given, frame by frame; then two sizes of images, several
# cameras at once, and training steps a second of each recipe (benchmarks/gpu_figures.py).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:?folder for the results} map=${2:?map} log=${3:?log}
device=${D2S_DEVICE:-cuda} python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

# One step: its name, the most seconds it may take, the command. The others go on where it fails.
step() {
  local name=$1 limit=$2
  shift 2
  echo "==== $name: $*"
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  local status=$?
  tail -n 5 "$out/$name.txt"
  printf '{"step": "%s", "device": "%s", "exit": %d}\n' "$name" "$device" "$status" >"$out/$name.status.json"
  [ "$status" = 0 ] || failed=1
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv >"$out/card.txt"
if [ "$device" = cuda ]; then
  step tests 200 "$python" -m pytest -q -m gpu test
fi
step frame 120 "$python" -m d2s_ros.cli.main benchmark "$map" "$log" --device "$device" --frames "${D2S_FRAMES:-50}" --json "$out/frame.json"
# shellcheck disable=SC2086 # several words are meant
PYTHONPATH=.:benchmarks step figures 270 "$python" benchmarks/gpu_figures.py --out "$out/figures.json" --device "$device" ${D2S_FIGURES:-}
exit "$failed"
