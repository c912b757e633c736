"""What others do in Python: first-fit-decreasing, modified first-fit-decreasing, Karmarkar-Karp. Written plainly."""

import heapq
from collections.abc import Sequence


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each sample, longest first, into the first bin with room; bins of sample indices. O(n · bins)."""
    bins: list[list[int]] = []
    space: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[i]
        for b, room in enumerate(space):
            if room >= length:
                bins[b].append(i)
                space[b] -= length
                break
        else:
            bins.append([i])
            space.append(capacity - length)
    return bins


def modified_first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Johnson and Garey (1985): at most 71/60 of the best, for large numbers.

    Samples over C/2 get bins of their own; each bin then takes what its room suits best: one over C/3 going forward,
    two over C/6 going backward, anything going forward; first-fit-decreasing packs the rest.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    large, medium, small, tiny = _by_class(order, lengths, capacity)
    bins = [[i] for i in large]
    space = [capacity - lengths[i] for i in large]

    def put(b: int, i: int) -> None:
        bins[b].append(i)
        space[b] -= lengths[i]

    for b in range(len(bins)):
        if medium and lengths[medium[-1]] <= space[b]:
            put(b, medium.pop(_first_that_fits(medium, lengths, space[b])))
    for b in reversed(range(len(bins))):
        if len(bins[b]) == 1 and len(small) >= 2 and lengths[small[-1]] + lengths[small[-2]] <= space[b]:
            put(b, small.pop())
            put(b, small.pop(_first_that_fits(small, lengths, space[b])))
    rest = medium + small + tiny
    for b in range(len(bins)):
        while rest and lengths[rest[-1]] <= space[b]:
            put(b, rest.pop(_first_that_fits(rest, lengths, space[b])))
    packed = first_fit_decreasing([lengths[i] for i in rest], capacity)
    return bins + [[rest[j] for j in members] for members in packed]


def _by_class(order: list[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    classes: list[list[int]] = [[], [], [], []]
    for i in order:
        classes[sum(lengths[i] * parts <= capacity for parts in (2, 3, 6))].append(i)
    return classes


def _first_that_fits(falling: list[int], lengths: Sequence[int], space: int) -> int:
    """Index of the longest that fits; the shortest does."""
    low, high = 0, len(falling) - 1
    while low < high:
        middle = (low + high) // 2
        if lengths[falling[middle]] <= space:
            high = middle
        else:
            low = middle + 1
    return low


def karmarkar_karp(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """Largest differencing: `num_parts` parts of like cost, of any sizes. O(n · parts)."""
    heap = []
    for i, cost in enumerate(costs):
        parts = [(cost, (i,))] + [(0, ())] * (num_parts - 1)  # by falling cost
        heap.append((-cost, i, parts))
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, order, first), (_, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        merged = [
            (a[0] + b[0], a[1] + b[1]) for a, b in zip(first, reversed(second), strict=True)
        ]  # the costliest of one with the cheapest of the other
        merged.sort(reverse=True)
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], order, merged))
    return [list(members) for _, members in heap[0][2]]
