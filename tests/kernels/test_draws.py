"""A kernel test whose draws could not run on a GPU fails on every machine; see conftest.py."""

import pytest
import torch


@pytest.mark.parametrize(
    "draw",
    [
        lambda generator, **options: torch.rand(3, generator=generator, **options),
        lambda generator, **options: torch.randn(2, 3, generator=generator, **options),
        lambda generator, **options: torch.randint(0, 9, (3,), generator=generator, **options),
        lambda generator, **options: torch.randperm(5, generator=generator, **options),
    ],
    ids=["rand", "randn", "randint", "randperm"],
)
def test_a_cpu_generator_is_rejected_for_the_default_device(draw):
    with pytest.raises(RuntimeError, match="default device|Expected a 'cuda' device type"):
        draw(torch.Generator("cpu"))
    drawn = draw(torch.Generator("cpu").manual_seed(0), device="cpu")
    assert torch.equal(drawn, draw(torch.Generator("cpu").manual_seed(0), device="cpu"))
    assert drawn.to(torch.get_default_device()).device.type == torch.get_default_device().type
