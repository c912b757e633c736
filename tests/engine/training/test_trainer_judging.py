"""What the trainer does with its judges: when they are asked, of which twins, and what a stop leaves behind."""

import random
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.algorithms.rewards import score
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.registry import REWARDS, TWINS
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import other_side
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.judge import Judge, JudgeStopped
from ralign.engine.judging.metarm import MetaRM, Outcome, Review
from ralign.engine.judging.reviews import Reviews
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.sampling import StepSamples
from ralign.engine.training.tasks import GenRMTask, JudgedResponse
from ralign.engine.training.trainer import Trainer

ANSWERS = [r"A it is. \boxed{A}", r"B it is. \boxed{B}", "no verdict"]


class FakeGenerator:
    """Finishes its answers one by one, last prompt first; token n stands for ANSWERS[n]."""

    weight_version = 0

    def __init__(self, events, replicas):
        self.events, self.replicas = events, replicas

    def generate(self, prompts, *, num_samples, on_finished, **_):
        rollouts = [
            Rollout(
                prompt_index=n // num_samples,
                response_ids=np.array([n % 3]),
                logprobs=np.zeros(1, dtype=np.float32),
                finish_reason="stop",
                weight_version=0,
            )
            for n in range(len(prompts) * num_samples)
        ]
        for n in reversed(range(len(rollouts))):
            self.events.append(("finished", n))
            on_finished(n, rollouts[n])
        self.events.append(("generated", len(rollouts)))
        return rollouts


class RecordingMetaRM(MetaRM):
    """Reviews with `outcome`; `reason` may be set."""

    def __init__(self, events, outcome=Outcome.CORRECT):
        self.events, self.outcome, self.reason = events, outcome, None

    @property
    def stop_reason(self):
        return self.reason

    @contextmanager
    def awake(self):
        self.events.append(("awake", None))
        yield
        self.events.append(("asleep", None))

    def review(self, pair, judgment):
        self.events.append(("asked", (pair, judgment)))
        future = Future()
        future.set_result(Review(outcome=self.outcome))
        return future


class UnreliableMetaRM(RecordingMetaRM):
    """One call in ten fails, at random."""

    def __init__(self, events):
        super().__init__(events)
        self.rng = random.Random(0)

    def review(self, pair, judgment):
        self.outcome = self.rng.choices(list(Outcome)[:4], (54, 36, 5, 5))[0]
        return super().review(pair, judgment)


TOKENIZER = SimpleNamespace(decode=lambda row, skip_special_tokens: ANSWERS[row[0]])


