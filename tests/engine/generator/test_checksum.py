"""Checksums add up over shards, whatever the layout, and tell values and places apart."""

import pytest
import torch
from ralign.engine.generator.checksum import checksum, shard_checksum
from ralign.engine.generator.gather import Sharding


def shard(whole: torch.Tensor, sharding: Sharding, tp_size: int, tp_rank: int) -> torch.Tensor:
    spans = sharding.spans(tp_size, tp_rank)
    return torch.cat(
        [whole.narrow(sharding.split_dim, start, length) for start, _, length in spans], sharding.split_dim
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts, split_dim", [((16, 8, 8), 0), ((32,), 0), ((32,), 1)])
def test_shards_add_up_to_the_whole(dtype, parts, split_dim):
    torch.manual_seed(0)
    whole = torch.randn((32, 12) if split_dim == 0 else (12, 32)).to(dtype)
    sharding = Sharding(parts=parts, split_dim=split_dim, width=12)
    for tp_size in (1, 2, 4, 8):
        total = sum(
            shard_checksum(shard(whole, sharding, tp_size, rank), sharding, tp_size, rank)
            for rank in range(tp_size)
        )
        assert total % (1 << 63) == checksum(whole), tp_size


def test_a_changed_or_swapped_value_shows():
    x = torch.arange(2000.0).view(40, 50)
    changed, swapped = x.clone(), x.clone()
    changed[17, 3] = torch.nextafter(changed[17, 3], torch.tensor(1e9))
    swapped[3], swapped[5] = x[5], x[3]
    assert len({checksum(x), checksum(changed), checksum(swapped)}) == 3
