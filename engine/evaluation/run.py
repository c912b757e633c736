"""`ralign-eval run`: pairs through models and a MetaRM, one model after the other.

Journals in OUT/work keep every answer and review, so that the same command continues an interrupted run.
"""

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.registry import METARMS
from ralign.engine.data.metarm_prompts import load_metarm_template
from ralign.engine.data.pairs import Pair, read_pairs
from ralign.engine.data.prompts import load_template
from ralign.engine.evaluation.journal import Journal
from ralign.engine.evaluation.models import (
    AnsweredModel,
    FolderModel,
    Model,
    endpoint_fields,
    hash_of,
    metarm_config,
    parse_models,
)
from ralign.engine.evaluation.pipeline import ANSWER_FIELDS, REVIEW_FIELDS, Evaluation
from ralign.engine.evaluation.records import write_records
from ralign.engine.evaluation.score import (
    check_outputs,
    read_named,
    summarise,
    write_outputs,
    write_released,
)
from ralign.engine.evaluation.twins import Kinds, Twins, lacking, make_twins, read_kinds
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.metarm import MetaRM
from ralign.engine.report.progress import Progress
from ralign.engine.report.terminal import print_summary
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_output, check_output_folder, file_name
from ralign.engine.runtime.problems import Problems
from ralign.engine.runtime.text import printable

_GPU_SHARE = 0.9  # of a GPU's memory, for all engines on it together


def run(args: argparse.Namespace) -> None:
    """The whole command; `args` as `cli` parses them."""
    template, metarm, models, tests, kinds = _read(args)
    inputs = _check_outputs(args, models, tests)
    progress = Progress()
    shown = {test: pairs[: args.limit] for test, pairs in tests.items()}
    twins = {test: make_twins(kinds, pairs, "--twins") for test, pairs in shown.items()}
    for test, pairs in shown.items():
        for line in lacking(kinds, twins[test], pairs):
            progress.say(printable(f"--twins on {test}: {line}"))
    with ExitStack() as stack:
        evaluations = {
            name: _open_evaluations(name, model, tests, kinds, twins, template, metarm, args, progress, stack)
            for name, model in models.items()
        }
        everything = [evaluation for by_test in evaluations.values() for evaluation in by_test.values()]
        reviewer = None
        if any(evaluation.num_unfinished() for evaluation in everything):
            reviewer = stack.enter_context(closing(_open_metarm(args, metarm, everything)))
        files = []
        for name, model in models.items():
            files += _judge_model(name, model, evaluations[name], reviewer, args, progress)
    judged = read_named(files)
    summary = summarise(
        judged,
        subset_field=args.by,
        cue=args.cue,
        num_draws=args.draws,
        seed=args.seed,
        time_s=progress.time_s,
    )
    page = write_outputs(summary, judged, Path(args.out) / "report", subset_field=args.by)
    if args.released:
        write_released(judged, args.released, inputs)
    print_summary(summary)
    print(f"Page: {page}")


def _read(
    args: argparse.Namespace,
) -> tuple[str, MetaRMConfig, dict[str, Model], dict[str, list[Pair]], Kinds]:
    """Template, MetaRM, models by name, tests, kinds of twins. UserError with all mistakes of options and files."""
    problems = Problems()
    template, models = "", {}
    with problems.collect():
        template = load_template(args.template)
    metarm = MetaRMConfig()
    with problems.collect():
        metarm = metarm_config(args)
    with problems.collect():
        models = models_of(args, metarm)
    tests = _read_tests(args, problems)
    kinds: Kinds = {}
    with problems.collect():
        kinds = read_kinds("--twins", args.twins)
    for model in models.values():
        problems.require(
            not (kinds and isinstance(model, AnsweredModel)),
            f"--twins {args.twins}: --model judged:FILE has no answers to them; ralign-eval score reads the verdicts on"
            " twins in a judged file",
        )
    problems.check()
    return template, metarm, models, tests, kinds


