#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in calls of at most nine minutes: build, gpu-marked tests, compute-sanitizer on the
# CUDA kernels, benchmarks, and the table of targets. One call does not hold it all, so give STEPS to two: on an H100 the
# tests took two minutes, the linear suite one for its largest shape alone, whose peers compile. Works with the packages that the machine has (torch, triton,
# pytest, a build environment for _C and _C_cuda if it is there) and without a network; peers that are missing are rows
# that say so. $OUT, or build/gpu_check, is left with a report, the demo's page and an archive of results and logs.
#
#   bash benchmarks/gpu_check.sh
#
# In the environment, all optional:
#   WHEEL    a wheel of this package for the machine, built elsewhere; without it the package is built here
#   PEERS    folder with wheels of peers (liger_kernel, cut_cross_entropy, ...), installed beside the package
#   COMMIT   what the results are recorded under where git is not at hand
#   STEPS    the steps to run, default: "tests sanitizer demo logits linear exact lazy rewards sampling"
#   TOTAL    seconds for everything, default 535
# The steps are functions that `step` calls through bash -c, where their arguments expand:
# shellcheck disable=SC2329,SC2016
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(realpath -m "${OUT:-$root/build/gpu_check}")
python=${PYTHON:-python3}
steps=${STEPS:-tests sanitizer demo logits linear exact lazy rewards sampling}
peers=${PEERS:+$(realpath -m "$PEERS")}
wheel=${WHEEL:+$(realpath -m "$WHEEL")}
total=${TOTAL:-535}
last=20   # of them for the table of targets, which comes last
site=$(mktemp -d)
logs=$out/logs
mkdir -p "$logs"
: >"$logs/steps"
if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_check: torch sees no CUDA device" >&2
    exit 2
fi
trap 'rm -rf "$site"' EXIT

# note NAME RESULT [SECONDS LAST_WORDS]: a line of the table of steps.
note() {
    printf '%-12s %-14s %4s s   %s\n' "$1" "$2" "${3:--}" "${4:-}" >>"$logs/steps"
    [[ $2 == ok ]]
}

# step NAME SECONDS COMMAND...: run with a limit, never beyond the total; keep the log, note the result and the log's
# last line.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0 result=ok left=$((total - SECONDS))
    shift 2
    ((limit > left)) && limit=$left
    if ((limit < 5)); then
        note "$name" "no time left"
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$logs/$name.log" 2>&1 || status=$?
    if ((status == 124 || status == 137)); then
        result="over ${limit} s"
    elif ((status != 0)); then
        result="failed ($status)"
    fi
    note "$name" "$result" $((SECONDS - begin)) "$(tail -n 1 "$logs/$name.log" | cut -c1-90)"
}

wanted() {
    [[ " $steps " == *" $1 "* ]]
}

