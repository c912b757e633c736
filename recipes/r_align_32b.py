"""R-Align on Qwen3-32B: a generative reward model that is right for the right reasons, at full size.

Question: does paying for the rationale, not for the verdict alone, hold up at 32B, on one node or many? The paper
stops at 14B. Data: any pairs file with golden judgments (`ralign-annotate` makes them). MetaRM: GPT-OSS-120B.

    hf download Qwen/Qwen3-32B --local-dir models/Qwen3-32B
    torchrun --nproc-per-node 8 recipes/r_align_32b.py data.train=pairs.jsonl judge.base_url=http://host:8000/v1

Hardware: one node of 8 H200 or B200; 16 or 32 H100 of 80 GB with parallel.context=2; from 64 H100 as it is.
`ralign-plan r_align_32b --gpus N --gpu h200` says what fits and how long a step takes, docs/scale.md what to
choose. Many nodes: `ralign-submit r_align_32b --nodes 4`.
In miniature, with the real layout as far as the processes allow, on two CPU cores:

    torchrun --nproc-per-node 2 recipes/r_align_32b.py --smoke
"""

import sys

from ralign.engine.config.run import Run
from ralign.engine.runtime.entry_point import run_main
from ralign.recipes.qwen3_genrm import r_align_run, start


def r_align_32b() -> Run:
    # A node: every layer's collectives stay on NVLink, and each rank holds one of the 8 query groups. On 8 H200
    # the optimizer's state alone is 46 GiB a GPU, so it is away while generating (memory.offload=auto).
    return r_align_run("r_align_32b", "models/Qwen3-32B", tensor=8)


def main(argv: list[str]) -> None:
    start(r_align_32b(), argv, __doc__, num_gpus=8, gpu="h200")


if __name__ == "__main__":  # checkpointing starts processes that import this file
    run_main(main, sys.argv[1:])
