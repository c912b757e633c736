"""Ranks of one engine that sampled different tokens are stopped; a stub stands for their group."""

from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.generator import replicas
from ralign.engine.generator.generator import Rollout, rollouts_crc
from ralign.engine.generator.replicas import Replicas
from ralign.engine.runtime.errors import UserError


def make_rollout(ids, logprobs) -> Rollout:
    return Rollout(
        prompt_index=0,
        response_ids=np.asarray(ids, dtype=np.int64),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        finish_reason="stop",
        weight_version=0,
    )


def make_replicas(monkeypatch, others: list[int]) -> Replicas:
    def gather(values, own, group):
        values[:] = [own, *others]

    monkeypatch.setattr(replicas, "dist", SimpleNamespace(all_gather_object=gather))
    found = object.__new__(Replicas)
    found.index, found.tensor, found.replica_groups = 3, 1 + len(others), [None]
    return found


def test_one_bit_of_a_token_or_a_logprob_counts():
    base = rollouts_crc([make_rollout([5, 6], [-1.0, -2.0]), make_rollout([7], [-3.0])])
    for changed in (
        [make_rollout([5, 7], [-1.0, -2.0]), make_rollout([7], [-3.0])],
        [
            make_rollout([5, 6], [-1.0, np.nextafter(np.float32(-2), np.float32(0))]),
            make_rollout([7], [-3.0]),
        ],
        [make_rollout([5], [-1.0]), make_rollout([6, 7], [-2.0, -3.0])],
    ):
        assert rollouts_crc(changed) != base
    assert rollouts_crc([make_rollout([5, 6], [-1.0, -2.0]), make_rollout([7], [-3.0])]) == base


def test_ranks_that_agree_go_on(monkeypatch):
    make_replicas(monkeypatch, [17, 17, 17]).check_same(17)
    make_replicas(monkeypatch, []).check_same(17)


def test_ranks_that_differ_are_stopped_with_what_to_set(monkeypatch):
    with pytest.raises(UserError, match=r"engine 3 sampled different tokens .*0x11, 0x12.*all_reduce=custom"):
        make_replicas(monkeypatch, [18]).check_same(17)
