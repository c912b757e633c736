"""Flat tensors of micro-batches: by hand, against the reference, and back again."""

from types import SimpleNamespace

import numpy as np
import packing_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.data.packing import Sample, flops_cost, materialise, plan, unpack
from ralign.engine.runtime.errors import UserError
from ralign.kernels import _packing
from ralign.kernels.logprob import IGNORE

SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12)
NAMES = ["rollout_logprobs", "advantages", "groups"]


def sample(prompt_len, response_len, start=0):
    ids = np.arange(start, start + prompt_len + response_len)
    return Sample(
        prompt_ids=ids[:prompt_len],
        response_ids=ids[prompt_len:],
        per_response_token={"rollout_logprobs": -1.0 - np.arange(response_len, dtype=np.float32)},
        per_sample={"advantages": float(start), "groups": start // 20},
    )


def test_by_hand():
    samples = [sample(9, 9), sample(2, 3, start=10), sample(3, 1, start=20), sample(1, 0, start=30)]
    (batch,) = materialise(samples, [np.array([1, 2, 3])], pad_multiple=4)
    assert batch.input_ids.tolist() == [10, 11, 12, 13, 14, 20, 21, 22, 23, 30, 0, 0]
    assert batch.targets.tolist() == [IGNORE, 12, 13, 14, IGNORE, IGNORE, IGNORE, 23] + [IGNORE] * 4
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 10, 12] and batch.max_seqlen == 5
    assert batch.response_rows.tolist() == [1, 2, 3, 7]
    assert batch.loss_mask.nonzero()[:, 0].tolist() == [1, 2, 3, 7]
    assert batch.per_token["rollout_logprobs"].tolist() == [0, -1, -2, -3, 0, 0, 0, -1, 0, 0, 0, 0]
    assert batch.per_token["advantages"].tolist() == [0, 10, 10, 10, 0, 0, 0, 20, 0, 0, 0, 0]
    assert batch.per_token["groups"].tolist() == [-1, 0, 0, 0, -1, -1, -1, 1, -1, -1, -1, -1]
    assert [batch.input_ids.dtype, batch.targets.dtype, batch.position_ids.dtype] == [torch.int64] * 3
    assert batch.cu_seqlens.dtype == torch.int32 and batch.loss_mask.dtype == torch.bool
    assert [batch.per_token[name].dtype for name in NAMES] == [torch.float32, torch.float32, torch.int64]
    assert [x.tolist() for x in batch.unpack(batch.targets)] == [[12, 13, 14], [23], []]


def test_a_micro_batch_without_samples_is_padding():
    first, empty = materialise([sample(2, 1)], [np.array([0]), np.array([], dtype=np.int64)], pad_multiple=2)
    assert first.input_ids.tolist() == [0, 1, 2, 0]
    assert empty.input_ids.tolist() == [0, 0] and empty.targets.tolist() == [IGNORE] * 2
    assert empty.cu_seqlens.tolist() == [0, 2] and empty.max_seqlen == 2
    assert not empty.loss_mask.any() and len(empty.response_rows) == 0 and empty.unpack(empty.targets) == []
    assert [empty.per_token[name].tolist() for name in NAMES] == [[0, 0], [0, 0], [-1, -1]]
    assert [empty.per_token[name].dtype for name in NAMES] == [torch.float32, torch.float32, torch.int64]


