"""Judgments of held-out pairs by the current policy, and their metrics."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ralign.engine.config.run import EvalConfig
from ralign.engine.data.examples import Example, decode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import BOXED, VerdictForm, verdict_of
from ralign.engine.evaluation.records import metarm_fields, write_records
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.judging.metrics import measure, prompt_key
from ralign.engine.judging.reviews import Reviews
from ralign.engine.training.session import Session


@dataclass(kw_only=True, slots=True)
class Judgment:
    """One judged pair.

    Attributes:
        ids: [L] int64, the tokens of the judgment.
        outcome: of its review; None without a MetaRM.
        is_cut: it was cut off at the longest length.
    """

    pair: Pair
    text: str
    verdict: str | None
    outcome: Outcome | None
    ids: np.ndarray
    is_cut: bool


def judge_pairs(
    examples: Sequence[Example],
    session: Session,
    metarm: MetaRM | None,
    config: EvalConfig,
    seed: int,
    form: VerdictForm = BOXED,
) -> list[Judgment]:
    """Judgments of all examples in order, on every rank; each engine generates its share."""
    generator, tokenizer = session.generator, session.tokenizer
    replicas = generator.replicas
    mine = [examples[i] for i in replicas.share_of(len(examples))]
    texts: list[str] = [""] * len(mine)
    reviews = Reviews(metarm, replicas, form)

    def review(index: int, rollout: Rollout) -> None:
        opens_thinking = mine[index].opens_thinking
        texts[index] = decode_answer(rollout.response_ids, tokenizer, opens_thinking=opens_thinking)
        reviews.add(index, mine[index].pair, texts[index])

    with metarm.awake() if metarm else nullcontext():
        rollouts = generator.generate(
            [example.prompt_ids.tolist() for example in mine],
            num_samples=1,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=seed + replicas.index,
            on_finished=review,
        )
        outcomes = reviews.outcomes(len(mine))
    judgments = [
        Judgment(
            pair=example.pair,
            text=text,
            verdict=verdict_of(text, form),
            outcome=outcome if metarm else None,
            ids=rollout.response_ids,
            is_cut=rollout.finish_reason == "length",
        )
        for example, text, outcome, rollout in zip(mine, texts, outcomes, rollouts, strict=True)
    ]
    return [judgment for part in replicas.all_gather_data(judgments) for judgment in part]


def summarise(judgments: Sequence[Judgment]) -> dict:
    """L-Acc, S-Corr and F-Score with intervals, as summary.json holds them for one model and test.

    Without a MetaRM S-Corr and F-Score have no value.
    """
    is_reviewed = judgments[0].outcome is not None
    result = measure(
        [j.verdict for j in judgments],
        [j.pair.gt_label for j in judgments],
        [j.outcome or _unreviewed(j) for j in judgments],
        clusters=[prompt_key(j.pair.id, j.pair.conversations, j.pair.meta) for j in judgments],
    )
    if not is_reviewed:
        nothing = {"value": None, "low": None, "high": None}
        result |= {"s_corr": nothing, "f_score": nothing, "num_judge_fail": 0}
    return result


def _unreviewed(judgment: Judgment) -> Outcome:
    """The outcome with which a judgment counts in L-Acc alone."""
    return Outcome.CALL_FAIL if judgment.verdict == judgment.pair.gt_label else Outcome.SKIPPED


def write_judgments(judgments: Sequence[Judgment], path: Path) -> None:
    """JSONL, one judged pair a line, in the released evaluator's fields: `ralign-eval score` reads it."""
    write_records(
        (
            {
                **asdict(j.pair),
                "model_judgment": j.text,
                "model_pred": j.verdict,
                **(metarm_fields(j.outcome) if j.outcome else {}),
            }
            for j in judgments
        ),
        path,
    )
