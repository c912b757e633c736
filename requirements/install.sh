#!/usr/bin/env bash
# install.sh PYTHON cpu|cuda: installs requirements/cpu.lock or requirements/cuda.txt, one line of progress at a
# time, and checks that the result imports.
set -euo pipefail

python=$1 kind=$2
folder=$(dirname "$0")

if [ "$kind" = cpu ]; then
    # --no-deps: some packages ask for torchvision, torchaudio or torchcodec, whose usual builds want CUDA and
    # break `import transformers` on a machine without it. The lock names everything that is needed.
    options=(--no-deps -r "$folder/cpu.lock")
    total=$(grep -c '==' "$folder/cpu.lock")
else
    options=(-r "$folder/cuda.txt")
    total='?'
fi

fail() {
    printf '\n%s\n' "$@" >&2
    exit 1
}

# Pip says two or three lines a package; this keeps one, rewritten in place on a terminal.
show() {
    local line name count=0
    while IFS= read -r line; do
        case $line in
            Collecting* | Requirement\ already*)
                count=$((count + 1))
                name=${line#Collecting }
                name=${name#Requirement already satisfied: }
                name=${name%% *}
                if [ -t 1 ]; then
                    printf '\r\033[K  %d/%s %s' "$count" "$total" "$name"
                elif [ $((count % 20)) = 0 ]; then
                    printf '  %d/%s %s\n' "$count" "$total" "$name"
                fi
                ;;
            Installing\ collected*) printf '%s  downloaded; unpacking (a minute or more)\n' "$([ -t 1 ] && printf '\r\033[K')" ;;
            Successfully*) printf '  installed\n' ;;
        esac
    done
}

log=$folder/../.venv/install.log

"$python" -m pip install --disable-pip-version-check --progress-bar off "${options[@]}" 2>"$log" | show || {
    grep -v ^WARNING "$log" | tail -n 5 >&2
    fail "Installing the packages failed: pip's reason is above, all that it said in .venv/install.log. With the" \
        "network back, or disk space freed (about 6 GB for a CPU machine, 20 GB with CUDA), run the same" \
        "command again: it goes on from here."
}

"$python" -c 'import torch, transformers, tyro, megatron.core' 2>"$log" || {
    tail -n 3 "$log" >&2
    fail "The packages are installed but do not import (above; all of it in .venv/install.log)." \
        "If torch asks for CUDA libraries on a machine without a GPU, pip found a CUDA build of it: set" \
        "PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, remove .venv, and run the same command again."
}
