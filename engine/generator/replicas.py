"""Which ranks sample together: a job's engines, each on neighbouring ranks, and how their results come together."""

from datetime import timedelta

import torch.distributed as dist
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError


class Replicas:
    """This rank's place among the job's engines.

    Attributes:
        index, count: which engine this rank belongs to, of how many.
        place: this rank's tensor-parallel rank in its engine.
        replica_groups: the process groups of ranks with the same samples (one: the engine's own ranks).
    """

    def __init__(self, cluster: Cluster, tensor: int):
        """Engines of `tensor` ranks each; collective over the job."""
        world = cluster.world_size
        self.index, self.place = divmod(cluster.rank, tensor)
        self.count, self.tensor = world // tensor, tensor
        # Engines end at different times: these groups wait longer than others.
        options = {"backend": "gloo", "timeout": timedelta(seconds=cluster.generation_timeout_s)}
        engines = [dist.new_group(range(i * tensor, (i + 1) * tensor), **options) for i in range(self.count)]
        peers = [dist.new_group(range(place, world, tensor), **options) for place in range(tensor)]
        self.replica_groups = [engines[self.index]]
        self._peers = peers[self.place]

    def share_of(self, num_items: int) -> range:
        """Which of these items are this engine's: equally many each, the last engines perhaps fewer."""
        share = -(-num_items // self.count)
        return range(min(self.index * share, num_items), min((self.index + 1) * share, num_items))

    def all_gather_data(self, value: object) -> list:
        """One Python object of every engine, in their order, on every rank."""
        values: list = [None] * self.count
        dist.all_gather_object(values, value, group=self._peers)
        return values

    def check_same(self, crc: int) -> None:
        """What `crc` stands for must be the same on all ranks of this engine; collective over them.

        Each of an engine's ranks schedules and samples by itself, from sums that an all-reduce gave it. One bit of
        difference in a sum, and tensor-parallel ranks would train on different tokens, or wait for each other forever.

        Raises:
            UserError: it is not.
        """
        if self.tensor == 1:
            return
        crcs = [0] * self.tensor
        dist.all_gather_object(crcs, crc, group=self.replica_groups[0])
        if len(set(crcs)) > 1:
            raise UserError(
                f"the ranks of engine {self.index} sampled different tokens (CRC-32 {', '.join(map(hex, crcs))}): "
                "their all-reduce does not add in one order; set generator.all_reduce=custom, or generator.tensor=1"
            )
