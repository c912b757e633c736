"""R-Align on Qwen3-14B: the paper's larger judge.

Question: label-only RL makes the reasons of a 14B judge worse (rlvr_14b.py); does R-Align prevent this? The paper,
S-Corr of the original model, after label-only RL, and after R-Align: HelpSteer3 40.0, 46.9, 29.2; RewardBench 2 20.1,
29.0, 14.6; PPE 36.9, 45.7, 26.9. Data: any pairs file with golden judgments. MetaRM: GPT-OSS-120B.

    hf download Qwen/Qwen3-14B --local-dir models/Qwen3-14B
    torchrun --nproc-per-node 8 recipes/r_align_14b.py data.train=pairs.jsonl metarm.base_url=http://host:8000/v1

Hardware: 8 GPUs of 80 GB (`ralign-plan r_align_14b --gpus 8 --gpu h100`). In miniature, on two CPU cores:

    torchrun --nproc-per-node 2 recipes/r_align_14b.py --smoke
"""

import sys

from ralign.engine.config.run import GenRMRun
from ralign.engine.runtime.entry_point import run_job
from ralign.recipes.r_align_32b import r_align_run, start


def r_align_14b() -> GenRMRun:
    # On four GPUs per replica it fits only with recomputation (109 % of 79 GiB without), and a step is not shorter.
    return r_align_run("r_align_14b", "models/Qwen3-14B", tensor=8)


def main(argv: list[str]) -> None:
    start(r_align_14b(), argv, __doc__, num_gpus=8, gpu="h100")


if __name__ == "__main__":  # checkpointing starts processes that import this file
    run_job(main, sys.argv[1:])
