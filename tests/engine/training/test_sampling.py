"""Rounds of a step: which groups an update learns from, how many rounds there are, and what is counted."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.registry import TWINS
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import Outcome, RuleMetaRM
from ralign.engine.training.sampling import Sampling, first_with_spread
from ralign.engine.training.tasks import GenRMTask

PAIRS = build_judgeworld(JudgeWorldConfig(num_train=32, num_dev=1, num_test=1))["train"]
ANSWERS = {1: "", 2: r"\boxed{A}", 3: r"\boxed{B}"}  # token -> text


class ScriptedGenerator:
    """Answers of one token. `spread` names the pairs whose answers differ; `cut` those whose answers are cut off."""

    def __init__(self, replicas, spread, cut=()):
        self.replicas, self.spread, self.cut, self.seeds = replicas, spread, cut, []

    def generate(self, prompts, *, num_samples, seed, on_finished, **_):
        self.seeds.append(seed)
        rollouts = []
        for index, prompt in enumerate(prompts):
            for sample in range(num_samples):
                token = 2 + sample % 2 if prompt[0] in self.spread else 2
                rollouts.append(
                    Rollout(
                        prompt_index=index,
                        response_ids=np.array([token]),
                        logprobs=np.zeros(1, dtype=np.float32),
                        finish_reason="length" if prompt[0] in self.cut else "stop",
                        weight_version=0,
                    )
                )
        for index, rollout in enumerate(rollouts):
            on_finished(index, rollout)
        return rollouts


@pytest.fixture
def make_sampling(one_rank):
    def make(spread, cut=(), **algo):
        run = GenRMRun(algo=AlgoConfig(num_prompts=4, num_samples=2, reward="label", **algo))
        pairs = PAIRS
        if run.algo.partner != "none":
            kind = TWINS.load(run.algo.partner)
            pairs = [twin for pair in PAIRS for twin in (pair, kind.make(pair))]
        examples = [Example(pair=pair, prompt_ids=np.array([n])) for n, pair in enumerate(pairs)]
        session = SimpleNamespace(
            generator=ScriptedGenerator(one_rank, spread, cut),
            tokenizer=SimpleNamespace(decode=lambda row, **_: ANSWERS[row[0]]),
        )
        return Sampling(session, run, GenRMTask(run, examples, RuleMetaRM(), one_rank, "label"))

    return make


def collect(sampling, step=0):
    with sampling.judging():
        return sampling.collect(step, lambda name: nullcontext())


def test_without_dynamic_sampling_a_step_is_one_round_and_learns_from_all(make_sampling):
    samples = collect(make_sampling(spread=()))
    assert samples.num_rounds == 1 and samples.learned.tolist() == list(range(8))


def test_further_rounds_replace_groups_without_spread(make_sampling):
    sampling = make_sampling(spread=range(0, 32, 2), dynamic_sampling=5)
    samples = collect(sampling)
    learned = [samples.responses[i] for i in samples.learned]
    assert 1 < samples.num_rounds <= 6 and len(samples.responses) == 8 * samples.num_rounds
    assert len(learned) == 8 and all(response.example % 2 == 0 for response in learned)
    first = [r.example for r in samples.responses if r.example % 2 == 0][:8]
    assert [r.example for r in learned] == first  # the first that were drawn
    groups = [response.group for response in samples.responses]
    assert groups == [n // 2 for n in range(len(groups))]  # they count on
    assert len(samples.rewards.values) == len(samples.responses)  # metrics are over all rounds
    assert len(set(sampling.generator.seeds)) == samples.num_rounds


def test_the_bound_ends_the_search_and_flat_groups_fill_up(make_sampling):
    samples = collect(make_sampling(spread=(), dynamic_sampling=2))
    assert samples.num_rounds == 3 and samples.learned.tolist() == list(range(8))


def test_a_round_with_enough_spread_is_the_last_and_the_same_as_without_the_setting(make_sampling):
    plain, dynamic = (collect(make_sampling(spread=range(32), dynamic_sampling=n)) for n in (0, 3))
    assert dynamic.num_rounds == 1
    assert [r.example for r in dynamic.responses] == [r.example for r in plain.responses]


@pytest.mark.parametrize("partner", ["order", "cues"])
def test_a_pair_and_its_twin_stay_together(make_sampling, partner):
    # Only the twin of each second pair has a spread.
    samples = collect(make_sampling(spread=range(3, 64, 4), partner=partner, dynamic_sampling=8))
    learned = [samples.responses[i].example for i in samples.learned]
    assert learned[::4] == [n - n % 2 for n in learned[::4]]
    assert all(b - a == 1 for a, b in zip(learned[1::4], learned[2::4], strict=True))
    assert all(n // 2 % 2 == 1 for n in learned)


def test_a_restored_step_draws_the_same_pairs_with_their_twins(make_sampling):
    settings = {"spread": range(3, 64, 4), "partner": "cues", "dynamic_sampling": 8}
    sampling, restored = make_sampling(**settings), make_sampling(**settings)
    first = collect(sampling)
    assert first.num_rounds > 1
    restored.sampler.load_state_dict(sampling.sampler.state_dict())
    steps = [collect(one, step=1) for one in (sampling, restored)]
    drawn, again = ([(r.example, r.group) for r in step.responses] for step in steps)
    assert drawn == again and drawn != [(r.example, r.group) for r in first.responses]
    assert steps[0].learned.tolist() == steps[1].learned.tolist()


@pytest.mark.parametrize(("setting", "asked"), [(None, 0), ("mask", 0), ("penalty", 1), ("keep", 1)])
def test_a_cut_off_judgment_is_reviewed_only_if_it_can_be_paid(make_sampling, setting, asked, monkeypatch):
    reviews = []
    monkeypatch.setattr(RuleMetaRM, "outcome", lambda self, *_: reviews.append(1) or Outcome.CORRECT)
    samples = collect(make_sampling(spread=(), cut=range(64), truncated=setting))
    right = [r for r in samples.responses if PAIRS[r.example].gt_label == "A"]
    assert right and len(reviews) == asked * len(right)
    rewards = samples.rewards
    if setting is None:
        assert (rewards.values == -1).all() and rewards.num_invalid == 8
    if setting == "mask":
        assert not rewards.valid.any()
    if setting == "penalty":
        assert set(rewards.values.tolist()) <= {-1.0, 0.0}


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 20))
def test_a_batch_takes_units_with_spread_first_in_the_order_drawn(flat, num_units):
    units = first_with_spread(np.array(flat), min(num_units, len(flat)))
    spread = [n for n, is_flat in enumerate(flat) if not is_flat]
    assert len(units) == min(num_units, len(flat)) and sorted(set(units)) == units.tolist()
    assert set(units) >= set(spread[:num_units]) and len(set(units) & set(spread)) == min(
        len(spread), len(units)
    )
