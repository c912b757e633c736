#!/usr/bin/env bash
# run.sh KIND [pytest arguments]: sets up .venv-KIND from requirements/KIND.lock and tests it without a GPU.
# The last lines say how long each part took, and how much disk the packages take.
set -euo pipefail
cd "$(dirname "$0")/../.."

kind=$1
shift
venv=.venv-$kind
table=()

timed() {
    local what=$1 start=$SECONDS
    shift
    "$@"
    table+=("$(printf '%-44s %4d min %02d s' "$what" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)))")
}

timed "set-up (nothing to do after the first time)" make --no-print-directory VENV="$venv" KIND="$kind" venv
timed "pip check" "$venv/bin/python" -m pip check
# By themselves: the stubs of tests/cuda stand in the way of whoever asks for a real GPU.
RALIGN_TEST_CUDA=1 timed "contract tests" "$venv/bin/pytest" --disable-warnings tests/cuda "$@"
if [ $# = 0 ]; then
    timed "kernels compiled for sm_80, sm_90, sm_100" "$venv/bin/pytest" --disable-warnings tests/kernels/test_aot.py -rP
fi

printf '\n%s\n' "Tested without a GPU: $("$venv/bin/python" -m pip list 2>/dev/null |
    awk '$1 ~ /^(vllm|torch|triton|megatron-core|transformers)$/ { printf "%s %s  ", $1, $2 }')"
printf '%s\n' "${table[@]}"
printf '%-44s %8s\n' "disk: $venv" "$(du -sh "$venv" | cut -f 1)"
