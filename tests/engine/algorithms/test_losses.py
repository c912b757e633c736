"""The weight of a token (mask and normaliser over the global batch), and the policy loss of packed batches."""

import numpy as np
import pytest
import torch
from ralign.engine.algorithms.losses import ReinforceLoss, token_weights
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.data.packing import Sample, materialise, unpack
from ralign.kernels.linear_logprob import linear_logprob
from ralign.kernels.linear_policy_loss import split_rows


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("token", [1 / 6, 1 / 6, 0, 0]), ("sequence", [1 / 4, 1 / 8, 0, 0])],
)
def test_token_weights_by_hand(kind, expected):
    lens, valid = torch.tensor([2, 4, 3, 0]), torch.tensor([True, True, False, True])
    torch.testing.assert_close(token_weights(lens, valid, kind=kind), torch.tensor(expected).float())


def test_a_constant_normaliser_gives_a_token_the_same_weight_whatever_the_lengths_are():
    valid = torch.tensor([True, True, False, True])
    for lens in ([2, 4, 3, 0], [1, 9, 3, 0]):
        weights = token_weights(torch.tensor(lens), valid, kind="constant", max_new_tokens=10)
        torch.testing.assert_close(weights, torch.tensor([1 / 20, 1 / 20, 0, 0]))


@pytest.mark.parametrize("kind", ["token", "sequence", "constant"])
def test_a_batch_without_valid_samples_has_no_weight(kind):
    weights = token_weights(torch.tensor([2, 4]), torch.tensor([False, False]), kind=kind)
    assert (weights == 0).all()


def test_weights_of_all_tokens_add_to_one():
    lens = torch.randint(1, 50, (30,))
    for kind in ("token", "sequence"):
        weights = token_weights(lens, lens > 5, kind=kind)
        torch.testing.assert_close((weights * lens).sum(), torch.tensor(1.0))


SEQUENCE_LEVELS = [
    {"tis_level": "sequence"},
    {"tis_level": "geometric", "tis_cap": 1.01},
    {"tis_cap": None, "mask_level": "geometric", "mask_low": 0.9, "mask_high": 1.1},
    {"tis_level": "token", "mask_level": "sequence", "mask_low": 0.7, "mask_high": 1.4},
    {"ratio": "sequence", "dual_clip": None, "clip_low": 0.05, "clip_high": 0.05, "mask_level": "token"},
]


def make_samples(num_samples=9):
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(num_samples):
        length = int(rng.integers(1, 12))
        logprobs = rng.normal(-1, 0.3, (4, length)).astype(np.float32)
        names = ("logprobs", "old_logprobs", "rollout_logprobs", "ref_logprobs")
        samples.append(
            Sample(
                prompt_ids=np.arange(3),
                response_ids=np.arange(length),
                per_response_token=dict(zip(names, logprobs, strict=True)),
                per_sample={"advantages": float(rng.normal()), "weights": 1 / (num_samples * length)},
            )
        )
    return samples


def over_micro_batches(loss, samples, micro_batches):
    """Returns the loss's value, each sample's gradients, and its metrics, summed as an update does."""
    batches = materialise(samples, [np.array(part) for part in micro_batches], pad_multiple=8)
    total, gradients, reports = 0.0, [], []
    for batch in batches:
        logprobs = batch.per_token["logprobs"].clone().requires_grad_()
        value, metrics = loss(logprobs, torch.zeros_like(logprobs), batch)
        total += value.item()
        gradients.append(torch.autograd.grad(value, logprobs)[0])
        reports.append(metrics)
    read = [{name: value.double() for name, value in report.items()} for report in reports]
    merge = {"_min": min, "_max": max}
    metrics = {name: merge.get(name[-4:], sum)([report[name] for report in read]) for name in read[0]}
    return total, unpack(batches, gradients), metrics


@pytest.mark.parametrize("settings", [{}, *SEQUENCE_LEVELS], ids=str)
def test_levels_do_not_depend_on_how_samples_are_packed(settings):
    loss, samples = ReinforceLoss(AlgoConfig(kl_coef=0.1, **settings)), make_samples()
    one, gradients, metrics = over_micro_batches(loss, samples, [range(9)])
    for layout in ([[i] for i in range(9)], [[8, 3, 1], [0, 7], [2, 4, 5, 6]]):
        other, other_gradients, other_metrics = over_micro_batches(loss, samples, layout)
        assert other == pytest.approx(one, rel=1e-5)
        for index, gradient in gradients.items():
            np.testing.assert_allclose(other_gradients[index], gradient, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(other_metrics, metrics, rtol=1e-5, atol=1e-4)
    if "mask_level" in settings:
        assert 0 < metrics["mask_sum"] < metrics["num_tokens"]


@pytest.mark.parametrize("settings", SEQUENCE_LEVELS, ids=str)
def test_a_level_of_sequences_changes_the_loss_and_is_not_folded(settings):
    loss, tokens = ReinforceLoss(AlgoConfig(**settings)), ReinforceLoss(AlgoConfig())
    assert tokens.folds and not loss.folds
    results = [over_micro_batches(x, make_samples(), [range(9)])[0] for x in (loss, tokens)]
    assert results[0] != pytest.approx(results[1], rel=1e-3)


def test_levels_of_tokens_are_folded():
    assert ReinforceLoss(AlgoConfig(mask_level="token")).folds
    assert ReinforceLoss(AlgoConfig(tis_cap=None, tis_level="sequence")).folds


def test_clip_bounds_are_those_of_the_ratio():
    ranges = [AlgoConfig(ratio=ratio).clip_range for ratio in ("token", "sequence")]
    assert ranges == [(0.2, 0.28), (3e-4, 4e-4)]
    algo = AlgoConfig(ratio="sequence", clip_high=0.01)
    settings = ReinforceLoss(algo).settings
    assert (settings["clip_low"], settings["clip_high"]) == algo.clip_range == (3e-4, 0.01)


def test_folded_and_unfolded_losses_report_the_same_metrics():
    (batch,) = materialise(make_samples(), [np.arange(9)], pad_multiple=8)
    batch.loss_rows = split_rows(batch.per_token["weights"], batch.per_token["advantages"], needs_all=False)
    loss = ReinforceLoss(AlgoConfig(mask_level="token"))
    hidden, weight = torch.randn(len(batch.targets), 4), torch.randn(16, 4)
    logprobs, entropy = linear_logprob(hidden, weight, batch.targets, valid_vocab=16)
    values = loss(logprobs, entropy, batch), loss.from_hidden(hidden, weight, batch, valid_vocab=16)
    torch.testing.assert_close(*values)
    assert values[0][1]["rollout_ratio_above"][0] > 0
