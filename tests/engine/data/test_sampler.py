import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.data.sampler import PromptSampler
from ralign.engine.runtime.errors import UserError


@given(num_items=st.integers(1, 30), batch_size=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_epoch_uses_every_item_once(num_items, batch_size, seed):
    sampler = PromptSampler(num_items, batch_size, seed)
    drawn = [index for _ in range(3 * num_items) for index in sampler.next_batch()]
    for start in range(0, len(drawn) - num_items + 1, num_items):
        assert sorted(drawn[start : start + num_items]) == list(range(num_items))


@given(num_items=st.integers(1, 30), batch_size=st.integers(1, 50), num_before=st.integers(0, 20))
def test_a_restored_sampler_continues_exactly(num_items, batch_size, num_before):
    sampler = PromptSampler(num_items, batch_size, seed=3)
    for _ in range(num_before):
        sampler.next_batch()
    restored = PromptSampler(num_items, batch_size, seed=3)
    restored.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [restored.next_batch() for _ in range(10)] == [sampler.next_batch() for _ in range(10)]


def test_epochs_and_seeds_differ_in_order():
    sampler = PromptSampler(100, 100, seed=0)
    first, second = sampler.next_batch(), sampler.next_batch()
    assert first != second != PromptSampler(100, 100, seed=1).next_batch()
    assert first == PromptSampler(100, 100, seed=0).next_batch()


def test_another_data_set_or_seed_cannot_be_continued():
    state = PromptSampler(10, 2, seed=0).state_dict()
    with pytest.raises(UserError, match="num_items 10, this run has 11"):
        PromptSampler(11, 2, seed=0).load_state_dict(state)
    with pytest.raises(UserError, match="seed"):
        PromptSampler(10, 2, seed=1).load_state_dict(state)


@pytest.mark.parametrize(("num_items", "batch_size"), [(0, 1), (1, 0)])
def test_nothing_to_sample_is_refused(num_items, batch_size):
    with pytest.raises(UserError):
        PromptSampler(num_items, batch_size, seed=0)
