"""Megatron's distributed checkpoint, written by a background thread of each rank.

Megatron writes from forked processes and keeps their results in a manager process. A thread is safer in a process with
vLLM, gloo and CUDA. The values are copied to host memory before it starts, and file writes release the interpreter's
lock.
"""

import queue
import threading
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject, is_main_replica
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)
from ralign.engine.checkpoint.folders import crc32_of
from ralign.engine.checkpoint.safe_load import SafePlanner, SafeReader, reason_of
from ralign.engine.runtime.cuda_stand_in import on_megatron
from ralign.engine.runtime.megatron_internals import LOAD_PLANNER, READER, RESULTS_QUEUE
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

Pieces = dict[str, list[ShardedTensor]]


class ThreadedSave(TorchDistSaveShardedStrategy):
    """Megatron's `torch_dist` format; the returned request's function writes in the calling thread."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1, thread_count=1)  # one file per rank

    def _get_save_and_finalize_callbacks(self, writer, save_state_dict_ret) -> AsyncRequest:
        request = super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret)
        has_data = request.async_fn is not None
        return request._replace(async_fn=_write if has_data else None, async_fn_args=(writer,))


def _write(writer: FileSystemWriterAsync) -> None:
    """Write this rank's file and put the outcome, which may be an exception, into the writer's queue."""
    assert writer.write_buckets is not None and writer.results_queue is not None
    outcome: dict | Exception = {}
    for number, bucket in enumerate(writer.write_buckets):
        results: queue.Queue = queue.Queue()
        running: queue.Queue = queue.Queue()
        running.put(number)
        writer.write_preloaded_data(
            [writer.transforms],
            number,
            bucket,
            results,  # pyright: ignore[reportArgumentType]
            running,  # pyright: ignore[reportArgumentType]
            use_fsync=True,
        )
        _, result = results.get()
        if isinstance(result, Exception):
            outcome = result
            break
        outcome[number] = result
    writer.results_queue.put(outcome)


class Save:
    """A checkpoint that is being written. `begin` and `finish` are collective; the thread works between them."""

    def __init__(self, draft: Path, request: AsyncRequest) -> None:
        self.draft = draft
        self.checksums: dict[str, int] = {}  # CRC-32 of the files that this rank wrote
        self._request = request
        self._thread = threading.Thread(target=self._run, name=f"writes {draft.name}")
        self._thread.start()

    def _run(self) -> None:
        if self._request.async_fn is None:  # this rank has nothing to write
            return
        self._request.async_fn(*self._request.async_fn_args)
        (writer,) = self._request.async_fn_args
        for _, name, _ in writer.write_buckets:
            if (self.draft / name).exists():
                self.checksums[name] = crc32_of(self.draft / name)

    @property
    def is_written(self) -> bool:
        """Whether this rank's file is on the disk, or has failed."""
        return not self._thread.is_alive()

    @on_megatron
    def finish(self) -> None:
        """Wait for the thread and write the metadata of all ranks' files.

        Raises:
            OSError: on every rank, if a rank could not write; with that rank's reason.
        """
        self._thread.join()
        try:
            for finalize in self._request.finalize_fns:
                finalize()
        except CheckpointException as error:
            raise OSError(reason_of(error)) from error


@on_megatron
def begin(draft: Path, pieces: Pieces, rng: ShardedObject, common: dict, staging: dict) -> Save:
    """Copy the state to host memory, plan the files of all ranks, and start writing into `draft`.

    Args:
        draft: an empty folder that is visible to every rank.
        pieces: views of the live state, which may change after the return.
        common: plain values, equal on every rank.
        staging: host buffers, reused by the next save; one save at a time.
    """
    with RESULTS_QUEUE.replaced(queue.Queue()):
        request = dist_checkpointing.save(
            {"common": common, "rng": rng, "pieces": _staged(pieces, staging)},
            str(draft),
            ThreadedSave(),
            async_sharded_save=True,
        )
    assert request is not None
    return Save(draft, request)


def _staged(pieces: Pieces, staging: dict[tuple[str, int], Tensor]) -> Pieces:
    """The pieces with copies in host memory, pinned on a GPU machine; without pieces that another rank writes."""
    staged: Pieces = {}
    on_gpu = False
    for name, shards in pieces.items():
        for number, shard in enumerate(shards):
            if not is_main_replica(shard.replica_id):
                continue
            source = shard.data
            assert source is not None
            on_gpu = source.is_cuda
            buffer = staging.get((name, number))
            if buffer is None or buffer.shape != source.shape:
                buffer = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=on_gpu)
                staging[name, number] = buffer
            shard.data = buffer.copy_(source, non_blocking=True)
            staged.setdefault(name, []).append(shard)
    if on_gpu:
        torch.cuda.synchronize()
    return staged


class _Load(TorchDistLoadShardedStrategy):
    """Megatron's `torch_dist` format, read by `safe_load`."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__()
        self._reader = SafeReader(path, metadata)

    def load(self, sharded_state_dict: Any, checkpoint_dir: Any) -> Any:
        with READER.replaced(lambda *_, **__: self._reader), LOAD_PLANNER.replaced(_LoadPlanner):
            return super().load(sharded_state_dict, checkpoint_dir)


class _LoadPlanner(SafePlanner, MCoreLoadPlanner):
    """Megatron's planner, with values read by `safe_load`."""


class _NoCommon(TorchCommonLoadStrategy):
    """The plain values are read once, by `safe_load`, and not with the tensors."""

    def load_common(self, checkpoint_dir: Any) -> dict:
        return {}


@on_megatron
@torch.no_grad()
def load(path: Path, metadata: Metadata, pieces: Pieces, rng: ShardedObject | None) -> dict | None:
    """Load this rank's parts of a checkpoint into the live state, in place; returns the RNG state.

    `metadata` is that of `safe_load.read_metadata`, equal on every rank.

    Raises:
        OSError: a file is missing, cannot be read, or has something that a save does not write.
    """
    state = {"pieces": pieces} | ({"rng": rng} if rng else {})
    try:
        loaded = dist_checkpointing.load(state, str(path), _Load(path, metadata), _NoCommon())
    except CheckpointException as error:
        raise OSError(reason_of(error)) from error
    return cast(dict[str, Any], loaded).get("rng")