def _check_outputs(
    args: argparse.Namespace, models: Mapping[str, Model], tests: Mapping[str, Sequence[Pair]]
) -> list[str | Path]:
    """The files that the command reads. UserError if it could not write its outputs, or would replace one of them."""
    inputs = [*args.pairs, *(model.path for model in models.values() if isinstance(model, AnsweredModel))]
    check_outputs(Path(args.out) / "report", inputs)
    for name in models:
        for test in tests:
            check_output(_judged_file(args, name, test), inputs)
    if args.released:
        check_output_folder(args.released)
    return inputs


def _judged_file(args: argparse.Namespace, model: str, test: str) -> Path:
    return Path(args.out) / "judgments" / file_name(model) / f"{test}.jsonl"


def models_of(args: argparse.Namespace, metarm: MetaRMConfig) -> dict[str, Model]:
    """The models by name. UserError for a share of GPU memory that leaves no room for a managed MetaRM."""
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
    names = ("seed", "plain", "tensor", "max_model_len", "max_num_seqs", "kv_cache_gib")
    of_metarm = _metarm_share(args, metarm)
    share = args.gpu_memory_utilization or round(_GPU_SHARE - of_metarm, 3)
    local = sampling | {name: getattr(args, name) for name in names} | {"gpu_memory_utilization": share}
    models = parse_models(args.model, local, sampling | endpoint_fields(args, args.price))
    if (
        any(isinstance(model, FolderModel) for model in models.values())
        and not 0 < share <= 1 - of_metarm + 1e-9
    ):
        raise UserError(
            f"--gpu-memory-utilization {share:g} of the models and --metarm-gpu-memory-utilization {of_metarm:g} are"
            " too much for the GPU that they share: lower one, or give the MetaRM others with --metarm-devices"
            if of_metarm
            else f"--gpu-memory-utilization is a share up to 1, got {share:g}"
        )
    return models


def _metarm_share(args: argparse.Namespace, metarm: MetaRMConfig) -> float:
    """The share of memory that the MetaRM's server takes on a GPU of the models in folders."""
    if METARMS.load(metarm.kind).location != "server":
        return 0.0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    of_models = visible.split(",") if visible else [str(number) for number in range(args.tensor)]
    of_server = (args.metarm_devices or of_models[0]).split(",")
    shared = {*of_models[: args.tensor]} & {*of_server[: args.metarm_tensor]}
    return args.metarm_gpu_memory_utilization if shared else 0.0


def _read_tests(args: argparse.Namespace, problems: Problems) -> dict[str, list[Pair]]:
    tests: dict[str, list[Pair]] = {}
    for path in map(Path, args.pairs):
        if problems.require(
            path.stem not in tests,
            f"--pairs {path}: another file is named {path.stem} too; a test needs its own name",
        ):
            tests[path.stem] = []
            with problems.collect():
                tests[path.stem] = read_pairs(path, max_bad_lines=args.max_bad_lines)
    return tests


def _open_evaluations(
    name: str,
    model: Model,
    tests: Mapping[str, Sequence[Pair]],
    kinds: Kinds,
    twins: Mapping[str, Twins],
    template: str,
    metarm: MetaRMConfig,
    args: argparse.Namespace,
    progress: Progress,
    stack: ExitStack,
) -> dict[str, Evaluation]:
    """One model's evaluations by test, with the results of earlier runs; `stack` closes their journals.

    Raises:
        UserError: earlier runs had other settings, or another process has the journals open.
    """
    evaluations = {}
    for test, pairs in tests.items():
        folder = Path(args.out) / "work" / file_name(name)
        answers, reviews = (
            stack.enter_context(closing(Journal(folder / f"{test}.{kind}.jsonl", settings, fields)))
            for kind, settings, fields in (
                ("answers", _answer_settings(model, pairs, template), ANSWER_FIELDS),
                ("reviews", _review_settings(args, metarm, pairs), REVIEW_FIELDS),
            )
        )
        evaluations[test] = evaluation = Evaluation(
            pairs=pairs[: args.limit],
            template=template,
            both_orders=args.both_orders,
            kinds=kinds,
            twins=twins[test],
            is_greedy=args.temperature == 0,
            answers=answers,
            reviews=reviews,
            progress=progress,
        )
        evaluation.failed = model.fill(answers, evaluation.keys)
    return evaluations