@pytest.fixture
def make_trainer(make_session, one_rank):
    def make(outcome=Outcome.CORRECT, **algo):
        events = []
        run = GenRMRun(
            algo=AlgoConfig(num_prompts=4, num_samples=3, **algo), metarm=MetaRMConfig(max_failed_share=0.5)
        )
        pairs = build_judgeworld(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
        if run.algo.partner != "none":
            kind = TWINS.load(run.algo.partner)
            pairs = [twin for pair in pairs for twin in (pair, kind.make(pair))]
        examples = [Example(pair=pair, prompt_ids=np.arange(5)) for pair in pairs]
        metarm = RecordingMetaRM(events, outcome)
        session = make_session(generator=FakeGenerator(events, one_rank), tokenizer=TOKENIZER)
        trainer = Trainer(session, run, GenRMTask(run, examples, metarm, one_rank, run.algo.reward))
        return trainer, metarm, events

    return make


def judge(trainer):
    with trainer.sampling.judging():
        judged = trainer.sampling.judge(trainer.sampling.generate(0), 0)
        return judged, trainer.task.reward(judged)


def test_a_sample_is_sent_as_soon_as_it_is_finished_and_only_if_its_label_is_right(make_trainer):
    trainer, _, events = make_trainer()
    judged, _ = judge(trainer)
    kinds = [kind for kind, _ in events]
    assert (kinds[0], kinds[-1]) == ("awake", "asleep")
    assert "asked" not in kinds[kinds.index("generated") :]
    for place, (kind, what) in enumerate(events):
        if kind == "asked":  # right after the sample that it is about
            _, n = events[place - 1]
            assert what == (trainer.task.examples[judged[n].example].pair, judged[n].text)
    right = [s.verdict == trainer.task.examples[s.example].pair.gt_label for s in judged]
    assert kinds.count("asked") == sum(right) == 4
    assert [s.outcome is Outcome.CORRECT for s in judged] == right


@pytest.mark.parametrize(("partner", "swaps"), [("order", True), ("cues", False)])
@pytest.mark.parametrize("couple", [True, False])
def test_each_pair_comes_with_its_twin_and_partners_are_its_twins_samples(
    make_trainer, partner, swaps, couple
):
    trainer, _, _ = make_trainer(partner=partner, couple=couple)
    judged, rewards = judge(trainer)
    pairs = [trainer.task.examples[sample.example].pair for sample in judged]
    for group in (0, 2):  # the groups of one pair and its twin, then of another
        first, second = pairs[3 * group], pairs[3 * (group + 1)]
        assert first.id == second.id and first != second
        assert (first.gt_label != second.gt_label) == swaps
    # Every group answers A, B, nothing: one of three is right, and earns its own, times its twin's share of right ones.
    assert rewards.num_label_correct == 4 and rewards.num_aligned == 4
    right = [sample.outcome is Outcome.CORRECT for sample in judged]
    assert rewards.values[right].tolist() == pytest.approx([1 / 3 if couple else 1.0] * 4)
    # Right twice or wrong twice: the same response by content, whichever side it is on.
    metrics = trainer.task.metrics(rewards)
    assert metrics["reward/twin_consistency"] == pytest.approx(1 / 9 + 1 / 9)


def test_a_judge_that_stopped_leaves_the_steps_prompts_to_come(make_trainer):
    trainer, metarm, _ = make_trainer()
    judge(trainer)
    before = trainer.sampling.sampler.state_dict()
    metarm.reason = "the budget of 5 tokens is spent"
    with pytest.raises(JudgeStopped, match="budget of 5 tokens"):
        judge(trainer)
    assert trainer.sampling.sampler.state_dict() == before
    assert issubclass(JudgeStopped, UserError)


def test_a_judge_that_fails_masks_its_samples_and_few_enough_failures_go_on(make_trainer):
    trainer, _, _ = make_trainer(Outcome.CALL_FAIL)
    judged, rewards = judge(trainer)  # 4 samples were asked about: too few to take a share
    failed = [sample.outcome is Outcome.CALL_FAIL for sample in judged]
    assert rewards.num_judge_failed == sum(failed) == 4
    assert (rewards.valid == ~np.array(failed)).all()


@pytest.mark.parametrize("reward", ["r_align", "label"])
def test_with_calls_that_fail_at_random_a_step_is_that_of_the_survivors(make_trainer, reward):
    trainer, metarm, events = make_trainer(reward=reward)
    trainer.task.metarm = UnreliableMetaRM(events)
    trainer.run.algo.num_samples = 150
    trainer.pack = lambda samples: samples
    judged, rewards = judge(trainer)
    labels = [trainer.task.examples[sample.example].pair.gt_label for sample in judged]
    survives = np.array([not sample.outcome.failed for sample in judged])
    metrics = trainer.task.metrics(rewards)
    assert metrics["judge/num_asked"] == 200  # one answer in three is right
    assert metrics["judge/num_failed"] == (~survives).sum() and 10 < (~survives).sum() < 35
    assert metrics["judge/l_acc"] == 200 / 600  # labels do not hang on the MetaRM
    survivors = [sample for sample, alive in zip(judged, survives, strict=True) if alive]
    alone = score(
        REWARDS.load(reward),
        [sample.verdict for sample in survivors],
        [label for label, alive in zip(labels, survives, strict=True) if alive],
        [sample.outcome for sample in survivors],
        invalid_reward=trainer.run.algo.invalid_reward,
    )
    measured = trainer.task.metrics(alone)
    for name in ("judge/s_corr", "judge/f_score"):
        assert metrics[name] == measured[name]
    if reward == "label":  # the MetaRM measures only: what it failed on is learned from all the same
        assert rewards.valid.all()
        right = [sample.verdict == label for sample, label in zip(judged, labels, strict=True)]
        assert ((rewards.values == 1) == right).all()
        return
    assert (rewards.valid == survives).all() and (rewards.values[survives] == alone.values).all()
    (learned,), (expected,) = (
        trainer.plan(StepSamples(responses=batch, rewards=found, learned=np.arange(len(batch)), num_rounds=1))
        for batch, found in ((judged, rewards), (survivors, alone))
    )
    kept = [sample.per_sample for sample in learned]
    assert kept == [pytest.approx(sample.per_sample, rel=1e-6) for sample in expected]
    assert len(kept) <= survives.sum() and all(values["weights"] > 0 for values in kept)


def test_a_coupled_failure_is_masked_only_where_the_twin_might_earn(one_rank):
    pairs = build_judgeworld(JudgeWorldConfig(num_train=1, num_dev=1, num_test=1))["train"][:1]
    run = GenRMRun(algo=AlgoConfig(num_prompts=2, num_samples=1, partner="order", couple=True))
    examples = [Example(pair=pair, prompt_ids=np.arange(2)) for pair in pairs]
    task = GenRMTask(run, examples, RecordingMetaRM([]), one_rank, "r_align")
    label, failed = pairs[0].gt_label, Outcome.CALL_FAIL
    for partner, outcome, masked in (
        (label, Outcome.CORRECT, True),
        (label, failed, True),
        (label, Outcome.INCORRECT, False),
        (other_side(label), Outcome.SKIPPED, False),
    ):
        couple = [
            JudgedResponse(
                example=0,
                group=n,
                rollout=SimpleNamespace(response_ids=[5], finish_reason="stop"),
                text="",
                verdict=verdict,
                outcome=of,
            )
            for n, (verdict, of) in enumerate([(label, failed), (partner, outcome)])
        ]
        rewards = task.reward(couple)
        assert (rewards.valid == (not masked)).all() and (rewards.values == 0).all()
        assert rewards.num_judge_failed == 1 + (outcome is failed)


def test_a_dead_judge_ends_the_run(make_trainer):
    trainer, _, _ = make_trainer(Outcome.CALL_FAIL)
    trainer.run.algo.num_samples = 9
    with pytest.raises(UserError, match="failed on 12 of 12 reviews"):
        judge(trainer)


def test_without_a_metarm_nothing_is_asked(one_rank):
    reviews = Reviews(None, one_rank)
    pair = build_judgeworld(JudgeWorldConfig(num_train=1, num_dev=1, num_test=1))["train"][0]
    reviews.add(0, pair, f"\\boxed{{{pair.gt_label}}}")
    assert reviews.outcomes(2) == [Outcome.SKIPPED] * 2


class Engines:
    """Replicas as one of several engines sees them: what each engine's client used."""

    def __init__(self, tokens_used):
        self.tokens_used, self.count = tokens_used, len(tokens_used)

    def all_gather_data(self, value):
        return self.tokens_used


class CountingJudge(Judge):
    """Counts the tokens that it used."""

    def __init__(self, tokens_used):
        self._tokens_used = tokens_used

    def submit(self, request):
        raise NotImplementedError

    @property
    def tokens_used(self):
        return self._tokens_used

    def restore_tokens_used(self, tokens):
        self._tokens_used = tokens


class JudgedMetaRM(RecordingMetaRM):
    """With a language model behind it."""

    def __init__(self, judge):
        super().__init__([])
        self.judge = judge


@pytest.mark.parametrize(("num_then", "each"), [(2, (501, 30)), (4, (251, 15))])
def test_a_checkpoint_keeps_the_tokens_used_for_as_many_engines_as_continue(num_then, each):
    """1,001 and 60 tokens by two engines."""
    run, used = GenRMRun(), [(1, 20), (1000, 40)]

    def task(metarm, tokens_used):
        return GenRMTask(run, [], metarm, Engines(tokens_used), "r_align")

    state = task(JudgedMetaRM(CountingJudge(used[0])), used).state_dict()
    assert state == {"metarm": None, "tokens_used": [1001, 60]}
    fresh = CountingJudge((0, 0))
    task(JudgedMetaRM(fresh), [(0, 0)] * num_then).load_state_dict(state)
    assert fresh.tokens_used == each
    for uncounted in (JudgedMetaRM(CountingJudge(None)), JudgedMetaRM(None), None):
        assert task(uncounted, used).state_dict() == {"metarm": None, "tokens_used": None}
        task(uncounted, used).load_state_dict(state)


def test_another_form_of_verdicts_is_reviewed_and_rewarded_and_one_that_nobody_uses_is_named(
    make_trainer, caplog
):
    trainer, _, events = make_trainer()
    boxed, _ = judge(trainer)
    for form, num_valid in ((r"boxed\{([AB])\}", len(boxed)), ("brackets", 0)):
        run = trainer.run
        run.data.verdict = form
        trainer.task = trainer.sampling.task = GenRMTask(
            run, trainer.task.examples, trainer.task.metarm, trainer.task.replicas, "r_align"
        )
        events.clear()
        caplog.clear()
        judged, rewards = judge(trainer)
        assert rewards.num_invalid == len(judged) - num_valid or form != "brackets"
        right = [s.verdict == trainer.task.examples[s.example].pair.gt_label for s in judged]
        assert sum(kind == "asked" for kind, _ in events) == sum(right) == (4 if num_valid else 0)
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == (form == "brackets")
        if warned:
            assert "judgments have no verdict in the form brackets; boxed reads" in warned[0]
            trainer.task.reward(judged)
            assert len(caplog.records) == 1  # once
