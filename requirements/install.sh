#!/usr/bin/env bash
# install.sh PYTHON KIND: installs requirements/KIND.lock (cpu, cuda), one line of progress at a time, and checks
# that the result imports, and on a machine with GPUs that its driver is new enough.
set -euo pipefail

python=$1 kind=$2
folder=$(dirname "$0")

# --no-deps: a lock names everything that is needed. For CPU some packages ask for torchvision, torchaudio or
# torchcodec, too, whose usual builds want CUDA and break `import transformers` on a machine without it.
options=(--no-deps -r "$folder/$kind.lock")
total=$(grep -c '^[^#]*==' "$folder/$kind.lock")

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

log=$(dirname "$(dirname "$python")")/install.log

"$python" -m pip install --disable-pip-version-check --progress-bar off "${options[@]}" 2>"$log" | show || {
    grep -v ^WARNING "$log" | tail -n 5 >&2
    fail "Installing the packages failed: pip's reason is above, all that it said in $log. With the" \
        "network back, or disk space freed (about 6 GB for a CPU machine, 20 GB with CUDA), run the same" \
        "command again: it goes on from here."
}

checks='import torch, transformers, tyro, megatron.core'
if [ "$kind" != cpu ] && nvidia-smi -L 2>/dev/null | grep -q ^GPU; then
    if [ "$(env -u CUDA_VISIBLE_DEVICES "$python" -c 'import torch; print(torch.cuda.is_available())' 2>"$log")" = False ]; then
        fail "$("$python" -c 'import torch; print("torch is built for CUDA", torch.version.cuda)'), which this machine's NVIDIA \
driver ($(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)) does not run: CUDA 13 needs driver 580 or newer."
    fi
    checks="$checks, vllm, vllm._C_stable_libtorch"
fi
"$python" -c "$checks" 2>"$log" || {
    tail -n 3 "$log" >&2
    fail "The packages are installed but do not import (above; all of it in $log)." \
        "If torch asks for CUDA libraries on a machine without a GPU, pip found a CUDA build of it: set" \
        "PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, remove .venv, and run the same command again."
}
