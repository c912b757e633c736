"""Two ranks share a managed judge. Its engine is killed during a step, and the job itself at the end.

torchrun ... managed_judge.py RESULT JUDGE_FOLDER
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch.distributed as dist
from ralign.engine.config.judge import MetaRMConfig, ServerConfig
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import read_pairs
from ralign.engine.generator.generator import Rollout
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.lm_metarm import LanguageMetaRM
from ralign.engine.judging.managed import ManagedJudge
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.training.tasks import GenRMTask, JudgedResponse, Response


class WatchedMetaRM(LanguageMetaRM):
    """Keeps the futures of all reviews."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.futures = []

    def review(self, pair, judgment):
        self.futures.append(super().review(pair, judgment))
        return self.futures[-1]


def step(
    task: GenRMTask, cases: list[tuple[int, str, str]], asked: Callable[[], None]
) -> list[JudgedResponse]:
    """This rank's samples (pair, word, end), judged; `asked` is called when all requests are sent."""
    ids, logprobs = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    rollout = Rollout(
        prompt_index=0, response_ids=ids, logprobs=logprobs, finish_reason="stop", weight_version=0
    )
    samples = [
        Response(example=example, group=example, rollout=rollout, text=f"\\boxed{{A}} it is {word} {end}")
        for example, word, end in cases
    ]
    with task.judging():
        for index, sample in enumerate(samples):
            task.on_response(index, sample.example, sample.text, is_cut=sample.is_cut)
        asked()
        return task.judge(samples, 0)


def main() -> None:
    result, folder = Path(sys.argv[1]), sys.argv[2]
    cluster = cluster_module.start()
    config = MetaRMConfig(
        kind="managed",
        model=folder,
        template="compact",
        temperature=0.0,
        max_new_tokens=64,
        num_tries=1,
        server=ServerConfig(max_model_len=256, kv_cache_gib=0.1, max_num_seqs=32, sleep_level=1),
    )
    context = ClientContext.of_rank(cluster, result.parent, num_clients=2)
    metarm = WatchedMetaRM.of(ManagedJudge(config, context), config)
    report = {"steps": []}
    pairs = read_pairs(Path(folder) / "pairs.jsonl")
    examples = [Example(pair=pair, prompt_ids=np.zeros(1)) for pair in pairs]
    task = GenRMTask(GenRMRun(metarm=config), examples, metarm, Replicas(cluster, tensor=1), "r_align")
    cases = [(n, word.id, end) for n in range(len(pairs)) for word in pairs for end in ("yes", "no")]
    mine = cases[cluster.rank :: 2]

    children = psutil.Process().children(recursive=True)
    report["pids"] = [child.pid for child in children]
    engine = next((child for child in children if "EngineCore" in "".join(child.cmdline())), None)

    def kill() -> None:
        dist.barrier()  # both ranks have sent their requests
        if engine is not None:
            futures = metarm.futures[len(mine) // 2 :]
            while not any(future.done() for future in futures):
                time.sleep(0.001)
            report["num_open_at_kill"] = sum(not future.done() for future in futures)
            engine.kill()

    outcomes = []
    for part, asked in ((mine[: len(mine) // 2], lambda: None), (mine[len(mine) // 2 :], kill)):
        judged = step(task, part, asked)
        outcomes += [sample.outcome.value for sample in judged]
        everyones = [sample for of_rank in cluster.all_gather_data(judged) for sample in of_rank]
        report["steps"].append(task.metrics(task.reward(everyones)))
    expected = ["Correct" if end == "yes" else "Incorrect" for *_, end in mine]
    every = cluster.all_gather_data((outcomes, expected, metarm.judge.usage.num_calls))
    if cluster.is_first_rank:
        report["pids"] += [child.pid for child in psutil.Process().children(recursive=True)]
        report["num_restarts"] = metarm.judge.server.num_restarts
        report["ranks"] = every
        result.write_text(json.dumps(report))
    dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