def _open_metarm(args: argparse.Namespace, config: MetaRMConfig, evaluations: Iterable[Evaluation]) -> MetaRM:
    context = ClientContext(
        client_id="metarm",
        tokens_used=_total(evaluation.reviews for evaluation in evaluations),
        server_log=Path(args.out) / "metarm_server.log",
    )
    metarm = METARMS.load(config.kind).open(config, context)
    assert metarm is not None, "metarm_config refuses none"
    return metarm


def _judge_model(
    name: str,
    model: Model,
    evaluations: Mapping[str, Evaluation],
    metarm: MetaRM | None,
    args: argparse.Namespace,
    progress: Progress,
) -> list[tuple[str, Path]]:
    """Judge every test with one model; returns (name, judged file) for each."""
    judge = None
    if any(evaluation.num_missing() for evaluation in evaluations.values()):
        with progress.stage(f"start_{name}", f"Start of {printable(name)}"):
            judge = model.start(_total(evaluation.answers for evaluation in evaluations.values()))
    files = []
    with closing(judge) if judge is not None else nullcontext():
        for test, evaluation in evaluations.items():
            evaluation.judge, evaluation.metarm = judge, metarm
            title = printable(f"{name} on {test}")
            with progress.stage(f"judge_{name}", title, num_steps=evaluation.num_unfinished()):
                evaluation.run()
            _report_failures(evaluation, progress)
            path = _judged_file(args, name, test)
            write_records(evaluation.records(name, args.metarm), path)
            files.append((name, path))
    return files


def _report_failures(evaluation: Evaluation, progress: Progress) -> None:
    if evaluation.failed:
        progress.say(
            f"{len(evaluation.failed)} calls had failed when the answers were made, and count as failures"
        )
    if evaluation.problems:
        first = printable(next(iter(evaluation.problems.values())))
        progress.say(
            f"{len(evaluation.problems)} calls failed for good and count as failures (first: {first});"
            " the same command repeats them"
        )


def _total(journals: Iterable[Journal]) -> tuple[int, int]:
    """Prompt and answer tokens."""
    tokens = [journal.tokens for journal in journals]
    return sum(num_prompt for num_prompt, _ in tokens), sum(num_answer for _, num_answer in tokens)


def _answer_settings(model: Model, pairs: Sequence[Pair], template: str) -> dict[str, Any]:
    """Everything that an answer depends on; the judge does not see the golden judgment."""
    return {"pairs": _hash_shown(pairs), "template": hash_of(template), **model.settings()}


def _review_settings(args: argparse.Namespace, config: MetaRMConfig, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Everything that a review depends on, beside the answer; a server's address is not part of it."""
    goldens = hash_of([[pair.id, pair.gt_judgment] for pair in pairs])
    kind = METARMS.load(config.kind)
    if kind.location == "process":
        return {"metarm": args.metarm, "goldens": goldens}
    template = load_metarm_template(config.template, graded=config.graded)
    return {
        "metarm": args.metarm if kind.location == "server" else f"{config.kind}:{config.model}",
        "goldens": goldens,
        "pairs": _hash_shown(pairs),
        "template": hash_of(template),
        "graded_threshold": config.graded_threshold,
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
    }


def _hash_shown(pairs: Sequence[Pair]) -> str:
    """A hash of all that a judge sees of the pairs."""
    return hash_of([[pair.id, pair.conversations, pair.response_A, pair.response_B] for pair in pairs])
