import pytest
import torch
from ralign.kernels.value_loss import value_loss

# value, old value, return, half the larger squared error, gradient, clipped; clip 0.2
TABLE = [
    (0.5, 0.5, 1.0, 0.125, -0.5, False),
    (0.6, 0.5, 1.0, 0.08, -0.4, False),
    (
        0.9,
        0.5,
        1.0,
        0.045,
        0.0,
        True,
    ),  # beyond the bound, towards the return: the clipped error is larger
    (0.1, 0.5, 1.0, 0.405, -0.9, False),  # away from the return: its own error is larger
    (0.1, 0.5, 0.0, 0.045, 0.0, True),
    (1.5, 0.5, 0.9, 0.18, 0.6, False),  # beyond the return
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "gradient", "clipped"), TABLE)
def test_by_hand(value, old, target, loss, gradient, clipped):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    ours, metrics = value_loss(values, old * one, target * one, one, clip=0.2)
    ours.backward()
    assert ours.item() == pytest.approx(loss) and values.grad.item() == pytest.approx(gradient)
    assert metrics["value_clipped_sum"].item() == clipped
    assert metrics["value_error_sum"].item() == pytest.approx((value - target) ** 2)


def test_without_a_clip_it_is_half_the_squared_error():
    values, old, returns = torch.randn(3, 20)
    weights = torch.rand(20)
    loss, metrics = value_loss(values, old, returns, weights, clip=None)
    torch.testing.assert_close(loss, (weights * (values - returns) ** 2).sum() / 2)
    assert metrics["value_clipped_sum"] == 0 and metrics["num_tokens"] == 20


def test_tokens_of_weight_0_are_ignored_whatever_they_hold():
    values = torch.tensor([1.0, torch.nan, torch.inf], requires_grad=True)
    junk = torch.tensor([0.0, torch.nan, torch.inf])
    loss, metrics = value_loss(values, junk, junk, torch.tensor([1.0, 0.0, 0.0]))
    loss.backward()
    assert loss.item() == 0.5 and values.grad.tolist() == [1.0, 0.0, 0.0]
    assert metrics["num_tokens"] == 1 and metrics["value_sum"] == 1


def test_invalid_arguments_are_rejected():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="-1"):
        value_loss(x, x, x, x, clip=-1.0)
    with pytest.raises(ValueError, match=r"\[2\]"):
        value_loss(x, x[:2], x, x)
