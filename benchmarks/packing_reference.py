"""The packing planner in plain Python and numpy, for tests and benchmarks only: the same results as csrc/, slowly.

Everything here is written for reading: dictionaries of lists instead of bit sets, linear searches instead of queues.
"""

import math
from collections.abc import Sequence

import numpy as np

IGNORE = -100
COST_KEYS = 1 << 14
KINDS = ("lognormal", "thinking", "half", "third", "grouped")
TOLERANCE, NUM_PARTNERS, ROUNDS_PER_RANK, NEAR_ENOUGH = 10000, 8, 32, 32


def plan(
    lengths: np.ndarray,
    *,
    token_budget: int,
    dp_size: int = 1,
    multiple: int = 1,
    pad_multiple: int = 1,
    cost: tuple[float, float] = (1.0, 0.0),
    balance: bool = True,
    groups: np.ndarray | None = None,
) -> list[list[list[int]]]:
    """Sample indices [rank][micro-batch], as `ralign.engine.data.packing.plan` of the same arguments."""
    samples = sorted(range(len(lengths)), key=lambda i: -int(lengths[i]))
    sizes = [int(lengths[i]) for i in samples]
    capacity = min(token_budget // pad_multiple * pad_multiple, sum(sizes))
    costs = whole_costs(sizes, cost) if balance else [0] * len(sizes)
    if groups is None:
        ranks = _plan_samples(sizes, costs, capacity, dp_size, multiple, balance)
    else:
        ids = [int(groups[i]) for i in samples]
        ranks = _plan_groups(sizes, costs, ids, capacity, dp_size, multiple, balance)
    return [[sorted(samples[k] for k in members) for members in rank] for rank in ranks]


def whole_costs(sizes: Sequence[int], cost: tuple[float, float]) -> list[int]:
    """Costs as whole numbers, scaled by a power of two so that all together stay below 2^47."""
    costs = [float(size) * (cost[0] + cost[1] * float(size)) for size in sizes]
    total = 0.0
    for value in costs:  # in this order: a float sum
        total += value
    scale = math.ldexp(1.0, 46 - (math.frexp(total)[1] - 1))
    return [int(value * scale) for value in costs]


def best_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of positions in `sizes`, which fall: each into the fullest bin with room, of equals the latest filled."""
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}
    for k, size in enumerate(sizes):
        room = [space for space, members in by_space.items() if space >= size and members]
        if room:
            space = min(room)
            b = by_space[space].pop()
        else:
            space, b = capacity, len(bins)
            bins.append([])
        bins[b].append(k)
        by_space.setdefault(space - size, []).append(b)
    return bins


def _spread_evenly(sizes, costs, num_bins: int, capacity: int) -> list[list[int]] | None:
    """Each item to the cheapest bin with room, of equals the latest filled; None if one finds no room."""
    most = min(sum(costs), (costs[0] // sizes[0] + 1) * capacity)
    shift = 0
    while most >> shift >= COST_KEYS:
        shift += 1
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    space, load = [capacity] * num_bins, [0] * num_bins
    by_cost = {0: list(range(num_bins))[::-1]}
    full: dict[int, list[int]] = {}
    for k, size in enumerate(sizes):
        for key in sorted(key for key in full if key >= size):
            for b in reversed(full.pop(key)):
                by_cost.setdefault(load[b] >> shift, []).append(b)
        while True:
            keys = [key for key, members in by_cost.items() if members]
            if not keys:
                return None
            b = by_cost[min(keys)].pop()
            if space[b] >= size:
                break
            full.setdefault(space[b], []).append(b)
        bins[b].append(k)
        space[b] -= size
        load[b] += costs[k]
        by_cost.setdefault(load[b] >> shift, []).append(b)
    return bins


def _split_to(bins: list[list[int]], costs, num_bins: int) -> list[list[int]]:
    bins = [list(members) for members in bins]
    while len(bins) < num_bins:
        sums = [sum(costs[k] for k in members) if len(members) > 1 else -1 for members in bins]
        b = int(np.argmax(sums))
        if sums[b] < 0:
            break
        halves: list[list[int]] = [[], []]
        for k in bins[b]:
            halves[sum(costs[j] for j in halves[1]) < sum(costs[j] for j in halves[0])].append(k)
        bins[b] = halves[0]
        bins.append(halves[1])
    return bins + [[] for _ in range(num_bins - len(bins))]


def _even_bins(sizes, costs, tight, num_bins: int, capacity: int) -> list[list[int]]:
    even = _spread_evenly(sizes, costs, num_bins, capacity)
    return _split_to(tight, costs, num_bins) if even is None else even


def _by_falling_cost(cost: Sequence[int]) -> list[int]:
    return sorted(range(len(cost)), key=lambda thing: -cost[thing])


def _deal(cost: Sequence[int], num_ranks: int) -> list[list[int]]:
    """By falling cost in rounds of one a rank, the costliest of a round to the cheapest rank."""
    order, ranks, load = _by_falling_cost(cost), [[] for _ in range(num_ranks)], [0] * num_ranks
    for at in range(0, len(order), num_ranks):
        cheapest_first = sorted(range(num_ranks), key=lambda r: load[r])
        for r, thing in zip(cheapest_first, order[at : at + num_ranks], strict=True):
            ranks[r].append(thing)
            load[r] += cost[thing]
    return ranks


def _best_exchange(costly, cheap, cost, gap: int, allowed) -> tuple[int, int | None] | None:
    """The (given, taken) that brings two piles closest, among those one walk down both meets."""
    best, least_left, t = None, gap - gap // NEAR_ENOUGH, 0
    for given in costly:
        if least_left * NEAR_ENOUGH <= gap:
            break
        while t < len(cheap) and cost[cheap[t]] > cost[given] - gap // 2:
            t += 1
        for candidate in range(max(t - 1, 0), t + 1):
            taken = cheap[candidate] if candidate < len(cheap) else None
            left = abs(gap - 2 * (cost[given] - (0 if taken is None else cost[taken])))
            if left < least_left and allowed(given, taken):
                best, least_left = (given, taken), left
    return best


def _lower_the_costliest(piles: list[list[int]], cost, allowed, apply) -> None:
    """Exchanges things between piles; allowed(cheap rank, given, taken), apply(cheap rank, given, taken)."""
    load = [sum(cost[thing] for thing in pile) for pile in piles]
    mean = sum(load) // len(load)
    for _ in range(ROUNDS_PER_RANK * len(load)):
        costly = int(np.argmax(load))
        if load[costly] - mean <= mean // TOLERANCE:
            return
        partners = sorted(range(len(load)), key=lambda r: load[r])[: min(NUM_PARTNERS, len(load) - 1)]
        for cheap in partners:
            gap = load[costly] - load[cheap]
            best = gap and _best_exchange(
                piles[costly], piles[cheap], cost, gap, lambda *pair, r=cheap: allowed(r, *pair)
            )
            if best:
                break
        else:
            return
        given, taken = best
        apply(cheap, given, taken)
        moved = cost[given] - (0 if taken is None else cost[taken])
        load[costly], load[cheap] = load[costly] - moved, load[cheap] + moved
        piles[costly].remove(given)
        piles[cheap].append(given)
        if taken is not None:
            piles[cheap].remove(taken)
            piles[costly].append(taken)
        for r in (costly, cheap):
            piles[r].sort(key=lambda thing: (-cost[thing], thing))


def _plan_samples(sizes, costs, capacity, dp_size, multiple, balance) -> list[list[list[int]]]:
    bins = best_fit_decreasing(sizes, capacity)
    unit = dp_size * multiple
    num_bins = -(-len(bins) // unit) * unit
    if not balance:
        bins += [[] for _ in range(num_bins - len(bins))]
        return [bins[r::dp_size] for r in range(dp_size)]
    bins = _even_bins(sizes, costs, bins, num_bins, capacity)
    bin_cost = [sum(costs[k] for k in members) for members in bins]
    ranks = _deal(bin_cost, dp_size)
    if dp_size > 1:
        _lower_the_costliest(ranks, bin_cost, lambda _, given, taken: taken is not None, lambda *_: None)
        _exchange_samples(ranks, bins, sizes, costs, capacity)
    bin_cost = [sum(costs[k] for k in members) for members in bins]
    return [[bins[b] for b in sorted(rank, key=lambda b: (-bin_cost[b], b))] for rank in ranks]


def _exchange_samples(ranks, bins, sizes, costs, capacity) -> None:
    def space(b: int) -> int:
        return capacity - sum(sizes[k] for k in bins[b])

    def bin_of(k: int) -> int:
        return next(b for b, members in enumerate(bins) if k in members)

    def target(cheap: int, taken: int | None) -> int:
        return min(ranks[cheap], key=lambda b: (-space(b), b)) if taken is None else bin_of(taken)

    def allowed(cheap: int, given: int, taken: int | None) -> bool:
        return sizes[given] - (0 if taken is None else sizes[taken]) <= space(target(cheap, taken))

    def apply(cheap: int, given: int, taken: int | None) -> None:
        source, goal = bin_of(given), target(cheap, taken)
        bins[source].remove(given)
        bins[goal].append(given)
        if taken is not None:
            bins[goal].remove(taken)
            bins[source].append(taken)

    samples = [sorted(k for b in rank for k in bins[b]) for rank in ranks]
    _lower_the_costliest(samples, costs, allowed, apply)


def _plan_groups(sizes, costs, ids, capacity, dp_size, multiple, balance) -> list[list[list[int]]]:
    names = sorted(set(ids))
    members = [[k for k in range(len(ids)) if ids[k] == name] for name in names]
    group_cost = [sum(costs[k] for k in group) for group in members]
    piles: list[list[int]] = [[] for _ in range(dp_size)]
    load = [0] * dp_size
    for group in _by_falling_cost(group_cost):
        r = int(np.argmin(load))
        piles[r].append(group)
        load[r] += group_cost[group]
    if balance:
        _lower_the_costliest(piles, group_cost, lambda *_: True, lambda *_: None)
    parts = [sorted(k for group in pile for k in members[group]) for pile in piles]
    tight = [best_fit_decreasing([sizes[k] for k in part], capacity) for part in parts]
    per_rank = -(-max(len(bins) for bins in tight) // multiple) * multiple
    ranks = []
    for part, bins in zip(parts, tight, strict=True):
        part_sizes, part_costs = [sizes[k] for k in part], [costs[k] for k in part]
        if balance and part:
            bins = _even_bins(part_sizes, part_costs, bins, per_rank, capacity)
            bins = [bins[b] for b in _by_falling_cost([sum(part_costs[j] for j in each) for each in bins])]
        bins = [*bins, *([] for _ in range(per_rank - len(bins)))]
        ranks.append([[part[j] for j in each] for each in bins])
    return ranks


def materialise(samples: Sequence, indices: Sequence[int], *, pad_multiple: int = 1) -> dict[str, np.ndarray]:
    """One micro-batch's flat arrays by name, per-token values among them; see `PackedBatch`."""
    chosen = [samples[i] for i in indices]
    names = [*samples[0].per_response_token, *samples[0].per_sample]
    num_tokens = sum(len(sample) for sample in chosen)
    padded = max(-(-num_tokens // pad_multiple), 1) * pad_multiple
    flat = {
        "input_ids": np.zeros(padded, dtype=np.int64),
        "targets": np.full(padded, IGNORE),
        "position_ids": np.zeros(padded, dtype=np.int64),
    }
    for name in names:
        whole = isinstance(samples[0].per_sample.get(name), int)
        flat[name] = np.full(padded, -1) if whole else np.zeros(padded, dtype=np.float32)
    at, starts, rows = 0, [], []
    for sample in chosen:
        end = at + len(sample)
        predicting = np.arange(at + len(sample.prompt_ids) - 1, end - 1)
        flat["input_ids"][at:end] = np.concatenate([sample.prompt_ids, sample.response_ids])
        flat["targets"][predicting] = sample.response_ids
        flat["position_ids"][at:end] = np.arange(end - at)
        for name, values in (sample.per_response_token | sample.per_sample).items():
            flat[name][predicting] = values
        starts.append(at)
        rows.append(predicting)
        at = end
    if at < padded:
        flat["position_ids"][at:] = np.arange(padded - at)
        starts.append(at)
    flat["loss_mask"] = flat["targets"] != IGNORE
    flat["response_rows"] = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    flat["cu_seqlens"] = np.array([*starts, padded], dtype=np.int32)
    return flat


def martello_toth_bound(lengths: np.ndarray, capacity: int) -> int:
    """L2 of Martello and Toth (1990): no packing has fewer bins.

    For each k <= C/2: a bin each for those over C - k and those over C/2; of the rest, those of at least k fill
    what the second kind leaves, and then bins of their own.
    """
    sizes = np.sort(np.asarray(lengths))
    sums = np.concatenate([[0], np.cumsum(sizes)])
    half = np.searchsorted(sizes, capacity // 2, side="right")
    best = -(-int(sums[-1]) // capacity)
    for k in np.unique(sizes[:half]):
        over = np.searchsorted(sizes, capacity - k, side="right")
        least = np.searchsorted(sizes, k, side="left")
        left = (over - half) * capacity - (sums[over] - sums[half])
        rest = max(0, -(-int(sums[half] - sums[least] - left) // capacity))
        best = max(best, len(sizes) - int(half) + rest)
    return best


def draw_lengths(kind: str, n: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """n lengths of one of KINDS, and a token budget that goes with them."""
    rng = np.random.default_rng(seed)
    lognormal = rng.lognormal(np.log(600) - 0.5, 1.0, n)
    if kind == "lognormal":
        return np.clip(lognormal, 16, 8192).astype(np.int64), 8192
    if kind == "thinking":
        thinking = rng.lognormal(np.log(4000) - 0.405, 0.9, n)
        thinking[rng.random(n) < 0.018] = 16384
        return np.clip(thinking, 16, 16384).astype(np.int64), 16384
    if kind in ("half", "third"):
        mean, deviation = {"half": (4096, 512), "third": (2900, 500)}[kind]
        return np.clip(rng.normal(mean, deviation, n), 1, 8192).astype(np.int64), 8192
    assert kind == "grouped", kind
    prompts = np.repeat(rng.integers(100, 1000, -(-n // 8)), 8)[:n]
    return np.clip(prompts + lognormal, 16, 8192).astype(np.int64), 8192
