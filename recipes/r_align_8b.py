"""R-Align on Qwen3-8B: the paper's smaller judge.

Question: does a reward for the rationale cost accuracy? The paper: S-Corr 45.8 -> 34.6 on HelpSteer3 and 45.2 -> 34.9
on PPE, at the accuracy of label-only RL. Data: any pairs file with golden judgments (`ralign-annotate` writes them; the
paper's set is lyn22333/R-Align-RL-Data). MetaRM: GPT-OSS-120B.

    hf download Qwen/Qwen3-8B --local-dir models/Qwen3-8B
    torchrun --nproc-per-node 8 recipes/r_align_8b.py data.train=pairs.jsonl metarm.base_url=http://host:8000/v1

Hardware: 8 GPUs of 80 GB (`ralign-plan r_align_8b --gpus 8 --gpu h100`). In miniature, on two CPU cores:

    torchrun --nproc-per-node 2 recipes/r_align_8b.py --smoke
"""

import sys

from ralign.engine.config.run import GenRMRun
from ralign.engine.runtime.entry_point import run_job
from ralign.recipes.r_align_32b import r_align_run, start


def r_align_8b() -> GenRMRun:
    # By ralign-plan, activations of 16,384 tokens do not fit on two GPUs per replica (119 % of 79 GiB). With
    # recomputation they fit, and a step takes 6 % longer.
    return r_align_run("r_align_8b", "models/Qwen3-8B", tensor=4)


def main(argv: list[str]) -> None:
    start(r_align_8b(), argv, __doc__, num_gpus=8, gpu="h100")


if __name__ == "__main__":  # checkpointing starts processes that import this file
    run_job(main, sys.argv[1:])
