#!/bin/sh
# What a machine with a GPU can say about this tree, the most valuable truth first.
#
#   sh benchmarks/gpu_check.sh          within 8 minutes, nothing needed but python3, torch and nvcc
#   sh benchmarks/gpu_check.sh --all    without a limit: every GPU test, all suites, chart, targets
#
# Results are written as they come, to benchmarks/results/*-CARD.json (--all: *-cuda.json as well).
# Exit status: 0 all passed; 1 something failed, was not reached or missed its target, or the machine
# cannot be asked; 77 there is no GPU, so nothing ran.
# Environment: PYTHON (python3), RESULTS (benchmarks/results), LIMIT (480 seconds in all).
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
results=${RESULTS:-benchmarks/results}
everything=""
limit=${LIMIT:-480}
case ${1:-} in
"") ;;
--all) everything=yes limit=${LIMIT:-86400} ;;
*)
  echo "usage: $0 [--all]" >&2
  exit 1
  ;;
esac
failed=""
started=$(date +%s)

give_up() {
  echo "failed: $1"
  exit 1
}
skip() { echo "skipped: $1 ($2)"; }
fail() { failed="$failed; $1"; }
# begin NAME SECONDS: sets own, the seconds of a stage: its own limit, or what the whole check's leaves.
begin() {
  name=$1 own=$2
  left=$((started + limit - $(date +%s)))
  if [ "$left" -lt 5 ]; then
    fail "$name (not reached)"
    return 1
  fi
  [ "$own" -gt "$left" ] && own=$left
  echo "== $((limit - left)) s: $name"
}
# attempt NAME SECONDS COMMAND...
attempt() {
  begin "$1" "$2" || return
  shift 2
  timeout -k 5 "$own" "$@"
  code=$?
  case $code in
  0) ;;
  124 | 137) fail "$name (ended after $own s)" ;;
  *) fail "$name" ;;
  esac
}

