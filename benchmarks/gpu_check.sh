#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call of at most nine minutes: build, gpu-marked tests, benchmark.
# Works with the packages that the machine has (torch, triton, pytest, and a build environment for _C and _C_cuda if it
# is there) and without a network. Ends in a short table; logs and results are left in $OUT, or build/gpu_check.
#
#   bash benchmarks/gpu_check.sh
# shellcheck disable=SC2329  # the steps are functions that `step` calls through bash -c
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-$root/build/gpu_check}
python=${PYTHON:-python3}
site=$(mktemp -d)
table=()
failed=0
mkdir -p "$out"
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_check: torch sees no CUDA device" >&2
    exit 2
fi
trap 'rm -rf "$site"' EXIT

# step NAME SECONDS COMMAND...: run with a limit, keep the log, note the result and the log's last line.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0 result=ok
    shift 2
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    if ((status == 124 || status == 137)); then
        result="over ${limit} s"
    elif ((status != 0)); then
        result="failed ($status)"
    fi
    table+=("$(printf '%-12s %-14s %4d s   %s' "$name" "$result" $((SECONDS - begin)) "$(tail -n 1 "$out/$name.log" | cut -c1-90)")")
    return "$status"
}

build() {
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$site" \
        --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=native "$root"
}

describe() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$python" -m smoothloss
}

# From a folder without the sources, so that the installed package is found and not the folder of that name.
run_tests() {
    local workers=()
    "$python" -c "import xdist" 2>/dev/null && workers=(-n 4)
    cd "$root/tests" && "$python" -m pytest ops -m gpu --quiet -p no:cacheprovider "${workers[@]}"
}

run_benchmark() {
    ln -s "$root/benchmarks" "$site/benchmarks" && cd "$site" &&
        "$python" -m benchmarks.mle_vs_lazy --device cuda --out "$out/mle_vs_lazy"
}

export -f build describe run_tests run_benchmark
export root out python site

if step build 150 bash -c build; then
    export PYTHONPATH=$site
else
    # Without the build there is still Triton, straight from the sources.
    failed=1
    cp -r "$root/smoothloss" "$site/smoothloss"
    export PYTHONPATH=$site
fi
cd "$site" || exit 1
step describe 30 bash -c describe || failed=1
step tests 240 bash -c run_tests || failed=1
step benchmark 110 bash -c run_benchmark || failed=1

cat "$out/describe.log"
grep -E '^(FAILED|ERROR)' "$out/tests.log" | head -n 40
cat "$out/benchmark.log"
printf '%s\n' "${table[@]}"
exit "$failed"