build() {
    if [[ -n $wheel ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheel"
        # Its compiled modules may need another system than this one.
        (cd "$site" && "$python" -c "import smoothloss._C, smoothloss._C_cuda") && return
        rm -rf "$site"/smoothloss*
    fi
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
    local workers=() cores
    cores=$(nproc)
    "$python" -c "import xdist" 2>/dev/null && workers=(-n $((cores > 12 ? 12 : cores)))
    # Warnings of versions that nobody pinned here are no errors.
    cd "$root/tests" && "$python" -m pytest backends rewards sampling -m gpu --quiet -p no:cacheprovider -W default "${workers[@]}"
}

# One tool over the CUDA kernels. The allocator of torch is switched off, or it would hide what lies between tensors.
sanitize() {
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || {
        echo "compute-sanitizer is not installed"
        return 0
    }
    local status=0
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$1" --error-exitcode 9 --print-limit 100 \
        "$python" -m benchmarks.sanitize_cuda | tee "$logs/$1.found"
    status=${PIPESTATUS[0]}
    # cuBLAS synchronises by means that racecheck does not know, and crashes under the tool's filter of kernel names.
    if [[ $1 == racecheck ]] && ((status == 9)) && grep -q "cases, 0 results off" "$logs/$1.found"; then
        ! grep -E "Race reported|and (Read|Write) access" "$logs/$1.found" | grep -q smoothloss
        status=$?
    fi
    rm "$logs/$1.found"
    return "$status"
}

# Trains and decodes on the card, through the public command.
demo() {
    "$python" -m smoothloss_trainer demo --out "$out/demo" && mv "$out/demo/report.html" "$out/demo.html"
    local status=$?
    cp "$out"/demo/*.log "$logs" 2>/dev/null
    rm -rf "$out/demo"
    return "$status"
}

run_benchmark() {
    "$python" -m benchmarks --suite "$1" --device cuda --seconds "$2" --out "$out/$3" "${@:4}"
}

# bench NAME SUITE SECONDS ARGUMENTS...: a suite, or a part of one, into a folder of that name. The budget keeps it from
# starting a shape too late; the limit around it is for one that hangs.
bench() {
    local name=$1 suite=$2 budget=$3 left=$((total - last - SECONDS - 40))
    ((budget > left)) && budget=$left
    if ((budget < 5)); then
        note "$name" "no time left"
        return
    fi
    step "$name" $((budget + 40)) bash -c 'run_benchmark "$@"' run_benchmark "$suite" "$budget" "$name" "${@:4}"
}

judge() {
    "$python" -m benchmarks.targets "$out"/*/*.json
}

export -f build install_peers describe run_tests sanitize demo run_benchmark judge
export root out python site peers wheel logs

if step build 150 bash -c build; then
    export PYTHONPATH=$site
else
    # Without the build there is still Triton, straight from the sources.
    cp -r "$root/smoothloss" "$site/smoothloss"
    export PYTHONPATH=$site
fi
ln -s "$root/benchmarks" "$site/benchmarks"
if [[ -n $peers ]]; then
    step peers 30 bash -c install_peers
fi
cd "$site" || exit 1
step describe 30 bash -c describe
# What is right or wrong, but not timed, runs at the same time.
if wanted tests; then
    step tests 150 bash -c run_tests &
fi
if wanted sanitizer; then
    step memcheck 100 bash -c "sanitize memcheck" &
    step racecheck 100 bash -c "sanitize racecheck" &
fi
if wanted demo; then
    step demo 120 bash -c demo &
fi
wait
# What the targets are about comes first.
if wanted linear; then
    bench linear linear 80 --shapes llama3 coco wmt gemma2
fi
if wanted logits; then
    bench logits logits 75 --dtype bfloat16 --shapes coco wmt llama3 32k 64k gemma2
    bench logits32 logits 20 --dtype float32 --shapes coco wmt 32k llama3
fi
if wanted statistics; then
    bench statistics statistics 25
fi
if wanted exact; then
    bench exact exact 20
fi
if wanted lazy; then
    bench lazy lazy 20
fi
if wanted rewards; then
    bench rewards rewards 20
fi
if wanted sampling; then
    bench sampling sampling 10
fi
step targets "$last" bash -c judge

report() {
    cat "$logs/describe.log"
    [[ -f $logs/tests.log ]] && grep -E '^(FAILED|ERROR)' "$logs/tests.log" | head -n 40
    for tool in memcheck racecheck; do
        [[ -f $logs/$tool.log ]] && grep -E '^=+ (ERROR|RACECHECK|Invalid|Error|Warning)' "$logs/$tool.log" | head -n 10
    done
    for suite in linear logits logits32 statistics exact lazy rewards sampling; do
        [[ -f $logs/$suite.log ]] && grep -E '^\|' "$logs/$suite.log"
    done
    echo
    cat "$logs/steps"
    echo
    [[ -f $logs/targets.log ]] && cat "$logs/targets.log"
}
report | tee "$out/report.txt"
grep -qv '^[^ ]* *ok ' "$logs/steps"
passed=$?
cd "$out" && tar --exclude=report.txt --exclude=demo.html --exclude=results.tar.gz -czf results.tar.gz -- * && rm -r -- */
exit $((1 - passed))