"$python" -c 'import torch' || give_up "$python cannot import torch (PYTHON chooses another)"
# The card's name and architecture; nothing where torch finds no GPU.
found=$("$python" -c '
import re, torch
if torch.cuda.is_available():
    name = re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    print(name, "{}{}-real".format(*torch.cuda.get_device_capability()))
') || give_up "torch cannot be asked for a GPU"
if [ -z "$found" ]; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    give_up "nvidia-smi finds a GPU but torch does not: another torch or driver is needed"
  fi
  for name in "build with CUDA" "every op on Triton" "every op on CUDA" "bandwidth on CUDA" \
    "recordings" "compute-sanitizer" "CUDA tests" "whole steps" "bandwidth on Triton"; do
    skip "$name" "torch finds no CUDA device"
  done
  exit 77
fi
card=${found% *}
echo "card: $card"
mkdir -p "$results"
say() { echo "$results/$1-$card.json"; }

# In place of an installation: these two folders belong into the package.
for folder in kernels benchmarks; do
  [ -e "synq_fast/$folder" ] && continue
  ln -s "../$folder" "synq_fast/$folder"
  made="${made:-} synq_fast/$folder"
done
trap 'rm -f ${made:-}' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# A build that fails is a failure, not a reason to fall back.
export SYNQ_FAST_REQUIRE_NATIVE=1 SYNQ_FAST_CUDA_ARCHITECTURES="${SYNQ_FAST_CUDA_ARCHITECTURES:-${found#* }}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

jobs=$(($(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 4) - 2))
[ "$jobs" -lt 1 ] && jobs=1
pytest="-m pytest -q --tb=short -p no:cacheprovider"
if "$python" -c 'import xdist' 2>/dev/null; then parallel="-n $jobs"; else parallel=""; fi

build() {
  if "$python" -c 'import sys; from tests.cuda_toolkit import find_nvcc; sys.exit(find_nvcc() is None)'; then
    timeout -k 5 240 "$python" setup.py --quiet build_ext --inplace || return 1
  fi
  "$python" -c 'from synq_fast import _C; assert _C.cuda_version, "built without CUDA"'
}
build >"$results/build-$card.log" 2>&1 &
building=$!
# Triton needs no build, and most of its time goes into compiling: beside it.
attempt "every op on Triton" 180 "$python" -m benchmarks.every_op --device cuda --backend triton \
  --capture --jobs "$jobs" --json "$(say every_op-triton)"
echo "== build with CUDA"
if ! wait "$building"; then
  tail -n 30 "$results/build-$card.log"
  fail "build with CUDA"
fi
attempt "every op on CUDA" 60 "$python" -m benchmarks.every_op --device cuda --backend cuda \
  --capture --jobs "$jobs" --json "$(say every_op-cuda)"
attempt "bandwidth on CUDA" 60 "$python" -m benchmarks.bandwidth --backend cuda \
  --json "$(say bandwidth-cuda)"
attempt "recordings" 60 "$python" $pytest tests/cuda/test_replay_cuda.py \
  --junitxml="$results/recordings-$card.xml"
# sanitize TOOL SECONDS: in the background. Without the caching allocator each tensor ends where it
# should, so that overruns are seen; PyTorch's own kernels are left out, but initcheck has to see who
# writes.
sanitizing=""
sanitize() {
  tool=$1
  begin "compute-sanitizer $tool" "$2" || return
  set -- --kernel-name kns=synq
  [ "$tool" = initcheck ] && set --
  timeout -k 5 "$own" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$@" \
    "$python" -m benchmarks.every_op --device cuda --backend cuda \
    >"$results/sanitizer-$tool-$card.log" 2>&1 &
  sanitizing="$sanitizing $tool=$!"
}
sanitized() {
  for pair in $sanitizing; do
    wait "${pair#*=}" && continue
    tail -n 20 "$results/sanitizer-${pair%=*}-$card.log"
    fail "compute-sanitizer ${pair%=*}"
  done
  sanitizing=""
}
if command -v compute-sanitizer >/dev/null; then
  # Nothing is timed until they have ended.
  for tool in memcheck racecheck synccheck; do sanitize "$tool" 150; done
else
  skip "compute-sanitizer" "not found on PATH"
fi
attempt "CUDA tests" 110 "$python" $pytest tests/cuda --ignore=tests/cuda/test_replay_cuda.py \
  -m "cuda and not slow" $parallel --junitxml="$results/cuda-tests-$card.xml"
sanitized
attempt "whole steps" 100 "$python" -m benchmarks.step_times --json "$(say step_times)"
attempt "bandwidth on Triton" 60 "$python" -m benchmarks.bandwidth --backend triton \
  --json "$(say bandwidth-triton)"

if [ -n "$everything" ]; then
  attempt "GPU tests" 7200 "$python" $pytest -m cuda tests --junitxml="$results/gpu-tests-cuda.xml"
  if command -v compute-sanitizer >/dev/null; then
    sanitize initcheck 1800
    sanitized
  fi
  # Whether it takes the place of kernels/block_shapes.json is for those who read it to say.
  attempt "block shapes" 3600 "$python" -m benchmarks.block_shapes --output "$(say block_shapes)"
  if "$python" -c 'import pytest_benchmark' 2>/dev/null; then
    # Suites apart, so that one that crashes does not take the others' results with it.
    for suite in benchmarks/bench_*.py; do
      attempt "$(basename "$suite" .py)" 3600 \
        "$python" -m pytest "$suite" -q --benchmark-quiet --device cuda --write-results "$results"
    done
    # Folders of their own: a suite's file has the suite's name, whatever the model.
    for batch in 16 256; do
      attempt "step, ResNet-18, batch $batch" 3600 "$python" -m pytest benchmarks/bench_step.py -q \
        --benchmark-quiet --device cuda --model resnet18 --batch "$batch" \
        --write-results "$results/resnet18-batch$batch"
    done
    attempt "synthesis, ResNet-18, batch 256" 3600 "$python" -m pytest benchmarks/bench_synthesis.py -q \
      --benchmark-quiet --device cuda --model resnet18 --batch 256 \
      --write-results "$results/resnet18-batch256"
    attempt "cost of ImageNet runs" 3600 "$python" -m benchmarks.imagenet_cost \
      --json "$results/imagenet_cost-cuda.json"
    if "$python" -c 'import matplotlib' 2>/dev/null; then
      attempt "chart" 300 "$python" -m benchmarks.plot "$results"/*-cuda.json "$results/bandwidth-cuda.png"
    else
      skip "chart" "matplotlib is not installed"
    fi
    attempt "targets" 300 "$python" -m benchmarks.targets "$results"/*-cuda.json \
      "$(say every_op-cuda)" "$(say every_op-triton)"
  else
    fail "suites (pytest-benchmark is not installed)"
  fi
  if [ -n "${SYNQ_FAST_DATA:-}" ]; then
    attempt "precisions" 7200 "$python" -m benchmarks.precisions --output runs/precisions \
      --json "$results/precisions-cuda.json"
  else
    skip "precisions" "SYNQ_FAST_DATA names no folder of weights and images"
  fi
fi

if [ -n "$failed" ]; then
  echo "failed: ${failed#; }"
  exit 1
fi
echo "all that could run passed"
