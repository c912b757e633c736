"""The packing planner against Python packers, lower bounds and memcpy.

pytest benchmarks/test_packing.py --benchmark-only. Everything here is one thread that waits for nothing, so times are
CPU times: other programs on the machine disturb them less.
"""

import time

import numpy as np
import pytest
from baselines_packing import first_fit_decreasing, karmarkar_karp, modified_first_fit_decreasing
from packing_reference import KINDS, draw_lengths, martello_toth_bound
from ralign.engine.data.packing import Sample, materialise, plan
from ralign.kernels import _packing

pytestmark = pytest.mark.benchmark(timer=time.process_time)
COST = (24576.0, 1.0)  # l and l² of a 7B model, as verl weighs them
SHAPES = [(1024, 32), (4096, 64), (10240, 64)]


def costs_of(lengths: np.ndarray) -> np.ndarray:
    return lengths * (COST[0] + COST[1] * lengths)


def imbalance(loads: np.ndarray, largest: float) -> float:
    """How far the costliest rank is over the least possible."""
    return float(loads.max() / max(loads.mean(), largest) - 1)


def rank_loads(ours, cost: np.ndarray) -> np.ndarray:
    return np.array([sum(cost[batch].sum() for batch in rank) for rank in ours.micro_batches])


@pytest.mark.parametrize("n", [10_000, 100_000])
@pytest.mark.parametrize("balance", [False, True], ids=["packed", "balanced"])
@pytest.mark.parametrize("kind", KINDS)
def test_plan(benchmark, kind, balance, n):
    """Packed: bins alone. Balanced: and their costs evened out over 64 ranks."""
    benchmark.group = f"plan {kind} {n}"
    lengths, budget = draw_lengths(kind, n)
    options = {"token_budget": budget, "dp_size": 64 if balance else 1, "cost": COST, "balance": balance}
    ours = benchmark.pedantic(plan, (lengths,), options, rounds=100 if n == 10_000 else 30, warmup_rounds=3)
    num_bins, bound = len(ours.offsets) - 1, martello_toth_bound(lengths, budget)
    benchmark.extra_info |= {"num_bins": num_bins, "bound": bound, "tokens": int(lengths.sum())}
    assert max(np.add.reduceat(lengths[ours.indices], np.minimum(ours.offsets[:-1], n - 1))) <= budget
    if balance:
        cost = costs_of(lengths)
        benchmark.extra_info["imbalance"] = imbalance(rank_loads(ours, cost), cost.max())
        assert benchmark.extra_info["imbalance"] <= 0.001 or kind != "lognormal"


@pytest.mark.parametrize("n", [10_000, 100_000])
@pytest.mark.parametrize("packer", [first_fit_decreasing, modified_first_fit_decreasing])
def test_plan_in_python(benchmark, packer, n):
    benchmark.group = f"plan lognormal {n}"
    lengths, budget = draw_lengths("lognormal", n)
    bins = benchmark.pedantic(packer, (lengths.tolist(), budget), rounds=3 if n == 10_000 else 1)
    assert sorted(i for members in bins for i in members) == list(range(n))
    benchmark.extra_info["num_bins"] = len(bins)


