#!/bin/sh
# Everything that needs a GPU, in one go: build, tests, memory checks, benchmarks, targets.
# Results: benchmarks/results/*-cuda.*. What cannot run is named and skipped; the exit status is 1 if
# anything that ran failed or a target is missed.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
results=${RESULTS:-benchmarks/results}
failed=""

skip() { echo "skipped: $1 ($2)"; }
attempt() {
  name=$1
  shift
  echo "== $name"
  "$@" || failed="$failed; $name"
}

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  for name in "build with CUDA" "GPU tests" "every op" "compute-sanitizer" "GPU benchmarks" \
    "whole steps" "precisions" "targets"; do
    skip "$name" "torch finds no CUDA device"
  done
  exit 0
fi

mkdir -p "$results"

if "$python" -c 'import sys; from tests.cuda_toolkit import find_nvcc; sys.exit(find_nvcc() is None)'; then
  attempt "build with CUDA" "$python" -m pip install --no-build-isolation --no-deps -e .
else
  skip "build with CUDA" "nvcc not found; the installed build is tested"
fi

attempt "GPU tests" "$python" -m pytest -m cuda tests --junitxml="$results/gpu-tests-cuda.xml"
attempt "every op" "$python" -m benchmarks.every_op --device cuda --capture --json "$results/every_op-cuda.json"

# Without the caching allocator each tensor ends where it should, so that overruns are seen.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    attempt "compute-sanitizer $tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m benchmarks.every_op --device cuda --backend cuda
  done
  attempt "compute-sanitizer memcheck, Triton" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$python" -m benchmarks.every_op --device cuda --backend triton
else
  skip "compute-sanitizer" "not found on PATH"
fi

if "$python" -c 'import pytest_benchmark' 2>/dev/null; then
  # Suites apart, so that one that crashes does not take the others' results with it.
  for suite in benchmarks/bench_*.py; do
    attempt "$(basename "$suite" .py)" \
      "$python" -m pytest "$suite" -q --benchmark-quiet --device cuda --write-results "$results"
  done
  # Folders of their own: a suite's file has the suite's name, whatever the model.
  for batch in 16 256; do
    attempt "step, ResNet-18, batch $batch" "$python" -m pytest benchmarks/bench_step.py -q \
      --benchmark-quiet --device cuda --model resnet18 --batch "$batch" \
      --write-results "$results/resnet18-batch$batch"
  done
  attempt "synthesis, ResNet-18, batch 256" "$python" -m pytest benchmarks/bench_synthesis.py -q \
    --benchmark-quiet --device cuda --model resnet18 --batch 256 \
    --write-results "$results/resnet18-batch256"
  attempt "cost of ImageNet runs" "$python" -m benchmarks.imagenet_cost \
    --json "$results/imagenet_cost-cuda.json"
  set -- "$results"/*-cuda.json
  if "$python" -c 'import matplotlib' 2>/dev/null; then
    attempt "chart" "$python" -m benchmarks.plot "$@" "$results/bandwidth-cuda.png"
  else
    skip "chart" "matplotlib is not installed"
  fi
  attempt "targets" "$python" -m benchmarks.targets "$@"
else
  skip "GPU benchmarks" "pytest-benchmark is not installed"
  skip "whole steps" "pytest-benchmark is not installed"
  skip "targets" "pytest-benchmark is not installed"
fi

if [ -n "${SYNQ_FAST_DATA:-}" ]; then
  attempt "precisions" "$python" -m benchmarks.precisions --output runs/precisions \
    --json "$results/precisions-cuda.json"
else
  skip "precisions" "SYNQ_FAST_DATA names no folder of weights and images"
fi

if [ -n "$failed" ]; then
  echo "failed: ${failed#; }"
  exit 1
fi
echo "all that could run passed"
