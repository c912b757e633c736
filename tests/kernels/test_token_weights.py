import pytest
import torch
from ralign.kernels.token_weights import token_weights


@pytest.mark.parametrize(
    ("kind", "total", "expected"),
    [
        ("token", None, [1 / 6, 1 / 6, 0, 0]),
        ("token", 12, [1 / 12, 1 / 12, 0, 0]),
        ("sequence", None, [1 / 4, 1 / 8, 0, 0]),
        ("sequence", torch.tensor(8), [1 / 16, 1 / 32, 0, 0]),
        ("token", 0, [0, 0, 0, 0]),
    ],
)
def test_token_weights_by_hand(kind, total, expected):
    lens, valid = torch.tensor([2, 4, 3, 0]), torch.tensor([True, True, False, True])
    torch.testing.assert_close(
        token_weights(lens, valid, kind=kind, total=total), torch.tensor(expected).float()
    )


def test_weights_of_all_tokens_add_to_one():
    lens = torch.randint(1, 50, (30,))
    for kind in ("token", "sequence"):
        weights = token_weights(lens, lens > 5, kind=kind)
        torch.testing.assert_close((weights * lens).sum(), torch.tensor(1.0))
