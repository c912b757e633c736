"""The probe finds the decisive token, and a warm start ends with it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ralign.engine.config.run import GenRMRun, SFTConfig
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld, decisive_start
from ralign.engine.judging.metarm import decisive_factors
from ralign.engine.judging.second_edition_rule import evidence_of, factors_of
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.competence import Competence, Probe
from ralign.engine.training.sft import SFT

SMALL = {"num_train": 40, "num_warm_start": 2, "num_dev": 2, "num_test": 2}


@pytest.fixture(params=[1, 2])
def pairs(request):
    return build_judgeworld(JudgeWorldConfig(edition=request.param, **SMALL))["train"]


def test_the_decisive_place_is_the_mark_of_the_first_fault(pairs):
    for pair in pairs:
        golden = pair.gt_judgment
        before, mark = golden[: decisive_start(pair)], golden[decisive_start(pair) :][:2]
        factors = factors_of(golden) or decisive_factors(golden)
        assert mark == f" {next(iter(factors)).side}" and "wrong" not in before
        if factors_of(golden):
            item = factors_of(golden)[0].item
            assert before.endswith(" ".join([item, *evidence_of(golden)[item][:3]]))


class Recorded:
    """A policy that finds every token as probable as its table says; it keeps the batches."""

    pad_multiple = 1

    def __init__(self, hf_config, logprob_of):
        self.hf_config, self.logprob_of, self.batches = hf_config, logprob_of, []

    def start_training(self, optim, num_steps):
        pass

    def logprobs(self, batches):
        self.batches = batches
        return [
            torch.stack([self.logprob_of[batch.targets.clamp(min=0)], batch.targets * 0.0])
            for batch in batches
        ]


def probe_of(pairs, *, prompt_ids=(5, 6)) -> Probe:
    return Probe(
        examples=[SimpleNamespace(prompt_ids=np.array(prompt_ids)) for _ in pairs],
        texts=[pair.gt_judgment for pair in pairs],
        starts=[decisive_start(pair) for pair in pairs],
    )


def test_competence_is_the_mean_probability_of_the_decisive_tokens(pairs, tmp_path, make_session, no_policy):
    tokenizer = build_tokenizer([pair.gt_judgment for pair in pairs], tmp_path, 600)
    table = torch.full((len(tokenizer),), 0.125).log()
    (a,), (b,) = (tokenizer.encode(f" {side}") for side in "AB")
    table[a], table[b] = np.log(0.75), np.log(0.25)
    policy = Recorded(no_policy.hf_config, table)
    session = make_session(policy=policy, tokenizer=tokenizer)
    found = Competence(session, probe_of(pairs), token_budget=256).measure()
    shares = [0.75 if pair.gt_judgment[decisive_start(pair) + 1] == "A" else 0.25 for pair in pairs]
    assert found == pytest.approx(np.mean(shares), abs=1e-6) and len(policy.batches) > 1


def test_a_token_across_the_decisive_place_is_the_probed_one(tmp_path, make_session, no_policy):
    tokenizer = build_tokenizer(["abcabcabc"] * 50, tmp_path, 300)
    assert len(tokenizer.encode("abc")) < 3
    table = torch.zeros(len(tokenizer))
    session = make_session(policy=Recorded(no_policy.hf_config, table), tokenizer=tokenizer)
    probe = Probe(examples=[SimpleNamespace(prompt_ids=np.array([5]))], texts=["abcabcabc"], starts=[1])
    (sample,) = Competence(session, probe, token_budget=64).samples
    assert sample.per_response_token["is_decisive"].tolist()[0] == 1
    assert sample.per_response_token["is_decisive"].sum() == 1


class Rising:
    """A competence that grows by a tenth at each measurement."""

    value = 0.0

    def measure(self):
        self.value += 0.1
        return self.value


def make_sft(make_session, no_policy, **settings):
    run = GenRMRun(sft=SFTConfig(num_samples=1, probe_every=2, **settings))
    policy = Recorded(no_policy.hf_config, torch.zeros(600))
    policy.forward_backward = lambda batches, loss: None
    policy.optimizer_step = lambda: SimpleNamespace(loss=1.0, grad_norm=1.0, lr=1.0)
    session = make_session(policy=policy)
    examples = [SimpleNamespace(prompt_ids=np.array([5, 6]))] * 4
    stage = SFT(session, run, examples, [np.array([7, 8])] * 4, Probe(examples=[], texts=[], starts=[]))
    stage.competence = Rising()
    return stage


def test_the_warm_start_is_complete_at_its_competence(make_session, no_policy):
    stage = make_sft(make_session, no_policy, num_steps=20, competence=0.25)
    seen = {}
    while not stage.is_complete:
        metrics, _ = stage.step()
        if "policy/competence" in metrics:
            seen[metrics["step"]] = round(metrics["policy/competence"], 6)
    assert seen == {2: 0.1, 4: 0.2, 6: 0.3}
    assert stage.state_dict()["is_complete"] is True


def test_a_warm_start_that_does_not_get_there_is_an_error(make_session, no_policy):
    stage = make_sft(make_session, no_policy, num_steps=5, competence=0.9)
    with pytest.raises(UserError, match=r"sft.num_steps=5: .* competence is 0.30, sft.competence=0.9"):
        for _ in range(5):
            stage.step()


def test_pairs_without_a_probe_have_no_competence(make_session, no_policy):
    run = GenRMRun(sft=SFTConfig(num_samples=1, competence=0.5))
    with pytest.raises(UserError, match="sft.competence=0.5: these pairs have no probe"):
        SFT(make_session(policy=Recorded(no_policy.hf_config, torch.zeros(9))), run, [None], [np.array([1])])
