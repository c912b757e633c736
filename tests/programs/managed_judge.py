"""Two ranks share a managed judge; its engine is killed in the middle of a batch; in the end the job is killed too.

torchrun ... managed_judge.py RESULT JUDGE_FOLDER
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import torch.distributed as dist
from ralign.engine import cluster as cluster_module
from ralign.engine.judging.config import JudgeConfig, ServerConfig
from ralign.engine.judging.managed import ManagedMetaRM


def main() -> None:
    result, folder = Path(sys.argv[1]), sys.argv[2]
    cluster = cluster_module.start()
    config = JudgeConfig(
        metarm="managed",
        model=folder,
        template="compact",
        temperature=0.0,
        max_new_tokens=64,
        num_tries=1,
        server=ServerConfig(max_model_len=256, kv_cache_gib=0.1, max_num_seqs=32, sleep_level=1),
    )
    metarm = ManagedMetaRM(config, cluster, result.parent, num_askers=2)
    report = {"url": metarm.judge.base_url}
    words = json.loads((Path(folder) / "words.json").read_text())
    cases = [(a, b, end) for a in words for b in words for end in ("yes", "no")]
    mine = cases[cluster.rank :: 2]

    with metarm.awake():
        futures = [metarm.submit(f"the {a} one", f"it is {b} {end}") for a, b, end in mine[: len(mine) // 2]]
        before = [future.result().value for future in futures]
    with metarm.awake():
        futures = [metarm.submit(f"the {a} one", f"it is {b} {end}") for a, b, end in mine[len(mine) // 2 :]]
        while not any(future.done() for future in futures):
            time.sleep(0.001)
        dist.barrier()
        if cluster.is_first_rank:
            report["num_open_at_kill"] = sum(not future.done() for future in futures)
            children = psutil.Process().children(recursive=True)
            report["pids"] = [child.pid for child in children]
            next(child for child in children if "EngineCore" in "".join(child.cmdline())).kill()
        after = [future.result().value for future in futures]
    expected = ["Correct" if end == "yes" else "Incorrect" for *_, end in mine]
    every = cluster.all_gather_data((before + after, expected, metarm.judge.usage.num_calls))
    if cluster.is_first_rank:
        report["pids"] += [child.pid for child in psutil.Process().children(recursive=True)]
        report["num_restarts"] = metarm.server.num_restarts
        report["ranks"] = every
        result.write_text(json.dumps(report))
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
