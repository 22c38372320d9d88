#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in two calls of at most nine minutes: the same command, twice.
#
#   bash benchmarks/gpu_check.sh     # build, gpu-marked tests (launches and graphs among them), the timings that count
#   bash benchmarks/gpu_check.sh     # the rest: other shapes, rewards, samplers, compute-sanitizer, the demo, training steps
#
# What matters comes first. A call runs, in the order of `all` below, the steps that no call before has ended, until its
# time is up; so a third one does what two left over, and after a fault one calls again. Steps that were over their own
# limit come last. What is built and measured stays in $STATE, for these very sources; benchmarks write their
# rows shape by shape. $OUT, or build/gpu_check, is left with a report, the demo's page and an
# archive of all results and logs so far. Works with the packages that the machine has (torch, triton, pytest, a build
# environment for _C and _C_cuda if it is there) and without a network; peers that are missing are rows that say so.
#
# In the environment, all optional:
#   WHEEL    a wheel of this package for the machine, built elsewhere; without it the package is built here
#   PEERS    folder with wheels of peers (liger_kernel, cut_cross_entropy, ...), installed beside the package
#   COMMIT   what the results are recorded under where git is not at hand
#   STEPS    these steps and no others, also those that have ended before
#   TOTAL    seconds for everything, default 535
#   STATE    where to keep what calls build and measure, default build/gpu_check/state
#   DEVICE   cuda; `cpu` tries this script where no GPU is, at the smallest size of everything
# The steps are functions that `step` calls through bash -c, where their arguments expand:
# shellcheck disable=SC2329,SC2016
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$(realpath -m "${OUT:-$root/build/gpu_check}")
python=${PYTHON:-python3}
peers=${PEERS:+$(realpath -m "$PEERS")}
wheel=${WHEEL:+$(realpath -m "$WHEEL")}
total=${TOTAL:-535}
device=${DEVICE:-cuda}
last=25   # of the total, for the table of targets and the report, which come last
all="build describe tests lazy logits linear compensated sampling rewards sanitizer demo training exact logits32 logits_wide linear_more statistics"

# Of everything that is built or run: other sources begin anew.
key=$(cd "$root" && find csrc cmake smoothloss smoothloss_trainer benchmarks tests pyproject.toml CMakeLists.txt -type f \
    ! -name '*.so' ! -name '*.pyc' ! -path '*/.*' ! -path '*/results/*' -print0 | sort -z | xargs -0 sha1sum | sha1sum | cut -c1-12)
state=$(realpath -m "${STATE:-$root/build/gpu_check/state}")/$key-$device
site=$state/site
logs=$state/logs
rows=$state/rows
if [[ $device == cuda ]] && ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu_check: torch sees no CUDA device" >&2
    exit 2
fi
mkdir -p "$out" "$site" "$logs" "$rows"
touch "$logs/steps"

# ended NAME: whether a step has ended, well or badly. cut_off NAME: whether it was over its own limit.
ended() {
    grep -qE "^$1 +(ok|failed)" "$logs/steps"
}
cut_off() {
    grep -qE "^$1 +over" "$logs/steps"
}

if [[ -n ${STEPS:-} ]]; then
    steps=$STEPS
else
    never='' again=''
    for name in $all; do
        ended "$name" && continue
        # Without a build the others have less to show.
        if [[ $name != build ]] && cut_off "$name"; then again+=" $name"; else never+=" $name"; fi
    done
    steps="$never$again"
fi

# note NAME RESULT [SECONDS LAST_WORDS]: a line of the table of steps, in place of an earlier one.
note() {
    local kept
    kept=$(grep -vE "^$1 " "$logs/steps")
    {
        [[ -n $kept ]] && echo "$kept"
        printf '%-12s %-14s %4s s   %s\n' "$1" "$2" "${3:--}" "${4:-}"
    } >"$logs/steps.part"
    mv "$logs/steps.part" "$logs/steps"
    [[ $2 == ok ]]
}

