"""The MetaRM's outcomes for a batch of samples, asked for while other samples are still being generated."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import torch.distributed as dist
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import parse_verdict
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.metarm import MetaRM, Outcome


class Replicas(Protocol):
    """Who works on which samples (`generator.replicas`)."""

    replica_groups: Sequence[dist.ProcessGroup]  # ranks with the same samples; telling each in turn tells all
    count: int  # how many engines, each with one rank that asks

    def all_gather_data(self, value: object) -> list: ...


class Reviews:
    """Collects one batch. Ranks that have the same samples ask once, and all learn."""

    def __init__(self, metarm: MetaRM | None, replicas: Replicas):
        """Without a MetaRM every outcome is `SKIPPED`."""
        self.metarm, self.replicas = metarm, replicas
        self._groups = [group for group in replicas.replica_groups if dist.get_world_size(group) > 1]
        self._asks = all(dist.get_rank(group) == 0 for group in self._groups)
        self._futures: dict[int, Future[Outcome]] = {}

    def add(self, index: int, pair: Pair, text: str) -> None:
        """Sample `index` of the batch is finished; it is sent if its verdict is the label."""
        if self.metarm is not None and self._asks and parse_verdict(text) == pair.gt_label:
            self._futures[index] = self.metarm.submit(pair, text)

    def outcomes(self, num_samples: int) -> list[Outcome]:
        """One outcome a sample, when all are there.

        Raises:
            JudgeStopped: on every rank, if the judge of any of them has stopped.
        """
        found = {index: future.result() for index, future in self._futures.items()}
        assert Outcome.SKIPPED not in found.values(), "a MetaRM may fail, but not skip"
        stopped = self.metarm.stop_reason if self.metarm is not None and self._asks else None
        for group in self._groups:
            box = [(found, stopped)]
            dist.broadcast_object_list(box, dist.get_process_group_ranks(group)[0], group=group)
            found, stopped = box[0]
        if self.metarm is not None:
            reasons = [reason for reason in self.replicas.all_gather_data(stopped) if reason]
            if reasons:
                raise JudgeStopped(reasons[0])
        return [found.get(index, Outcome.SKIPPED) for index in range(num_samples)]
