#!/bin/sh
# Everything that needs a GPU, in one go: build, tests, memory checks, benchmarks. Results: benchmarks/results/*.json.
# What cannot run is named and skipped; the exit status is 1 if anything that ran failed.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
results=benchmarks/results
failed=""

skip() { echo "skipped: $1 ($2)"; }
attempt() {
  name=$1
  shift
  echo "== $name"
  "$@" || failed="$failed; $name"
}

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  for name in "build with CUDA" "GPU tests" "compute-sanitizer" "GPU benchmarks"; do
    skip "$name" "torch finds no CUDA device"
  done
  exit 0
fi

mkdir -p "$results"
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')

if "$python" -c 'import sys; from tests.cuda_toolkit import find_nvcc; sys.exit(find_nvcc() is None)'; then
  attempt "build with CUDA" "$python" -m pip install --no-build-isolation --no-deps -e .
else
  skip "build with CUDA" "nvcc not found; the installed build is tested"
fi

attempt "GPU tests" "$python" -m pytest -m cuda tests --junitxml="$results/gpu-tests-$device.xml"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck initcheck; do
    attempt "compute-sanitizer $tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
      tests/cuda -k "(unaligned or special) and not triton"
  done
else
  skip "compute-sanitizer" "not found on PATH"
fi

if "$python" -c 'import pytest_benchmark' 2>/dev/null; then
  for suite in benchmarks/bench_*.py; do
    name=$(basename "$suite" .py)
    attempt "$name" "$python" -m pytest "$suite" --write-results "$results"
  done
else
  skip "GPU benchmarks" "pytest-benchmark is not installed"
fi

if [ -n "$failed" ]; then
  echo "failed: ${failed#; }"
  exit 1
fi
echo "all that could run passed"