# step NAME SECONDS COMMAND...: run with a limit, never beyond the total; keep the log, note the result and the log's
# last line.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0 result=ok late="over $2 s" left=$((total - last - SECONDS))
    shift 2
    ((limit > left)) && limit=$left late="no time left"
    if ((limit < 5)); then
        note "$name" "no time left"
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$logs/$name.log" 2>&1 || status=$?
    if ((status == 124 || status == 137)); then
        result=$late
    elif ((status != 0)); then
        result="failed ($status)"
    fi
    note "$name" "$result" $((SECONDS - begin)) "$(tail -n 1 "$logs/$name.log" | cut -c1-90)"
}

build() {
    rm -rf "$site"
    mkdir -p "$site"
    if [[ -n $wheel ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheel"
        # Its compiled modules may need another system than this one.
        (cd "$site" && "$python" -c "import smoothloss._C, smoothloss._C_cuda") && return
        rm -rf "$site"/smoothloss*
    fi
    local architectures=native
    [[ $device == cpu ]] && architectures=90
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$site" \
        --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=$architectures "$root"
}

install_peers() {
    "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$peers"/*.whl
}

describe() {
    [[ $device == cpu ]] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$python" -m smoothloss
}

# From a folder without the sources, so that the installed package is found and not the folder of that name.
run_tests() {
    local workers=() cores
    cores=$(nproc)
    "$python" -c "import xdist" 2>/dev/null && workers=(-n $((cores > 12 ? 12 : cores)))
    # Warnings of versions that nobody pinned here are no errors.
    cd "$root/tests" && "$python" -m pytest backends rewards sampling trainer/test_gpu_graphs.py -m gpu --quiet -p no:cacheprovider -W default \
        ${workers[@]+"${workers[@]}"}
}

# One tool over the CUDA kernels. The allocator of torch is switched off, or it would hide what lies between tensors.
sanitize() {
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || {
        echo "compute-sanitizer is not installed"
        return 0
    }
    [[ $device == cpu ]] && return
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

# Both tools at once: neither is timed.
sanitize_all() {
    local status=0 racecheck
    sanitize racecheck >"$logs/racecheck.log" 2>&1 &
    racecheck=$!
    sanitize memcheck >"$logs/memcheck.log" 2>&1 || status=$?
    wait "$racecheck" || status=$?
    tail -qn 1 "$logs/racecheck.log" "$logs/memcheck.log"
    return "$status"
}

# Trains and decodes on the card, through the public command.
demo() {
    rm -rf "$state/demo"
    "$python" -m smoothloss_trainer demo --out "$state/demo" && mv "$state/demo/report.html" "$state/demo.html"
    local status=$?
    cp "$state"/demo/*.log "$logs" 2>/dev/null
    rm -rf "$state/demo"
    return "$status"
}

# The trainer's steps, with and without CUDA graphs; Multi30k and COCO where SMOOTHLOSS_DATA is.
training() {
    mkdir -p "$rows/training"
    "$python" -m benchmarks.recorded_step --device "$device" --steps $([[ $device == cpu ]] && echo 2 || echo 60) \
        --out "$rows/training/recorded_step.json"
}

# Fewer columns in the gradient products, of language models that are trained here: of COCO's captions, where
# SMOOTHLOSS_DATA has them.
compensated() {
    local text=${SMOOTHLOSS_DATA:-}/coco/captions_val2014.ptb.json.gz width=1024 steps=1200
    [[ -f $text ]] || {
        echo "no captions to train on: SMOOTHLOSS_DATA is ${SMOOTHLOSS_DATA:-not set}"
        return 0
    }
    [[ $device == cpu ]] && width=16 steps=2
    mkdir -p "$rows/compensated"
    "$python" -m benchmarks.language_models "$text" --width $width --steps $steps --save 50 400 --device "$device" \
        --out "$state/heads/coco" &&
        "$python" -m benchmarks.compensated "$state"/heads/coco/step_*.safetensors --rows 1280 4096 --tolerance 1 1.4 \
            --repeats $([[ $device == cpu ]] && echo 1 || echo 15) --device "$device" \
            --out "$rows/compensated/compensated.json"
}

run_benchmark() {
    local quick=()
    [[ $device == cpu ]] && quick=(--quick --shapes 64x501x32)
    "$python" -m benchmarks --suite "$1" --device "$device" --seconds "$2" --out "$rows/$3" "${@:4}" \
        ${quick[@]+"${quick[@]}"}
}

# bench NAME SUITE SECONDS ARGUMENTS...: a suite, or a part of one, into a folder of that name. The budget keeps it from
# starting a shape too late; the limit around it is for one that hangs.
bench() {
    local name=$1 suite=$2 budget=$3 left=$((total - last - SECONDS - 15))
    ((budget > left)) && budget=$left
    if ((budget < 5)); then
        note "$name" "no time left"
        return
    fi
    step "$name" $(($3 + 40)) bash -c 'run_benchmark "$@"' run_benchmark "$suite" "$budget" "$name" "${@:4}"
    # Shapes for which this call had no time, where another would have.
    if ((budget < $3)) && grep -qrs "no time was left for it" "$rows/$name"; then
        note "$name" "no time left"
    fi
}

judge() {
    find "$rows" -name '*.json' -print0 | xargs -0 -r "$python" -m benchmarks.targets
}

# run NAME: one step of `all`.
run() {
    case $1 in
    build) step build 150 bash -c build ;;
    describe) step describe 30 bash -c describe ;;
    tests) step tests 160 bash -c run_tests ;;
    lazy) bench lazy lazy 45 --shapes coco ;;
    logits) bench logits logits 60 --dtype bfloat16 --shapes coco llama3 32k ;;
    linear) bench linear linear 60 --shapes llama3 ;;
    compensated) step compensated 90 bash -c compensated ;;
    sampling) bench sampling sampling 10 ;;
    rewards) bench rewards rewards 20 ;;
    sanitizer) step sanitizer 110 bash -c sanitize_all ;;
    demo) step demo 90 bash -c demo ;;
    training) step training 150 bash -c training ;;
    statistics) bench statistics statistics 25 --shapes coco llama3 ;;
    exact) bench exact exact 20 ;;
    logits32) bench logits32 logits 25 --dtype float32 --shapes coco wmt 32k llama3 ;;
    logits_wide) bench logits_wide logits 40 --dtype bfloat16 --shapes wmt 64k gemma2 ;;
    linear_more) bench linear_more linear 60 --shapes coco wmt gemma2 ;;
    *) note "$1" "no such step" ;;
    esac
}

export -f build install_peers describe run_tests sanitize sanitize_all demo training compensated run_benchmark judge
export root state python site peers wheel logs rows device

export PYTHONPATH=$site
for name in $steps; do
    # Steps from a folder without the sources, the package from `site`; the build itself stays out of it.
    [[ $name == build ]] || cd "$site" || exit 1
    run "$name"
    if [[ $name == build ]]; then
        # Without the build there is still Triton, straight from the sources.
        [[ -d $site/smoothloss ]] || cp -r "$root/smoothloss" "$root/smoothloss_trainer" "$site"
        ln -sfn "$root/benchmarks" "$site/benchmarks"
        [[ -n $peers ]] && step peers 30 bash -c install_peers
    fi
done
cd "$site" || exit 1
last=0
step targets 20 bash -c judge

report() {
    cat "$logs/describe.log" 2>/dev/null
    [[ -f $logs/tests.log ]] && grep -E '^(FAILED|ERROR)' "$logs/tests.log" | head -n 40
    for tool in memcheck racecheck; do
        [[ -f $logs/$tool.log ]] && grep -E '^=+ (ERROR|RACECHECK|Invalid|Error|Warning)' "$logs/$tool.log" | head -n 10
    done
    for name in $all; do
        [[ -f $logs/$name.log ]] && grep -E '^\|' "$logs/$name.log"
    done
    echo
    cat "$logs/steps"
    echo
    [[ -f $logs/targets.log ]] && cat "$logs/targets.log"
    for name in $all; do
        ended "$name" || echo "gpu_check: still to do: $name (call again)"
    done
}
report | tee "$out/report.txt"
[[ -f $state/demo.html ]] && cp "$state/demo.html" "$out"
tar -C "$state" -czf "$out/results.tar.gz" logs rows
! grep -qv '^[^ ]* *ok ' "$logs/steps"
