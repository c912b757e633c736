"""Communication between pipeline stages, which know the shapes of all tensors in advance.

Micro-batches differ in length. In Megatron, a stage then sends the shape before each tensor, and the receiver waits for
the device to read it. Here all stages have the same micro-batches in the same order, so no shape is sent.
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
    """Megatron's communicator for one pass. Micro-batches travel forwards, their gradients backwards, in order."""

    def __init__(self, cluster: Cluster, config: TransformerConfig, shapes: Sequence[Shape]):
        """`shapes`: of each micro-batch's hidden states between two stages."""
        super().__init__(pp_group=cluster.pp_group, config=config)
        self._forwards, self._backwards = iter(shapes), iter(shapes)

    def _communicate_shapes(self, tensor_send_next, tensor_send_prev, recv_prev: bool, recv_next: bool):
        """Shapes of the tensors that are received from the previous stage and from the next stage; None for none."""
        return next(self._forwards) if recv_prev else None, next(self._backwards) if recv_next else None


def stage_links(config: TransformerConfig, cluster: Cluster, micro_batches: Sequence[PackedBatch]) -> dict:
    """Arguments for Megatron's schedule that make it use `StageLinks`; empty if there is one stage."""
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
