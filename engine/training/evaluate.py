"""Judgments of held-out pairs by the current policy, and their metrics."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from ralign.engine.config.run import EvalConfig
from ralign.engine.data.examples import Example, decode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.twins import own_side
from ralign.engine.data.verdicts import BOXED, VerdictForm, verdict_of
from ralign.engine.evaluation.baselines import cue_sides
from ralign.engine.evaluation.records import metarm_fields, twin_fields, write_records
from ralign.engine.evaluation.twins import Kinds
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.judging.metrics import flip_rates, measure, prompt_key
from ralign.engine.judging.reviews import Reviews
from ralign.engine.training.session import Session


@dataclass(kw_only=True, slots=True)
class Judgment:
    """One judged pair.

    Attributes:
        ids: [L] int64, the tokens of the judgment.
        outcome: of its review; None without a MetaRM.
        is_cut: it was cut off at the longest length.
        greedy_verdict: at temperature 0, if twins were judged.
        twin_verdicts: those on its twins by kind, by the sides of the pair itself; None if twins were not judged.
    """

    pair: Pair
    text: str
    verdict: str | None
    outcome: Outcome | None
    ids: np.ndarray
    is_cut: bool
    greedy_verdict: str | None = None
    twin_verdicts: dict[str, str | None] | None = None


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


def judge_twins(
    judgments: Sequence[Judgment],
    examples: Sequence[Example],
    twins: Mapping[str, Mapping[str, Example]],
    kinds: Kinds,
    session: Session,
    config: EvalConfig,
    form: VerdictForm = BOXED,
) -> list[Judgment]:
    """The judgments with the greedy verdicts on their pairs and on the twins, without reviews; on every rank.

    Args:
        examples: of the judgments.
        twins: kind -> id of the pair -> example of its twin.
        kinds: of these twins.
    """
    asked = {} if config.temperature == 0 else {("", example.pair.id): example for example in examples}
    asked |= {(kind, id): example for kind, made in twins.items() for id, example in made.items()}
    greedy = replace(config, temperature=0.0)
    found = judge_pairs(list(asked.values()), session, None, greedy, seed=0, form=form) if asked else []
    verdicts = {key: judgment.verdict for key, judgment in zip(asked, found, strict=True)}
    return [
        replace(
            judgment,
            greedy_verdict=verdicts.get(("", judgment.pair.id), judgment.verdict),
            twin_verdicts={
                name: own_side(kind, verdicts[name, judgment.pair.id])
                for name, kind in kinds.items()
                if (name, judgment.pair.id) in verdicts
            },
        )
        for judgment in judgments
    ]


def summarise(judgments: Sequence[Judgment]) -> dict:
    """The metrics with intervals, as summary.json holds them for one model and test.

    Without a MetaRM S-Corr and F-Score have no value.
    """
    is_reviewed = judgments[0].outcome is not None
    clusters = [prompt_key(j.pair.id, j.pair.conversations, j.pair.meta) for j in judgments]
    result = measure(
        [j.verdict for j in judgments],
        [j.pair.gt_label for j in judgments],
        [j.outcome or _unreviewed(j) for j in judgments],
        clusters=clusters,
        cue_sides=cue_sides([{"meta": j.pair.meta} for j in judgments]),
    )
    if not is_reviewed:
        nothing = {"value": None, "low": None, "high": None}
        result |= {"s_corr": nothing, "f_score": nothing, "num_judge_fail": 0}
    twins = [j.twin_verdicts for j in judgments if j.twin_verdicts is not None]
    if twins and (rates := flip_rates([j.greedy_verdict for j in judgments], twins, clusters=clusters)):
        result["flip_rate"] = rates
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
                **(twin_fields(j.greedy_verdict, j.twin_verdicts) if j.twin_verdicts is not None else {}),
                **(metarm_fields(j.outcome) if j.outcome else {}),
            }
            for j in judgments
        ),
        path,
    )
