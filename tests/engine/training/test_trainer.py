"""The step's parts that need no model: what is packed, under which weights, and what a failed judge changes."""

from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.training.sampling import StepSamples, flat_units
from ralign.engine.training.tasks import GenRMTask, JudgedResponse
from ralign.engine.training.trainer import Trainer, policy_metrics


@pytest.fixture
def make_trainer(make_session):
    def make(**algo) -> Trainer:
        run = GenRMRun(algo=AlgoConfig(num_prompts=2, num_samples=4, **algo), num_steps=3)
        pairs = build_judgeworld(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
        examples = [Example(pair=pair, prompt_ids=np.arange(5)) for pair in pairs]
        return Trainer(make_session(), run, GenRMTask(run, examples, RuleMetaRM(), None, run.algo.reward))

    return make


def make_judged(trainer: Trainer, outcomes: list[Outcome | None]) -> list[JudgedResponse]:
    """Two groups of four; None stands for a wrong verdict, CALL_FAIL for a judge that failed."""
    rng = np.random.default_rng(0)
    judged = []
    for n, outcome in enumerate(outcomes):
        label = trainer.task.examples[n // 4].pair.gt_label
        length = int(rng.integers(2, 7))
        rollout = Rollout(
            prompt_index=n // 4,
            response_ids=np.full(length, 10 + n),
            logprobs=np.zeros(length, dtype=np.float32),
            finish_reason="stop",
            weight_version=0,
        )
        verdict = label if outcome else "AB".replace(label, "")
        judged.append(
            JudgedResponse(
                example=n // 4,
                group=n // 4,
                rollout=rollout,
                text="",
                verdict=verdict,
                outcome=outcome or Outcome.SKIPPED,
            )
        )
    return judged


def as_samples(trainer: Trainer, judged: list[JudgedResponse]) -> StepSamples:
    rewards = trainer.task.reward(judged)
    return StepSamples(responses=judged, rewards=rewards, learned=np.arange(len(judged)), num_rounds=1)


def weighted_advantages(trainer: Trainer, judged: list[JudgedResponse]) -> dict[int, tuple[float, float]]:
    """Response token -> (advantage, summed weight), over all updates."""
    result = {}
    for micro_batches in trainer.plan(as_samples(trainer, judged)):
        for batch in micro_batches:
            for token in batch.targets[batch.targets >= 10].unique().tolist():
                rows = batch.targets == token
                advantage = batch.per_token["advantages"][rows].unique().item()
                result[token] = (advantage, batch.per_token["weights"][rows].sum().item())
    return result


OUTCOMES = [Outcome.CORRECT, Outcome.INCORRECT, None, Outcome.CORRECT] * 2


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_a_failed_judge_changes_nothing_for_the_others(make_trainer, normalisation):
    trainer = make_trainer(normalisation=normalisation)
    with_failure = make_judged(trainer, OUTCOMES)
    with_failure[1].outcome = Outcome.CALL_FAIL
    without = [sample for n, sample in enumerate(with_failure) if n != 1]
    failed, expected = (weighted_advantages(trainer, judged) for judged in (with_failure, without))
    assert 11 not in failed  # nothing is computed for it
    assert failed.keys() == expected.keys()
    for token, values in expected.items():
        assert failed[token] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "computed"),
    [
        ({}, {10, 11, 12, 13}),
        ({"entropy_coef": 0.1}, set(range(10, 18))),
    ],
)
def test_a_group_without_spread_is_computed_only_for_a_term_that_needs_it(make_trainer, changes, computed):
    trainer = make_trainer(normalisation="sequence", **changes)
    judged = make_judged(
        trainer, [Outcome.CORRECT, Outcome.INCORRECT, None, Outcome.CORRECT] + [Outcome.CORRECT] * 4
    )
    learned = weighted_advantages(trainer, judged)
    assert set(learned) == computed
    assert sum(weight for _, weight in learned.values()) == pytest.approx(len(computed) / 8)  # of all samples


def test_an_update_without_any_spread_still_has_a_sample(make_trainer):
    trainer = make_trainer(normalisation="sequence")
    judged = make_judged(trainer, [Outcome.CORRECT] * 8)
    assert weighted_advantages(trainer, judged) == {10: (0.0, pytest.approx(1 / 8))}
    assert flat_units([sample.group for sample in judged], trainer.task.reward(judged), 1).all()


def test_a_group_is_flat_if_its_valid_rewards_are_equal():
    values, groups = np.array([1, 0, 1, 1, 0, 1, 0, 0.0]), np.repeat([0, 1, 2, 3], 2)
    valid = np.array([1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
    rewards = SimpleNamespace(values=values, valid=valid)
    assert flat_units(groups, rewards, 1).tolist() == [False, True, True, True]
    assert flat_units(groups, rewards, 2).tolist() == [False, True]


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_weights_of_an_update_sum_to_one(make_trainer, normalisation):
    trainer = make_trainer(normalisation=normalisation)
    weights = [weight for _, weight in weighted_advantages(trainer, make_judged(trainer, OUTCOMES)).values()]
    assert sum(weights) == pytest.approx(1.0, rel=1e-6)


def test_r_align_pays_the_right_reason_and_label_the_right_verdict(make_trainer):
    aligned, label = make_trainer(reward="r_align"), make_trainer(reward="label")
    judged = make_judged(aligned, OUTCOMES)
    assert aligned.task.reward(judged).values.tolist() == [1, 0, 0, 1] * 2
    assert label.task.reward(judged).values.tolist() == [1, 1, 0, 1] * 2


def test_updates_share_the_samples_out(make_trainer):
    trainer = make_trainer(num_updates=2)
    updates = trainer.plan(as_samples(trainer, make_judged(trainer, OUTCOMES)))
    assert len(updates) == 2 and trainer.policy.num_updates == 6
    tokens = [{t for b in batches for t in b.targets[b.targets >= 10].tolist()} for batches in updates]
    assert tokens[0] == {10, 11, 12, 13} and tokens[1] == {14, 15, 16, 17}


def test_metrics_are_means_but_for_extremes():
    sums = {"num_tokens": 4.0, "entropy_sum": 2.0, "ratio_max": 1.5}
    assert policy_metrics(sums) == {"entropy": 0.5, "num_tokens": 4.0, "ratio_max": 1.5}


def test_the_computation_is_proved_once_where_the_engine_generates_next(make_trainer):
    """After the first update of a process, not at once: the KV cache may be asleep, its memory the optimizer's."""
    calls: list = []
    trainer = make_trainer()
    trainer.generator = trainer.sampling.generator = SimpleNamespace(
        verify=lambda: calls.append("verify"),
        prove=lambda: calls.append("prove"),
        wake=lambda: calls.append("wake"),
        replicas=SimpleNamespace(share_of=range, index=0),
        generate=lambda *_, **__: calls.append("generate") or [],
    )
    trainer.prove_if_due()
    trainer.sampling.generate(0)
    trainer.verify_weights()
    assert calls == ["generate", "verify"]
    for _ in range(2):
        trainer.prove_if_due()
        trainer.sampling.generate(0)
        trainer.verify_weights()
    assert calls == ["generate", "verify", "prove", "wake", "generate", "generate"]
