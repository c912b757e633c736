"""A GenRM on a session: its examples, its RL task, its evaluations."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Self

from ralign.engine.config.registry import METARMS, TWINS
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example, encode
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.twins import TwinKind, twin_of
from ralign.engine.data.verdicts import other_forms, read_form
from ralign.engine.evaluation.twins import make_twins, read_kinds
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.metarm import MetaRM, Outcome
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.evaluate import Judgment, judge_pairs, judge_twins, summarise, write_judgments
from ralign.engine.training.session import Session
from ralign.engine.training.tasks import GenRMTask

NUM_TOKENIZER_PAIRS = 4000  # enough of a generated world to see every word


class GenRM:
    """The policy of a session as a GenRM, with the MetaRM that audits it; every method is collective."""

    def __init__(
        self, session: Session, run: GenRMRun, metarm: MetaRM | None, eval_metarm: MetaRM | None = None
    ):
        """`eval_metarm`: of evaluations, where it is not `metarm`."""
        self.session, self.run, self.metarm = session, run, metarm
        self.eval_metarm = metarm if run.eval.metarm.kind == "same" else eval_metarm
        self.template = load_template(run.data.template)
        self.form = read_form("data.verdict", run.data.verdict)

    @classmethod
    def start(
        cls, run: GenRMRun, pairs: Sequence[Pair], *, vocab_size: int, more_texts: Sequence[str] = ()
    ) -> Self:
        """A session with its models and its MetaRM.

        Args:
            pairs: the tokenizer of a fresh model is trained on their texts, and on `more_texts`.
        """
        session = Session(run)
        # Before the policy: a server on the same GPU measures the memory that it may take.
        kind, cluster = METARMS.load(run.metarm.kind), session.cluster
        is_server = kind.location == "server"
        with session.progress.stage("judge", "The MetaRM's server") if is_server else nullcontext():
            num_clients = cluster.world_size // (run.generator.tensor or run.parallel.tensor)
            metarm = kind.open(run.metarm, ClientContext.of_rank(cluster, run.folder, num_clients))
            eval_metarm = cls._open_eval_metarm(run, session, num_clients)
        for opened in (metarm, eval_metarm):
            if opened is not None:
                session.at_close(opened.close)
        genrm = cls(session, run, metarm, eval_metarm)
        session.build(run, [*genrm._texts(pairs[:NUM_TOKENIZER_PAIRS]), *more_texts], vocab_size=vocab_size)
        return genrm

    @staticmethod
    def _open_eval_metarm(run: GenRMRun, session: Session, num_clients: int) -> MetaRM | None:
        if run.eval.metarm.kind == "same":
            return None
        context = ClientContext.of_rank(session.cluster, run.folder, num_clients)
        context = replace(context, client_id=f"{context.client_id} eval")
        return METARMS.load(run.eval.metarm.kind).open(run.eval.metarm, context)

    def _texts(self, pairs: Sequence[Pair]) -> list[str]:
        return [text for pair in pairs for text in (render(self.template, pair), pair.gt_judgment)]

    def examples(self, pairs: Sequence[Pair]) -> list[Example]:
        """Tokenized pairs; those whose prompt is too long are left out, and their number is printed."""
        data = self.run.data
        limit = data.max_prompt_tokens
        examples, num_too_long = encode(pairs, self.session.tokenizer, self.template, limit, chat=data.chat)
        if num_too_long:
            self.session.progress.say(
                f"{num_too_long} of {len(pairs)} pairs left out: over data.max_prompt_tokens={limit}"
            )
        return examples

    def task(self, examples: Sequence[Example], reward: str | None = None) -> GenRMTask:
        """The RL task on these pairs; `reward`: instead of `algo.reward`."""
        if self.run.algo.partner != "none":
            examples = self._with_twins(examples)
        replicas = self.session.generator.replicas
        return GenRMTask(self.run, examples, self.metarm, replicas, reward or self.run.algo.reward)

    def _with_twins(self, examples: Sequence[Example]) -> list[Example]:
        """Each example followed by its pair's twin; pairs without a twin that fits are left out, and counted."""
        partner = self.run.algo.partner
        kind = TWINS.load(partner)
        made = [self._twin(kind, example.pair) for example in examples]
        twins = [twin for twin in made if twin is not None]
        if len(twins) < len(examples):
            left_out = f"{len(examples) - len(twins)} of {len(examples)} pairs left out: {kind.why_none}"
            if not twins:
                raise UserError(f"algo.partner={partner}: {left_out}")
            self.session.progress.say(left_out)
        twin_of = {example.pair.id: example for example in self.examples(twins)}
        both = [(example, twin_of[example.pair.id]) for example in examples if example.pair.id in twin_of]
        return [example for couple in both for example in couple]

    def _twin(self, kind: TwinKind, pair: Pair) -> Pair | None:
        """The twin of a pair, checked; None if it has none.

        Without a MetaRM nothing reads golden judgments: the twin is then made without, if it cannot be made with one.
        """
        setting = f"algo.partner={self.run.algo.partner}"
        return twin_of(kind, pair, setting, reads_golden=self.metarm is not None)

    def evaluate(self, name: str, tests: dict[str, list[Example]]) -> dict[str, dict]:
        """Metrics of the current weights on each test, by name; the judgments go to the run folder."""
        session, run, results = self.session, self.run, {}
        with session.progress.stage(f"evaluate_{name}", f"Evaluation of {name}", num_steps=len(tests)):
            for number, (test, examples) in enumerate(tests.items()):
                with session.phase("evaluate"):
                    session.begin_generation()
                    judgments = self.judge(examples, seed=1_000_000 + 1000 * number + run.seed)
                if warning := other_forms([judgment.text for judgment in judgments], self.form):
                    session.progress.say(f"data.verdict: {warning}")
                results[test] = summarise(judgments)
                if session.cluster.is_first_rank:
                    write_judgments(judgments, run.folder / name / f"judgments_{test}.jsonl")
                session.progress.step(l_acc=results[test]["l_acc"]["value"])
        return results

    def watch(self, examples: Sequence[Example]) -> Callable[[int], dict[str, float]]:
        """For `reinforce`: every `eval.every` steps and after the last, metrics eval/* of the current policy.

        `examples` are held out; the first `eval.num_pairs` are judged, with the same seed each time.
        """
        run, session = self.run, self.session

        def after_step(step: int) -> dict[str, float]:
            every = run.eval.every
            if not every or (step % every and step != run.num_steps):
                return {}
            with session.phase("evaluate"):
                session.begin_generation()
                judgments = self.judge(examples, seed=2_000_000 + run.seed)
            result = summarise(judgments)
            shares = {name: result[name]["value"] for name in ("l_acc", "s_corr", "f_score")}
            if "worst_group_l_acc" in result:
                shares["worst_group_l_acc"] = result["worst_group_l_acc"]["value"]
            if rates := result.get("flip_rate"):
                shares["flip_rate"] = next(iter(rates.values()))["value"]
            num_reviewed = sum(j.outcome not in (None, Outcome.SKIPPED) for j in judgments)
            if (
                result["num_judge_fail"] > self._max_failed_share * num_reviewed
            ):  # an outage, not a worse judge
                shares |= {"s_corr": None, "f_score": None}
            return {
                f"eval/{name}": math.nan if value is None else value for name, value in shares.items()
            } | {
                "eval/num_parse_fail": result["num_parse_fail"],
                "eval/num_judge_fail": result["num_judge_fail"],
            }

        return after_step

    @property
    def _max_failed_share(self) -> float:
        run = self.run
        return (run.metarm if run.eval.metarm.kind == "same" else run.eval.metarm).max_failed_share

    def judge(self, examples: Sequence[Example], seed: int) -> list[Judgment]:
        """Judgments of the first `eval.num_pairs` examples, with greedy verdicts on their twins for `eval.twins`."""
        config, session, form = self.run.eval, self.session, self.form
        examples = examples[: config.num_pairs]
        judgments = judge_pairs(examples, session, self.eval_metarm, config, seed=seed, form=form)
        kinds = read_kinds("eval.twins", config.twins)
        if not kinds:
            return judgments
        made = make_twins(kinds, [example.pair for example in examples], "eval.twins")
        twins = {kind: self._twins_that_fit(examples[0].pair, of_kind) for kind, of_kind in made.items()}
        return judge_twins(judgments, examples, twins, kinds, session, config, form)

    def _twins_that_fit(self, fitting: Pair, twins: Mapping[str, Pair]) -> dict[str, Example]:
        """Examples of the twins by id; one that is longer than its pair may not fit. `fitting`: a pair that fits."""
        data, tokenizer = self.run.data, self.session.tokenizer
        pairs = [fitting, *twins.values()]  # `encode` refuses pairs of which none fits
        examples, _ = encode(pairs, tokenizer, self.template, data.max_prompt_tokens, chat=data.chat)
        return {example.pair.id: example for example in examples[1:]}
