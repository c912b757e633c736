"""The weight of a token: mask and normaliser over the global batch."""

import pytest
import torch
from ralign.engine.algorithms.losses import token_weights


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("token", [1 / 6, 1 / 6, 0, 0]), ("sequence", [1 / 4, 1 / 8, 0, 0])],
)
def test_token_weights_by_hand(kind, expected):
    lens, valid = torch.tensor([2, 4, 3, 0]), torch.tensor([True, True, False, True])
    torch.testing.assert_close(token_weights(lens, valid, kind=kind), torch.tensor(expected).float())


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_a_batch_without_valid_samples_has_no_weight(kind):
    weights = token_weights(torch.tensor([2, 4]), torch.tensor([False, False]), kind=kind)
    assert (weights == 0).all()


def test_weights_of_all_tokens_add_to_one():
    lens = torch.randint(1, 50, (30,))
    for kind in ("token", "sequence"):
        weights = token_weights(lens, lens > 5, kind=kind)
        torch.testing.assert_close((weights * lens).sum(), torch.tensor(1.0))
