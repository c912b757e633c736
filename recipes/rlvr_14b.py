"""Label-only RL on Qwen3-14B: the baseline of R-Align.

Question: how far do correct verdicts and correct reasons diverge if only the label is rewarded? The paper: S-Corr rises
on all three sets (HelpSteer3 40.0 -> 46.9). All settings but the reward are those of r_align_14b.py. The MetaRM reviews
the judgments anyway, so that judge/s_corr has the curve; metarm.kind=none saves the cost.

    torchrun --nproc-per-node 8 recipes/rlvr_14b.py data.train=pairs.jsonl metarm.base_url=http://host:8000/v1

Hardware: as for r_align_14b.py. In miniature, on two CPU cores:

    torchrun --nproc-per-node 2 recipes/rlvr_14b.py --smoke
"""

import sys
from dataclasses import replace

from ralign.engine.config.run import GenRMRun
from ralign.engine.runtime.entry_point import run_job
from ralign.recipes.r_align_14b import r_align_14b
from ralign.recipes.r_align_32b import start


def rlvr_14b() -> GenRMRun:
    run = r_align_14b()
    # Only the reward differs: any other difference could explain a different S-Corr.
    return replace(run, name="rlvr_14b", algo=replace(run.algo, reward="label"))


def main(argv: list[str]) -> None:
    start(rlvr_14b(), argv, __doc__, num_gpus=8, gpu="h100")


if __name__ == "__main__":  # checkpointing starts processes that import this file
    run_job(main, sys.argv[1:])
