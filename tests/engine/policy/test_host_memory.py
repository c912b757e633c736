"""Pinned memory is asked for in powers of two alone, and filled well; a stand-in counts, for no CPU can pin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.policy.host_memory import HostMemory

BLOCK = 1 << 12


@pytest.fixture
def pinned_bytes(monkeypatch):
    """Sizes of the allocations of pinned memory."""
    sizes: list[int] = []
    empty = torch.empty

    def counted(shape, *, dtype, pin_memory=False):
        if pin_memory:
            sizes.append(shape)
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", counted)
    return sizes


def test_requests_are_powers_of_two_and_little_is_lost(pinned_bytes):
    memory = HostMemory(pin=True, block_bytes=BLOCK)
    tensors = [memory.empty((length,), torch.float32) for length in [300, 500, 17, 129] * 20]
    needed = sum(x.nbytes for x in tensors)
    assert all(size & (size - 1) == 0 for size in pinned_bytes)
    assert needed <= sum(pinned_bytes) <= 1.15 * needed
    each_rounded = sum(1 << (x.nbytes - 1).bit_length() for x in tensors)
    assert sum(pinned_bytes) < each_rounded


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 3 * BLOCK), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])),
        max_size=12,
    )
)
def test_no_tensor_overlaps_another(requests):
    empty = torch.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda shape, *, dtype, pin_memory=False: empty(shape, dtype=dtype))
        memory = HostMemory(pin=True, block_bytes=BLOCK)
        tensors = [memory.empty((length,), dtype) for length, dtype in requests]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))
    assert [(len(x), x.dtype) for x in tensors] == requests


def test_without_pinning_a_tensor_is_an_allocation_of_its_own():
    tensor = HostMemory(pin=False).empty((3, 5), torch.bfloat16)
    assert tensor.shape == (3, 5) and tensor.untyped_storage().nbytes() == 30
