"""Two steps with dynamic sampling, masks, imputation and a KL term on scripted rollouts, in every layout of the world.

A rollout depends on its prompt and its place in the group alone, not on the engine that gives it: layouts differ in
what they compute, not in what was sampled. Half of the groups have no spread. In the others answers are right for the
right reason, right for another, without a verdict, or cut off; and the MetaRM fails on some texts. argv[1] gets each
layout's report of every rank.
"""

import json
import math
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from ralign.engine.data.examples import encode_answer
from ralign.engine.data.worlds.judgeworld import cue_judgment
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.runtime import cluster as cluster_module
from worlds import make_stage

LAYOUTS = {
    1: {"one": {}, "one, small micro-batches": {"token_budget": 256}},
    2: {
        "tp2": {"tensor": 2},
        "pp2": {"pipeline": 2, "token_budget": 384},
        "cp2": {"context": 2, "token_budget": 256},
        "dp2": {"token_budget": 320},
    },
}
MASK_EDGES = math.exp(-4), math.exp(4)
ALGO = {
    "num_updates": 1, "dynamic_sampling": 4, "truncated": "mask", "kl_coef": 0.05,
    "mask_level": "sequence", "mask_low": MASK_EDGES[0], "mask_high": MASK_EDGES[1],
}  # fmt: skip
VARIANTS = {
    "twins": {
        "partner": "order",
        "couple": True,
        "group": "pair",
        "advantages": "rloo",
        "normalisation": "sequence",
    },
    "parts": {"reward": "label_rationale", "advantages": "gdpo", "normalisation": "constant"},
    "critic": {"kind": "ppo", "kl_in_reward": True, "dynamic_sampling": 0},  # warms up in its first step
}


def number_of(*parts: object) -> int:
    """A hash that is the same in every process."""
    return zlib.crc32(repr(parts).encode())


class FailingMetaRM(RuleMetaRM):
    """The rule, but no answer for a quarter of the texts."""

    judge = SimpleNamespace(stop_reason=None, awake=nullcontext, tokens_used=None)  # pyright: ignore

    def outcome(self, golden: str, judgment: str) -> Outcome:
        failed = number_of(judgment) % 4 == 0
        return Outcome.CALL_FAIL if failed else super().outcome(golden, judgment)


def scripted(examples, tokenizer):
    """A `generate`: the same prompt has the same answers on every engine."""
    pairs = {tuple(example.prompt_ids.tolist()): example.pair for example in examples}

    def rollout(index: int, place: int, prompt: tuple[int, ...]) -> Rollout:
        golden, draw = pairs[prompt].gt_judgment, number_of(prompt, place)
        facts, _, verdict = golden.rpartition(" \\boxed")
        repeated = f"{facts} {facts.rpartition('. ')[2]} \\boxed{verdict}"  # right, too, and longer
        texts = [golden, repeated, cue_judgment(pairs[prompt]), facts, golden]
        kind = 0 if number_of(prompt) % 2 else draw % 5
        ids = encode_answer(texts[kind], tokenizer)
        ids = ids[: len(ids) // 2] if kind == 4 else ids
        rng = np.random.default_rng(draw)
        return Rollout(
            prompt_index=index,
            response_ids=ids,
            logprobs=rng.normal(-6.2, 0.7, len(ids)).astype(np.float32),
            finish_reason="length" if kind == 4 else "stop",
            weight_version=0,
        )

    def generate(prompts, *, num_samples, on_finished, **_):
        found = [rollout(n, place, tuple(p)) for n, p in enumerate(prompts) for place in range(num_samples)]
        for index, one in enumerate(found):
            on_finished(index, one)
        return found

    return generate


def by_sample(stage, updates) -> dict[str, list[float]]:
    """Packed sample -> [advantage or reward, weight of a token, log of its mask's ratio], of all ranks."""
    found = {}
    for micro_batches in updates:
        for batch, output in zip(micro_batches, stage.policy.logprobs(micro_batches), strict=True):
            mismatch = output[0] - batch.per_token["rollout_logprobs"]
            paid = batch.per_token["rewards" if stage.ppo else "advantages"]
            columns = paid, batch.per_token["weights"], mismatch
            for index, *rows in zip(batch.indices.tolist(), *map(batch.unpack, columns), strict=True):
                assert len(rows[0].unique()) == len(rows[1].unique()) == 1
                found[str(index)] = [rows[0][0].item(), rows[1][0].item(), rows[2].sum().item()]
    return {key: value for part in stage.cluster.all_gather_data(found) for key, value in part.items()}


def two_steps(folder: Path, layout: dict, kind: str = "rl", **algo) -> list:
    """Of every rank: the report of each step."""
    sizes = dict(layout)
    token_budget = sizes.pop("token_budget", 4096)
    cluster, _, stage = make_stage(folder, kind, sizes, "fp32", num_steps=2, **(ALGO | algo))
    stage.run.token_budget, stage.run.metarm.on_failure = token_budget, "impute"
    stage.run.critic.length_adaptive = 0.1
    stage.task.metarm = FailingMetaRM()
    stage.generator.generate = scripted(stage.task.examples, stage.session.tokenizer)
    mine, plan = [], stage.plan

    def recorded(samples):
        updates = plan(samples)
        mine.append(
            {
                "learned": samples.learned.tolist(),
                "examples": [response.example for response in samples.responses],
                "valid": samples.rewards.valid.tolist(),
                "values": samples.rewards.values.tolist(),
                "advantages": stage.advantages(samples).tolist(),
                "packed": by_sample(stage, updates),
            }
        )
        return updates

    stage.plan = recorded
    for step in range(2):
        metrics, _ = stage.step()
        mine[step]["metrics"] = {k: v for k, v in metrics.items() if not k.startswith(("time_s/", "memory/"))}
        mine[step]["sampler"] = stage.sampling.sampler.state_dict()
    every: list = [None] * cluster.world_size
    dist.all_gather_object(every, mine)
    return every


def main(result: str) -> None:
    torch.set_num_threads(1)
    world = cluster_module.start()
    folder = Path(result).parent
    report = {name: two_steps(folder, layout) for name, layout in LAYOUTS[world.world_size].items()}
    for variant, algo in VARIANTS.items():
        layouts = (
            {"one": {}} if world.world_size == 1 else {name: LAYOUTS[2][name] for name in ("cp2", "dp2")}
        )
        report |= {f"{name}, {variant}": two_steps(folder, one, **algo) for name, one in layouts.items()}
    if world.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