@given(shapes=SHAPES, pad_multiple=st.integers(1, 8), dp_size=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_the_tensors_are_the_reference_s_and_their_inverse_the_identity(shapes, pad_multiple, dp_size):
    samples = [sample(*shape, start=100 * i) for i, shape in enumerate(shapes)]
    ours = plan([len(x) for x in samples], token_budget=40, dp_size=dp_size, pad_multiple=pad_multiple)
    back = {}
    for rank in range(dp_size):
        batches = materialise(samples, ours.of_rank(rank), pad_multiple=pad_multiple)
        for batch, indices in zip(batches, ours.of_rank(rank), strict=True):
            expected = reference.materialise(samples, indices, pad_multiple=pad_multiple)
            for name, values in expected.items():
                tensor = batch.per_token[name] if name in NAMES else getattr(batch, name)
                assert tensor.numpy().dtype == values.dtype and tensor.tolist() == values.tolist(), name
            assert batch.max_seqlen == np.diff(expected["cu_seqlens"]).max()
            assert len(batch.input_ids) <= 40 and batch.indices.tolist() == indices.tolist()
        back |= unpack(batches, [batch.per_token["rollout_logprobs"] for batch in batches])
    assert sorted(back) == list(range(len(samples)))
    for i, values in back.items():
        assert values.tolist() == samples[i].per_response_token["rollout_logprobs"].tolist()


def test_unpack_comes_in_the_order_of_the_samples():
    samples = [sample(1 + i % 3, 5 - i % 4, start=100 * i) for i in range(9)]
    order = [np.array([7, 2]), np.array([], dtype=np.int64), np.array([8, 0, 4])]
    batches = materialise(samples, order)
    back = unpack(batches, [batch.targets.float() for batch in batches])
    assert list(back) == [0, 2, 4, 7, 8]
    assert all(values.tolist() == samples[i].response_ids.tolist() for i, values in back.items())
    with pytest.raises(UserError, match=r"results\[0\] has 3 tokens, too few"):
        unpack(batches, [torch.zeros(3)] * 3)
    with pytest.raises(UserError, match=r"results\[0\] must be float32, got int64"):
        unpack(batches, [batch.targets for batch in batches])
    with pytest.raises(UserError, match="do not fit together"):
        unpack(batches, [batch.targets.float() for batch in batches[:2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": np.zeros(0, dtype=np.int64)}, "sample 1 has an empty prompt"),
        ({"prompt_ids": np.zeros(2)}, "sample 1: prompt_ids must be int64, got float64"),
        ({"prompt_ids": np.zeros(4, dtype=np.int64)[::2]}, "sample 1: prompt_ids must be contiguous"),
        ({"response_ids": [1, 2, 3]}, "sample 1: response_ids must be a numpy array, got list"),
        ({"response_ids": np.zeros((3, 1), dtype=np.int64)}, "sample 1: response_ids must have 1 dimension"),
        ({"response_ids": np.zeros(2, dtype=np.int64)}, "sample 1: rollout_logprobs has 3 values for 2"),
        ({"per_response_token": {}}, "sample 1 has the values"),
        ({"per_response_token": {"rollout_logprobs": np.zeros(3)}}, "must be float32, got float64"),
        ({"per_sample": {"advantages": 1.0}}, "sample 1 has the values"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(change, message):
    samples = [sample(2, 3), sample(2, 3)]
    for name, value in change.items():
        setattr(samples[1], name, value)
    with pytest.raises(UserError, match=message):
        materialise(samples, [np.array([0, 1])])


def test_other_misuse_is_refused():
    with pytest.raises(UserError, match="sample index 2, but there are 1 samples"):
        materialise([sample(2, 3)], [np.array([2])])
    with pytest.raises(UserError, match="sample index -1, but there are 1 samples"):
        materialise([sample(2, 3)], [np.array([-1])])
    with pytest.raises(UserError, match="no samples"):
        materialise([], [])
    with pytest.raises(UserError, match="pad_multiple must be at least 1, got 0"):
        materialise([sample(2, 3)], [np.array([0])], pad_multiple=0)
    clash = sample(2, 3)
    clash.per_sample["targets"] = 1.0
    with pytest.raises(UserError, match="'targets' is already defined"):
        materialise([clash], [np.array([0])])


@pytest.mark.parametrize("size", [4, 6])
def test_a_buffer_of_another_size_is_refused(size):
    ragged = _packing.Ragged([0], [np.arange(2)], [np.arange(3)], np.array([1]), 1)
    sizes = {
        "input_ids": 5,
        "targets": size,
        "position_ids": 5,
        "loss_mask": 5,
        "response_rows": 3,
        "cu_seqlens": 2,
    }
    types = {"loss_mask": bool, "cu_seqlens": np.int32}
    buffers = {name: np.zeros(n, dtype=types.get(name, np.int64)) for name, n in sizes.items()}
    with pytest.raises(ValueError, match=f"targets must have 5 elements, got {size}"):
        ragged.write(buffers, {})
    buffers["targets"] = np.zeros(5, dtype=np.int64)
    buffers["targets"].flags.writeable = False
    with pytest.raises(ValueError, match="targets is read-only"):
        ragged.write(buffers, {})


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_long_samples_into_buffers_that_start_anywhere(offset):
    """Long enough for whole cache lines of every type, beginning at any element of a line."""
    rng = np.random.default_rng(offset)
    samples = [sample(*rng.integers(1, 400, 2), start=1000 * i) for i in range(7)]
    columns = {
        "rollout_logprobs": [x.per_response_token["rollout_logprobs"] for x in samples],
        "advantages": np.array([x.per_sample["advantages"] for x in samples], dtype=np.float32),
        "groups": np.array([x.per_sample["groups"] for x in samples]),
    }
    prompts, responses = [x.prompt_ids for x in samples], [x.response_ids for x in samples]
    ragged = _packing.Ragged(list(range(7)), prompts, responses, np.array([4, 0, 3]), 16)
    expected = [reference.materialise(samples, part, pad_multiple=16) for part in (range(4), [], range(4, 7))]
    flat = {name: np.concatenate([part[name] for part in expected]) for name in expected[0]}
    buffers = {name: np.full(len(x) + offset, 77, dtype=x.dtype)[offset:] for name, x in flat.items()}
    ragged.write(buffers, columns)
    for name, values in flat.items():
        assert np.array_equal(buffers[name], values), name
        assert offset == 0 or (buffers[name].base[:offset] == np.full(1, 77, dtype=values.dtype)).all()


def test_flops_of_a_decoder():
    """Counted by hand for one layer: q and o 8·4·2 each, k and v 8·2·2 each, three MLP matrices 8·24, output 8·10."""
    config = SimpleNamespace(
        hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=2, intermediate_size=24,
        num_hidden_layers=1, vocab_size=10,
    )  # fmt: skip
    assert flops_cost(config) == (2 * (2 * 64 + 2 * 32 + 3 * 192 + 80), 2 * 4 * 2)
