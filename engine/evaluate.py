"""Judge held-out pairs with the generator as it is, and keep what was said."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ralign.engine.cluster import Cluster
from ralign.engine.config import EvalConfig
from ralign.engine.data.examples import Example, decode_answers
from ralign.engine.generator.generator import Generator
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.judging.metrics import measure
from ralign.engine.judging.verdicts import parse_verdict
from ralign.engine.rewards import ask_metarm


@dataclass(kw_only=True, slots=True)
class Judgment:
    """One judged pair."""

    pair_id: str
    text: str
    verdict: str | None
    label: str
    outcome: Outcome


def judge_pairs(
    examples: Sequence[Example],
    generator: Generator,
    cluster: Cluster,
    tokenizer,
    metarm: MetaRM,
    config: EvalConfig,
    seed: int,
) -> list[Judgment]:
    """Judgments of all examples in order, on every rank; each data-parallel rank judges its share."""
    share = -(-len(examples) // cluster.dp_size)
    mine = examples[cluster.dp_rank * share : (cluster.dp_rank + 1) * share]
    rollouts = generator.generate(
        [example.prompt_ids.tolist() for example in mine],
        num_samples=1,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=seed + cluster.dp_rank,
    )
    texts = decode_answers([rollout.response_ids for rollout in rollouts], tokenizer)
    verdicts = [parse_verdict(text) for text in texts]
    labels = [example.pair.gt_label for example in mine]
    outcomes = ask_metarm(metarm, texts, [example.pair.gt_judgment for example in mine], verdicts, labels)
    judgments = [
        Judgment(pair_id=example.pair.id, text=text, verdict=verdict, label=label, outcome=outcome)
        for example, text, verdict, label, outcome in zip(
            mine, texts, verdicts, labels, outcomes, strict=True
        )
    ]
    return [judgment for part in cluster.all_gather_data(judgments) for judgment in part]


def summarise(judgments: Sequence[Judgment], config: EvalConfig, seed: int) -> dict:
    """L-Acc, S-Corr and F-Score with intervals, as summary.json holds them for one model and test."""
    return measure(
        [j.verdict for j in judgments],
        [j.label for j in judgments],
        [j.outcome for j in judgments],
        num_bootstrap=config.num_bootstrap,
        seed=seed,
    )


def write_judgments(judgments: Sequence[Judgment], path: Path) -> None:
    """JSONL, one judged pair a line, under the released evaluator's field names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for j in judgments:
            record = {
                "id": j.pair_id,
                "gt_label": j.label,
                "model_judgment": j.text,
                "model_pred": j.verdict,
                "metarm_verdict": j.outcome.value,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
