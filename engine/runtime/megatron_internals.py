"""Every access to Megatron-core's internals, each with the version in which it was read (see internals.py).

The patches for training without CUDA are in cuda_stand_in.py.
"""

from collections.abc import Iterator
from typing import Any

from ralign.engine.runtime.internals import Internal, InternalPath
from torch import Tensor

READ_IN = "0.16.1"
_OPTIMIZER = ("megatron.core.optimizer.distrib_optimizer", "DistributedOptimizer")

# Methods that ralign overrides.
PREPROCESS = Internal(
    module="megatron.core.models.gpt.gpt_model",
    name="GPTModel._preprocess",
    purpose="embeddings, and the rotary table of packed tokens",
    read_in=READ_IN,
)
POSTPROCESS = Internal(
    module="megatron.core.models.gpt.gpt_model",
    name="GPTModel._postprocess",
    purpose="logprobs from hidden states, in place of logits",
    read_in=READ_IN,
)
STAGE_SHAPES = Internal(
    module="megatron.core.pipeline_parallel.p2p_communication",
    name="P2PCommunicator._communicate_shapes",
    purpose="shapes that pipeline stages know already",
    read_in=READ_IN,
)
SAVE_CALLBACKS = Internal(
    module="megatron.core.dist_checkpointing.strategies.torch",
    name="TorchDistSaveShardedStrategy._get_save_and_finalize_callbacks",
    purpose="checkpoints that a thread writes",
    read_in=READ_IN,
)

RESULTS_QUEUE = Internal(
    module="megatron.core.dist_checkpointing.strategies.filesystem_async",
    name="_results_queue",
    purpose="results of writing a checkpoint, for which Megatron would spawn a process",
    read_in=READ_IN,
)
READER = Internal(
    module="megatron.core.dist_checkpointing.strategies.torch",
    name="_get_filesystem_reader",
    purpose="reads a checkpoint's metadata, which Megatron unpickles without a limit",
    read_in=READ_IN,
)
LOAD_PLANNER = Internal(
    module="megatron.core.dist_checkpointing.strategies.torch",
    name="MCoreLoadPlanner",
    purpose="reads a checkpoint's values, which Megatron unpickles without a limit",
    read_in=READ_IN,
)
COPY_MAIN_PARAMS = InternalPath(
    steps=((*_OPTIMIZER, "_copy_main_params_to_model_params"),),
    purpose="the model's weights from the optimizer's fp32 weights",
    read_in=READ_IN,
)
BUFFER_RANGES = InternalPath(
    steps=((*_OPTIMIZER, "gbuf_ranges"),),
    purpose="the ranges of parameters that an optimizer owns",
    read_in=READ_IN,
)
GROUP_INDEX = InternalPath(
    steps=((*_OPTIMIZER, "model_param_group_index_map"),),
    purpose="the place of a parameter in an optimizer's groups",
    read_in=READ_IN,
)


def owned_ranges(optimizer: Any) -> Iterator[tuple[Tensor, int, int, Tensor]]:
    """What a DistributedOptimizer of this rank owns.

    Yields:
        (parameter, start, stop, main): a range of a flattened local parameter, and its fp32 weights [stop - start].
    """
    group_index = GROUP_INDEX.get(optimizer)
    for by_dtype in BUFFER_RANGES.get(optimizer):
        for bucket in (bucket for buckets in by_dtype.values() for bucket in buckets):
            for parameter, ranges in bucket["param_map"].items():
                group, order = group_index[parameter]
                main = optimizer.optimizer.param_groups[group]["params"][order]
                yield parameter, ranges["param"].start, ranges["param"].end, main
