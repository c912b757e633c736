"""The exchange between the ranks of engines. Threads stand for ranks, and a stub for their process groups."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.generator import replicas
from ralign.engine.generator.generator import Rollout, rollouts_crc
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.runtime.errors import UserError


class ThreadGroups:
    """`torch.distributed` among threads: the collectives that `Replicas` needs."""

    def __init__(self):
        self.local = threading.local()
        self.barriers: dict[tuple, threading.Barrier] = {}
        self.boxes: dict[tuple, dict[int, object]] = {}
        self.lock = threading.Lock()

    def new_group(self, ranks, **options):
        ranks = tuple(ranks)
        with self.lock:
            self.barriers.setdefault(ranks, threading.Barrier(len(ranks), timeout=60))
            self.boxes.setdefault(ranks, {})
        return ranks

    def all_gather_object(self, values, own, group):
        self.boxes[group][self.local.rank] = own
        self.barriers[group].wait()
        values[:] = [self.boxes[group][rank] for rank in group]
        self.barriers[group].wait()

    def broadcast_object_list(self, box, src, group):
        assert src in group
        values = [None] * len(group)
        self.all_gather_object(values, list(box), group)
        box[:] = values[group.index(src)]


@pytest.fixture
def on_ranks(monkeypatch):
    """Calls a function with the `Replicas` of each rank, and returns the results, or the errors, by rank."""

    def call(world_size, tensor, function):
        groups = ThreadGroups()
        monkeypatch.setattr(replicas, "dist", groups)

        def work(rank):
            groups.local.rank = rank
            cluster = SimpleNamespace(world_size=world_size, rank=rank, generation_timeout_s=60)
            try:
                return function(Replicas(cluster, tensor))
            except UserError as error:
                return error

        with ThreadPoolExecutor(world_size) as pool:
            return list(pool.map(work, range(world_size)))

    return call


@pytest.mark.parametrize(("world_size", "tensor"), [(1, 1), (3, 1), (4, 2), (4, 4)])
def test_one_rank_of_each_engine_asks_and_all_its_ranks_get_the_result(on_ranks, world_size, tensor):
    asked = []

    def ask(place):
        def request():
            asked.append((place.index, place.place))
            return f"answer of engine {place.index}"

        assert place.makes_requests == (place.place == 0)
        return place.ask_once(request)

    found = on_ranks(world_size, tensor, ask)
    assert found == [f"answer of engine {rank // tensor}" for rank in range(world_size)]
    assert sorted(asked) == [(index, 0) for index in range(world_size // tensor)]


@pytest.mark.parametrize("error", [JudgeStopped("the budget is spent"), UserError("no golden judgment")])
@pytest.mark.parametrize("engine", [0, 1])
def test_an_error_in_one_engine_is_raised_on_every_rank(on_ranks, engine, error):
    def ask(place):
        def request():
            if place.index == engine:
                raise error
            return "an answer"

        return place.ask_once(request)

    found = on_ranks(4, 2, ask)
    assert [type(each) for each in found] == [type(error)] * 4 and {str(each) for each in found} == {
        str(error)
    }


def make_rollout(ids, logprobs) -> Rollout:
    return Rollout(
        prompt_index=0,
        response_ids=np.asarray(ids, dtype=np.int64),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        finish_reason="stop",
        weight_version=0,
    )


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


def test_ranks_with_the_same_tokens_pass(on_ranks):
    assert on_ranks(3, 3, lambda place: place.check_same(17)) == [None] * 3
    assert on_ranks(1, 1, lambda place: place.check_same(17)) == [None]


def test_ranks_with_different_tokens_are_stopped_with_the_setting_that_helps(on_ranks):
    found = on_ranks(4, 2, lambda place: place.check_same(17 + (place.index == 1 and place.place == 1)))
    assert found[:2] == [None, None]
    for error in found[2:]:
        assert "engine 1 sampled different tokens (CRC-32 0x11, 0x12)" in str(error)
        assert "all_reduce=custom" in str(error)
