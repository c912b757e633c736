"""Optimizer state and gradients leave the device while the engine generates, and return before they are needed.

Adam's moments and, in bf16, the fp32 weights are copied to pinned host memory. Gradients are zero between steps, so
their memory is freed without a copy. Storages are emptied in place: all of Megatron's views of them (buckets, main
gradients, shards) are valid again once the memory is allocated again.
"""

from collections.abc import Iterator

import torch
from ralign.engine.policy.host_memory import HostMemory
from ralign.engine.policy.megatron_model import MegatronModel
from torch import Tensor


class OffloadedState:
    """Optimizer state and gradients of a model, on the device or offloaded; at first on the device."""

    def __init__(self, model: MegatronModel):
        self._model = model
        self._device = model.cluster.device
        self._memory = HostMemory(pin=self._device.type == "cuda")
        self._copies: list[Tensor] = []  # reused from step to step: pinning is slow
        self._offloaded: list[
            tuple[Tensor, Tensor, int]
        ] = []  # device tensor, its copy, bytes of its storage
        self._gradients: list[tuple[torch.UntypedStorage, int]] = []
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    @property
    def is_offloaded(self) -> bool:
        return bool(self._offloaded or self._gradients)

    def offload(self) -> None:
        """Frees the device memory; returns when the values are in host memory. Not during an update."""
        if self.is_offloaded:
            return
        self.wait()
        tensors = list(self._optimizer_tensors())
        copies = [self._host_copy(index, tensor) for index, tensor in enumerate(tensors)]
        for tensor, copy in zip(tensors, copies, strict=True):
            copy.copy_(tensor, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream().synchronize()
        for tensor, copy in zip(tensors, copies, strict=True):
            storage = tensor.untyped_storage()
            self._offloaded.append((tensor, copy, storage.nbytes()))
            storage.resize_(0)
        for gradients in self._model.gradient_buffers:
            storage = gradients.untyped_storage()
            self._gradients.append((storage, storage.nbytes()))
            storage.resize_(0)
        if self._stream is not None:
            torch.cuda.empty_cache()  # the engine's allocator gets its memory from the driver

    def onload(self) -> None:
        """Allocates the memory and starts to copy the values; call `wait` before they are read."""
        for storage, size in self._gradients:
            storage.resize_(size)
        for tensor, _, size in self._offloaded:
            tensor.untyped_storage().resize_(size)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for tensor, copy, _ in self._offloaded:
                tensor.copy_(copy, non_blocking=True)
        self._gradients.clear()
        self._offloaded.clear()

    def wait(self) -> None:
        """Makes the device's further work wait for the copies of `onload`."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def discard(self) -> None:
        """Frees the memory for good: the model is not trained any more."""
        self._offloaded.clear()
        self._gradients.clear()
        self._model.end_training()
        for gradients in self._model.gradient_buffers:
            gradients.untyped_storage().resize_(0)
        if self._stream is not None:
            torch.cuda.empty_cache()

    def weight_bytes(self) -> int:
        """Bytes of the weights, which always stay on the device."""
        return sum(weights.untyped_storage().nbytes() for weights in self._model.weight_buffers)

    def optimizer_bytes(self) -> int:
        """Bytes of optimizer state on the device now."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._optimizer_tensors())

    def gradient_bytes(self) -> int:
        """Bytes of gradients on the device now."""
        return sum(gradients.untyped_storage().nbytes() for gradients in self._model.gradient_buffers)

    def _optimizer_tensors(self) -> Iterator[Tensor]:
        """Moments and fp32 weights that have memory of their own; in fp32 the weights are the model's, and stay."""
        optimizer = self._model.optimizer
        if optimizer is None:
            return
        weights = {x.untyped_storage().data_ptr() for x in self._model.weight_buffers}
        for distributed in optimizer.chained_optimizers:
            masters = [x for group in distributed.optimizer.param_groups for x in group["params"]]
            moments = [x for state in distributed.optimizer.state.values() for x in state.values()]
            for tensor in (*masters, *moments):
                is_own = tensor.untyped_storage().data_ptr() not in weights
                if is_own and tensor.ndim:  # Adam's step is a number in host memory
                    yield tensor.data

    def _host_copy(self, index: int, tensor: Tensor) -> Tensor:
        """Host memory for the optimizer's tensor of this index; that of an earlier stage's if shape and dtype agree."""
        if index == len(self._copies):
            self._copies.append(self._memory.empty(tensor.shape, tensor.dtype))
        elif (self._copies[index].shape, self._copies[index].dtype) != (tensor.shape, tensor.dtype):
            self._copies[index] = self._memory.empty(tensor.shape, tensor.dtype)
        return self._copies[index]
