"""What pipeline stages send each other: tensors whose shapes all of them know from the plan.

Micro-batches differ in length. Megatron's stages then tell each other every shape before every tensor and wait for
the device to read it. Here each stage holds the same micro-batches in the same order, so nothing needs to be asked.
"""

from collections.abc import Sequence

from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from ralign.engine.data.packing import PackedBatch
from ralign.engine.runtime.cluster import Cluster

Shape = tuple[int, int, int]


class StageLinks(P2PCommunicator):
    """Megatron's communicator for one pass: micro-batches come forwards, and their gradients backwards, in order."""

    def __init__(self, cluster: Cluster, config: TransformerConfig, shapes: Sequence[Shape]):
        """`shapes`: of the hidden states that each micro-batch is between two stages."""
        super().__init__(pp_group=cluster.pp_group, config=config)
        self._forwards, self._backwards = iter(shapes), iter(shapes)

    def _communicate_shapes(self, tensor_send_next, tensor_send_prev, recv_prev: bool, recv_next: bool):
        """Of what comes from the stage before and of what comes from the one behind, where something does."""
        return next(self._forwards) if recv_prev else None, next(self._backwards) if recv_next else None


def stage_links(config: TransformerConfig, cluster: Cluster, micro_batches: Sequence[PackedBatch]) -> dict:
    """What Megatron's schedule takes to use such links: nothing where there is one stage."""
    if cluster.pp_size == 1:
        return {}
    ranks = cluster.cp_size * (cluster.tp_size if config.sequence_parallel else 1)
    shapes = [(len(batch.input_ids) // ranks, 1, config.hidden_size) for batch in micro_batches]
    groups = ProcessGroupCollection(
        tp=cluster.tp_group,
        pp=cluster.pp_group,
        cp=cluster.cp_group,
        embd=parallel_state.get_embedding_group(check_initialized=False),
        pos_embd=parallel_state.get_position_embedding_group(check_initialized=False),
        dp_cp=parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
    return {"p2p_communicator": StageLinks(cluster, config, shapes), "pg_collection": groups}