@pytest.mark.parametrize("n", [10_000, 100_000])
def test_plan_by_trl(benchmark, n):
    """TRL packs whole datasets: its time includes moving token ids within Arrow."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install ralign[bench]")
    datasets = pytest.importorskip("datasets")
    benchmark.group = f"plan lognormal {n}"
    lengths, budget = draw_lengths("lognormal", n)
    dataset = datasets.Dataset.from_dict({"input_ids": [np.zeros(length, np.int32) for length in lengths]})

    def pack():
        return trl.pack_dataset(
            dataset, seq_length=budget, strategy="bfd", map_kwargs={"load_from_cache_file": False}
        )

    packed = benchmark.pedantic(pack, rounds=3 if n == 10_000 else 1)
    benchmark.extra_info["num_bins"] = len(packed)


@pytest.mark.parametrize(("n", "dp_size"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_balance(benchmark, kind, n, dp_size):
    benchmark.group = f"balance {kind} {n} over {dp_size}"
    lengths, budget = draw_lengths(kind, n)
    options = {"token_budget": budget, "dp_size": dp_size, "cost": COST}
    ours = benchmark.pedantic(plan, (lengths,), options, rounds=100, warmup_rounds=3)
    cost = costs_of(lengths)
    benchmark.extra_info["imbalance"] = imbalance(rank_loads(ours, cost), cost.max())
    assert benchmark.extra_info["imbalance"] <= 0.001


@pytest.mark.parametrize(("n", "dp_size"), SHAPES)
def test_balance_by_karmarkar_karp(benchmark, n, dp_size):
    """Ranks alone: no micro-batches, no cap."""
    benchmark.group = f"balance lognormal {n} over {dp_size}"
    lengths, _ = draw_lengths("lognormal", n)
    cost = costs_of(lengths)
    parts = benchmark.pedantic(karmarkar_karp, (cost.astype(int).tolist(), dp_size), rounds=1)
    benchmark.extra_info["imbalance"] = imbalance(np.array([cost[part].sum() for part in parts]), cost.max())


@pytest.fixture(scope="module")
def six_million_tokens():
    """10,000 samples in their micro-batches, with four per-token values."""
    rng = np.random.default_rng(0)
    lengths, budget = draw_lengths("lognormal", 10_000)
    samples = [
        Sample(
            prompt_ids=rng.integers(0, 150_000, length // 3 + 1),
            response_ids=rng.integers(0, 150_000, length - length // 3 - 1),
            per_response_token={"rollout_logprobs": rng.random(length - length // 3 - 1, dtype=np.float32)},
            per_sample={"advantages": 0.5, "weights": 1e-6, "groups": i // 8},
        )
        for i, length in enumerate(lengths.tolist())
    ]
    return samples, plan(lengths, token_budget=budget, cost=COST).of_rank(0)


def test_materialise_at_the_speed_of_memcpy(benchmark, six_million_tokens):
    """Into the caller's buffers, written before. memcpy: one block of as many bytes, alternating with ours."""
    benchmark.group = "materialise 6M tokens"
    samples, micro_batches = six_million_tokens
    batches = materialise(samples, micro_batches)
    order = [i for indices in micro_batches for i in indices.tolist()]
    chosen = [samples[i] for i in order]
    columns = {
        "rollout_logprobs": [x.per_response_token["rollout_logprobs"] for x in chosen],
        **{
            name: np.array([x.per_sample[name] for x in chosen])
            for name in ("advantages", "weights", "groups")
        },
    }
    columns |= {name: columns[name].astype(np.float32) for name in ("advantages", "weights")}
    names = ("input_ids", "targets", "position_ids", "loss_mask", "cu_seqlens", "response_rows")
    expected = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
    expected |= {name: np.concatenate([batch.per_token[name] for batch in batches]) for name in columns}
    buffers = {name: np.zeros_like(values) for name, values in expected.items()}
    num_bytes = sum(values.nbytes for values in buffers.values())
    source, target = np.ones(num_bytes, dtype=np.uint8), np.zeros(num_bytes, dtype=np.uint8)
    prompts, responses = [x.prompt_ids for x in chosen], [x.response_ids for x in chosen]
    sizes = np.array([len(indices) for indices in micro_batches])
    copy_s = []

    def copy_once():
        start = time.process_time()
        np.copyto(target, source)
        copy_s.append(time.process_time() - start)

    def write():
        _packing.Ragged(order, prompts, responses, sizes, 1).write(buffers, columns)

    benchmark.pedantic(write, setup=copy_once, rounds=60, warmup_rounds=3)
    for name, values in expected.items():
        assert np.array_equal(buffers[name], values), name
    if benchmark.stats is None:  # --benchmark-disable
        return
    ratio = min(copy_s) / benchmark.stats.stats.min
    median = np.median(copy_s) / benchmark.stats.stats.median
    benchmark.extra_info |= {
        "tokens": len(expected["input_ids"]),
        "written_bytes": num_bytes,
        "memcpy_gb_per_s": num_bytes / min(copy_s) / 1e9,
        "of_memcpy": ratio,
        "of_memcpy_medians": float(median),
    }
    assert ratio >= 0.7


def test_materialise_into_new_memory(benchmark, six_million_tokens):
    """All that a step does: look the samples up, allocate, write, cut into micro-batches."""
    benchmark.group = "materialise 6M tokens"
    samples, micro_batches = six_million_tokens
    batches = benchmark.pedantic(materialise, (samples, micro_batches), rounds=5, warmup_rounds=1)
    assert len(batches) == len(micro_batches)
