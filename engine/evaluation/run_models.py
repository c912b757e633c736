"""The work of `ralign-eval run`: the journals of what is done, the MetaRM, and one model after the other."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

from ralign.engine.config.judge import JudgeConfig
from ralign.engine.data.metarm_prompts import load_metarm_template
from ralign.engine.data.pairs import Pair
from ralign.engine.evaluation.journal import Journal
from ralign.engine.evaluation.models import Model, hash_of, parse_endpoint
from ralign.engine.evaluation.records import write_records
from ralign.engine.evaluation.reviewers import Reviewer, build_reviewer
from ralign.engine.evaluation.run import Evaluation
from ralign.engine.report.progress import Progress


def open_evaluations(
    name: str,
    model: Model,
    tests: Mapping[str, Sequence[Pair]],
    template: str,
    args: argparse.Namespace,
    progress: Progress,
    stack: ExitStack,
) -> dict[str, Evaluation]:
    """One model's evaluations by test, with all that earlier runs did; `stack` closes their journals.

    Raises UserError where earlier runs had other settings, or another process is at work.
    """
    evaluations = {}
    for test, pairs in tests.items():
        folder = Path(args.out) / "work" / name
        answers, reviews = (
            stack.enter_context(closing(Journal(folder / f"{test}.{kind}.jsonl", settings)))
            for kind, settings in (
                ("answers", _answer_settings(model, pairs, template)),
                ("reviews", _review_settings(args, pairs)),
            )
        )
        evaluations[test] = evaluation = Evaluation(
            pairs=pairs[: args.limit],
            template=template,
            both_orders=args.both_orders,
            answers=answers,
            reviews=reviews,
            progress=progress,
        )
        evaluation.failed = model.fill(answers, evaluation.keys)
    return evaluations


def open_metarm(
    args: argparse.Namespace, config: JudgeConfig | None, evaluations: Iterable[Evaluation]
) -> Reviewer:
    """The MetaRM; what earlier runs spent on reviews counts against its budget."""
    spent = _total(evaluation.reviews for evaluation in evaluations)
    return build_reviewer(args.metarm, config, Path(args.out) / "metarm_server.log", spent)


def judge_model(
    name: str,
    model: Model,
    evaluations: Mapping[str, Evaluation],
    reviewer: Reviewer | None,
    args: argparse.Namespace,
    progress: Progress,
) -> list[str]:
    """Judges every test with one model; returns `NAME=FILE` for each judged file."""
    judge = None
    if any(evaluation.num_missing() for evaluation in evaluations.values()):
        with progress.stage(f"start_{name}", f"Start of {name}"):
            judge = model.start(_total(evaluation.answers for evaluation in evaluations.values()))
    files = []
    with closing(judge) if judge is not None else nullcontext():
        for test, evaluation in evaluations.items():
            evaluation.judge, evaluation.metarm = judge, reviewer
            title = f"{name} on {test}"
            with progress.stage(f"judge_{name}", title, num_steps=evaluation.num_unfinished()):
                evaluation.run()
            _tell_failures(evaluation, progress)
            path = Path(args.out) / "judgments" / name / f"{test}.jsonl"
            write_records(evaluation.records(name, args.metarm), path)
            files.append(f"{name}={path}")
    return files


def _tell_failures(evaluation: Evaluation, progress: Progress) -> None:
    """What was not answered; it is in no table before the end."""
    if evaluation.failed:
        progress.say(
            f"{len(evaluation.failed)} calls had failed when the answers were made, and count as failures"
        )
    if evaluation.problems:
        first = next(iter(evaluation.problems.values()))
        progress.say(
            f"{len(evaluation.problems)} calls failed for good and are counted as failures (first: {first});"
            " the same command asks them again"
        )


def _total(journals: Iterable[Journal]) -> tuple[int, int]:
    """Prompt and answer tokens."""
    spent = [journal.tokens for journal in journals]
    return sum(num_prompt for num_prompt, _ in spent), sum(num_answer for _, num_answer in spent)


def _answer_settings(model: Model, pairs: Sequence[Pair], template: str) -> dict[str, Any]:
    """What an answer depends on; the golden judgment does not reach the judge."""
    return {"pairs": _shown(pairs), "template": hash_of(template), **model.settings()}


def _review_settings(args: argparse.Namespace, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What a review depends on, beside the answer; not where the MetaRM is served."""
    goldens = hash_of([[pair.id, pair.gt_judgment] for pair in pairs])
    if args.metarm in ("rule", "keywords"):
        return {"metarm": args.metarm, "goldens": goldens}
    name = args.metarm
    if name.startswith("endpoint:"):
        name = f"endpoint:{parse_endpoint(name, '--metarm')[1]}"
    template = load_metarm_template(args.metarm_template, graded=args.metarm_template == "graded")
    return {
        "metarm": name,
        "goldens": goldens,
        "pairs": _shown(pairs),
        "template": hash_of(template),
        "graded_threshold": args.metarm_graded_threshold,
        "temperature": args.metarm_temperature,
        "max_new_tokens": args.metarm_max_new_tokens,
    }


def _shown(pairs: Sequence[Pair]) -> str:
    return hash_of([[pair.id, pair.conversations, pair.response_A, pair.response_B] for pair in pairs])
