"""The job's engines, each on neighbouring ranks, and the exchange of their results."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError

T = TypeVar("T")


class Replicas:
    """This rank's place among the job's engines.

    Attributes:
        index, count: the engine of this rank, and the number of engines.
        place: this rank's tensor-parallel rank in its engine.
        tensor: ranks of an engine.
    """

    def __init__(self, cluster: Cluster, tensor: int):
        """Engines of `tensor` ranks each; collective over the job."""
        world = cluster.world_size
        self.index, self.place = divmod(cluster.rank, tensor)
        self.count, self.tensor = world // tensor, tensor
        # Engines finish at different times, so these groups need a longer timeout than others.
        options = {"backend": "gloo", "timeout": timedelta(seconds=cluster.generation_timeout_s)}
        engines: list[Any] = [
            dist.new_group(range(i * tensor, (i + 1) * tensor), **options) for i in range(self.count)
        ]
        peers: list[Any] = [dist.new_group(range(place, world, tensor), **options) for place in range(tensor)]
        self._engine = engines[self.index]  # ranks with the same samples
        self._peers = peers[self.place]

    def share_of(self, num_items: int) -> range:
        """The items of this engine: an equal number for each, perhaps fewer for the last engines."""
        share = -(-num_items // self.count)
        return range(min(self.index * share, num_items), min((self.index + 1) * share, num_items))

    def all_gather_data(self, value: object) -> list:
        """One Python object of every engine, in their order, on every rank."""
        values: list = [None] * self.count
        dist.all_gather_object(values, value, group=self._peers)
        return values

    @property
    def makes_requests(self) -> bool:
        """True on one rank of each engine: the one that sends the requests of the engine's samples."""
        return self.place == 0

    def ask_once(self, ask: Callable[[], T]) -> T:
        """The result of `ask`, which runs on one rank of each engine, on all ranks of that engine.

        For requests about samples, which all ranks of an engine hold. Collective over the job.

        Raises:
            UserError: on every rank of the job, if `ask` raised it (or JudgeStopped, which is one) on any rank.
        """
        result, error = None, None
        if self.makes_requests:
            try:
                result = ask()
            except UserError as raised:
                error = raised
        if self.tensor > 1:
            box = [(result, error)]
            dist.broadcast_object_list(box, self.index * self.tensor, group=self._engine)
            result, error = box[0]
        errors = [error for error in self.all_gather_data(error) if error is not None]
        if errors:
            raise errors[0]
        return cast(T, result)

    def check_same(self, crc: int) -> None:
        """Compare a checksum over the ranks of this engine; collective over them.

        Each rank of an engine schedules and samples by itself, from sums of an all-reduce. If a sum differed in one
        bit, tensor-parallel ranks would train on different tokens, or wait for each other forever.

        Raises:
            UserError: the checksums differ.
        """
        if self.tensor == 1:
            return
        crcs = [0] * self.tensor
        dist.all_gather_object(crcs, crc, group=self._engine)
        if len(set(crcs)) > 1:
            raise UserError(
                f"the ranks of engine {self.index} sampled different tokens (CRC-32 {', '.join(map(hex, crcs))}): "
                "their all-reduce does not add in a fixed order; set generator.all_reduce=custom, or generator.tensor=1"
            )
