#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call of at most nine minutes: build, gpu-marked tests, compute-sanitizer on
# the CUDA kernels, benchmarks, and the table of targets. Works with the packages that the machine has (torch, triton,
# pytest, a build environment for _C and _C_cuda if it is there) and without a network; peers that are missing are rows
# that say so. Logs and results are left in $OUT, or build/gpu_check; the JSON files come back as one archive too.
#
#   bash benchmarks/gpu_check.sh
#
# In the environment, all optional:
#   PEERS    folder with wheels of peers (liger_kernel, cut_cross_entropy, ...), installed beside the package
#   COMMIT   what the results are recorded under where git is not at hand
#   STEPS    the steps to run, default: "tests sanitizer logits linear exact lazy"
# shellcheck disable=SC2329  # the steps are functions that `step` calls through bash -c
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${OUT:-$root/build/gpu_check}
python=${PYTHON:-python3}
steps=${STEPS:-tests sanitizer logits linear exact lazy}
peers=${PEERS:-}
total=535 # seconds for everything
site=$(mktemp -d)
table=()
failed=0
mkdir -p "$out"
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_check: torch sees no CUDA device" >&2
    exit 2
fi
trap 'rm -rf "$site"' EXIT

# step NAME SECONDS COMMAND...: run with a limit, never beyond the total; keep the log, note the result and the log's
# last line.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0 result=ok left=$((total - SECONDS))
    shift 2
    ((limit > left)) && limit=$left
    if ((limit < 5)); then
        table+=("$(printf '%-12s %-14s' "$name" "no time left")")
        return 1
    fi
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    if ((status == 124 || status == 137)); then
        result="over ${limit} s"
    elif ((status != 0)); then
        result="failed ($status)"
    fi
    table+=("$(printf '%-12s %-14s %4d s   %s' "$name" "$result" $((SECONDS - begin)) "$(tail -n 1 "$out/$name.log" | cut -c1-90)")")
    return "$status"
}

wanted() {
    [[ " $steps " == *" $1 "* ]]
}

build() {
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$site" \
        --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=native "$root"
}

install_peers() {
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$peers"/*.whl
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

# One tool over the CUDA kernels. The allocator of torch is switched off, or it would hide what lies between tensors.
sanitize() {
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || {
        echo "compute-sanitizer is not installed"
        return 0
    }
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$1" --error-exitcode 9 --print-limit 20 \
        "$python" -m benchmarks.sanitize_cuda
}

# run_benchmark SUITE SECONDS ARGUMENTS...: into a folder of its own, so that a suite can be run in parts.
run_benchmark() {
    "$python" -m benchmarks --suite "$1" --device cuda --seconds "$2" --out "$out/$3" "${@:4}"
}

export -f build install_peers describe run_tests sanitize run_benchmark
export root out python site peers

if step build 150 bash -c build; then
    export PYTHONPATH=$site
else
    # Without the build there is still Triton, straight from the sources.
    failed=1
    cp -r "$root/smoothloss" "$site/smoothloss"
    export PYTHONPATH=$site
fi
ln -s "$root/benchmarks" "$site/benchmarks"
if [[ -n $peers ]]; then
    step peers 30 bash -c install_peers || failed=1
fi
cd "$site" || exit 1
step describe 30 bash -c describe || failed=1
if wanted tests; then
    step tests 150 bash -c run_tests || failed=1
fi
if wanted sanitizer; then
    step memcheck 50 bash -c "sanitize memcheck" || failed=1
    step racecheck 50 bash -c "sanitize racecheck" || failed=1
fi
# What the targets are about comes first: the budgets inside stop a suite in time, the limits around are for a hang.
if wanted linear; then
    step linear 75 bash -c "run_benchmark linear 45 linear --shapes llama3 coco wmt gemma2" || failed=1
fi
if wanted logits; then
    step logits 90 bash -c "run_benchmark logits 60 logits --dtype bfloat16" || failed=1
    step logits32 40 bash -c "run_benchmark logits 20 logits32 --dtype float32 --shapes coco wmt 32k llama3" || failed=1
fi
if wanted exact; then
    step exact 40 bash -c "run_benchmark exact 20 exact" || failed=1
fi
if wanted lazy; then
    step lazy 40 bash -c "run_benchmark lazy 20 lazy" || failed=1
fi
step targets 20 bash -c '"$python" -m benchmarks.targets "$out"/*/*.json' || failed=1
tar -C "$out" -czf "$out/results.tar.gz" --exclude=results.tar.gz .

cat "$out/describe.log"
if [[ -f $out/tests.log ]]; then
    grep -E '^(FAILED|ERROR)' "$out/tests.log" | head -n 40
fi
for tool in memcheck racecheck; do
    [[ -f $out/$tool.log ]] && grep -E '^=+ (ERROR|RACECHECK|Invalid|Error|Warning)' "$out/$tool.log" | head -n 10
done
for suite in linear logits exact lazy; do
    [[ -f $out/$suite.log ]] && grep -E '^\|' "$out/$suite.log"
done
printf '%s\n' "${table[@]}"
echo
cat "$out/targets.log"
exit "$failed"
