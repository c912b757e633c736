"""The gather path: an engine in another layout gets the trainer's weights, bit for bit, through one bucket."""

import math

import pytest
from ralign.engine.generator.gather import Sharding, World, pieces, schedule
from ralign.engine.runtime.errors import UserError

BUCKET_BYTES = 8192  # of tests/programs/gather.py


@pytest.mark.jobs
@pytest.mark.parametrize("num_processes", [2, 4])
def test_every_layout_gets_the_bits_that_it_would_have_loaded(torchrun, num_processes):
    report = torchrun("gather", num_processes)
    assert len(report) == (6 if num_processes == 2 else 4)
    for name, rows in report.items():
        for row in rows:
            assert row["equal"] and row["checksums_equal"] and row["sees_a_wrong_value"], name
            assert row["peak_bytes"] <= BUCKET_BYTES, name
            # Nothing is received twice, and what a rank holds itself is not received at all.
            assert row["received_bytes"] <= row["engine_bytes"], name
        if name.startswith(("dp2 to", "cp2 to", "tp2 to 2")):
            assert all(row["num_buckets"] == 0 for row in rows), name  # every rank has what its engine needs
        else:
            assert all(row["num_buckets"] > 3 for row in rows), name


QKV = Sharding(parts=(32, 8, 8), split_dim=0, width=4)
DOWN = Sharding(parts=(24,), split_dim=1, width=6)
NORM = Sharding(parts=(10,), split_dim=None, width=1)


def make_world(tensor: int, pipeline: int, data: int, generate: int) -> World:
    coordinates = tuple((p, t) for p in range(pipeline) for _ in range(data) for t in range(tensor))
    stages = {"qkv": 0, "down": pipeline - 1, "norm": pipeline // 2}
    catalog = {name: (stages[name], x) for name, x in (("qkv", QKV), ("down", DOWN), ("norm", NORM))}
    return World(coordinates=coordinates, tensor=tensor, catalog=catalog, generate_tensor=generate)


@pytest.mark.parametrize(
    "layout", [(1, 1, 1, 1), (2, 1, 1, 1), (4, 2, 2, 2), (2, 4, 1, 8), (8, 1, 2, 1), (1, 2, 4, 2)]
)
@pytest.mark.parametrize("max_size", [12, 17, 10_000])
def test_pieces_cover_every_engine_tensor_once(layout, max_size):
    world = make_world(*layout)
    covered: dict[tuple[int, str], set] = {}
    for piece in pieces(world, max_size):
        assert piece.size <= max_size or piece.source == piece.target
        seen = covered.setdefault((piece.target, piece.name), set())
        cells = {
            (piece.target_row + row, piece.target_column + column)
            for row in range(piece.num_rows)
            for column in range(piece.num_columns)
        }
        assert not cells & seen
        seen |= cells
    for target in range(len(world.coordinates)):
        for name, (_, sharding) in world.catalog.items():
            whole = sum(sharding.parts) * sharding.width
            expected = whole if sharding.split_dim is None else whole // world.generate_tensor
            assert len(covered[target, name]) == expected


def test_ranks_agree_on_the_buckets_and_on_what_goes_between_them():
    world, max_size = make_world(2, 2, 2, 1), 24
    every = [schedule(world, rank, max_size)[1] for rank in range(8)]
    assert len({len(buckets) for buckets in every}) == 1
    for step in zip(*every, strict=True):
        for a in range(8):
            assert sum(step[a].send_sizes) <= max_size and sum(step[a].receive_sizes) <= max_size
            for b in range(8):
                assert step[a].send_sizes[b] == step[b].receive_sizes[a]
    largest = max(sum(sum(b.receive_sizes) for b in buckets) for buckets in every)
    assert len(every[0]) <= 3 * math.ceil(
        largest / max_size
    )  # all ranks busy at once, not one after the other


def test_a_bucket_that_holds_no_row_is_refused():
    with pytest.raises(UserError, match="memory.bucket_mib is too small: one row of qkv"):
        list(pieces(make_world(2, 1, 1, 1), 3))
