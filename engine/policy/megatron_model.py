"""The base of all trained models: a sharded Megatron model with its optimizer, updated by micro-batches.

Denominators are in the loss function only: nothing here divides by micro-batches, ranks or tokens, so an update does
not depend on how the batch is split.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer import TransformerConfig
from ralign.engine.config.algo import OptimConfig
from ralign.engine.config.run import KernelsConfig
from ralign.engine.data.packing import PackedBatch
from ralign.engine.policy import hf
from ralign.engine.policy.context import own_tokens, packed_params
from ralign.engine.policy.model import PackedGPT, transformer_config
from ralign.engine.policy.optimizer import make_optimizer
from ralign.engine.policy.pipeline import stage_links
from ralign.engine.policy.sharding import identity, optimizer_shards, sharded_optimizer_state
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.cuda_stand_in import cuda_stand_in, on_megatron
from ralign.engine.runtime.device import deterministic_kernels
from ralign.engine.runtime.megatron_internals import COPY_MAIN_PARAMS
from torch import Tensor
from transformers import AutoConfig

Metrics = dict[str, Tensor]


class Loss(Protocol):
    """Computes a loss and its metrics, as sums over the micro-batch."""

    @property
    def folds(self) -> bool:
        """It is a `FoldedLoss`, whose `from_hidden` may be called instead."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Metrics]:
        """From the rows [T] of the model's output (the policy's: logprobs and entropy) and the micro-batch."""
        ...


class FoldedLoss(Loss, Protocol):
    """A loss that can include the LM head."""

    def from_hidden(
        self, hidden: Tensor, weight: Tensor, batch: PackedBatch, **head
    ) -> tuple[Tensor, Metrics]:
        """From hidden [T, H] and weight [V_local, H]; `head`: arguments of `linear_policy_loss` about the LM head."""
        ...


@dataclass(kw_only=True, frozen=True)
class UpdateStats:
    """Results of one optimizer step.

    Attributes:
        metrics: of the loss, summed over the global batch.
        skipped: why the weights did not change; "" if they did.
    """

    loss: float
    grad_norm: float
    lr: float
    metrics: dict[str, float]
    skipped: str = ""


class MegatronModel(ABC):
    """A Hugging Face model on Megatron-core, sharded over the cluster's groups.

    Attributes:
        on_progress: called at the start of each micro-batch, for a watchdog.
    """

    def __init__(
        self,
        folder: str | Path,
        cluster: Cluster,
        *,
        dtype: str = "fp32",
        sequence_parallel: bool = False,
        recompute: bool = False,
        kernels: KernelsConfig | None = None,
    ):
        """Builds the model and reads its weights from `folder`; errors as `transformer_config` and `hf.load`."""
        self.folder, self.kernels = Path(folder), kernels or KernelsConfig()
        self.on_progress: Callable[[], None] = lambda: None
        self.cluster = cluster
        self.optimizer: ChainedOptimizer | None = None
        self.schedule: OptimizerParamScheduler | None = None
        self.num_skipped_updates = 0
        self._weights_folder: Path | None = (
            None  # that the weights were read from, until an update changes them
        )
        self.hf_config = AutoConfig.from_pretrained(folder)
        with cuda_stand_in():
            config = transformer_config(
                self.hf_config, cluster, dtype=dtype, sequence_parallel=sequence_parallel, recompute=recompute
            )
            # The losses have their own denominators: without this flag Megatron divides by the micro-batches.
            config.calculate_per_token_loss = True
            config.finalize_model_grads_func = _finalize_without_scaling
            module = self._module(config).to(cluster.device)
            _mark_sharded(module, cluster)
            self.model = DistributedDataParallel(
                config,
                DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
                module,
            )
        self.load(folder)
        self.pad_multiple = (cluster.tp_size if sequence_parallel else 1) * cluster.cp_size

    @abstractmethod
    def _module(self, config: TransformerConfig) -> PackedGPT:
        """This rank's part of the model. Its last stage returns [k, T]; the rows are the arguments of the loss."""

    @property
    def gpt(self) -> PackedGPT:
        return self.model.module  # pyright: ignore[reportReturnType]

    @property
    def weight_buffers(self) -> list[Tensor]:
        """Flat memory of the weights, which the parameters are views of."""
        return [buffer.param_data for buffer in self.model.buffers]  # pyright: ignore[reportGeneralTypeIssues]

    @property
    def gradient_buffers(self) -> list[Tensor]:
        """Flat memory of the gradients."""
        return [buffer.grad_data for buffer in self.model.buffers]  # pyright: ignore[reportGeneralTypeIssues]

    @on_megatron
    def start_training(self, optim: OptimConfig, num_steps: int) -> None:
        """Makes a fresh Adam, with master weights from the present weights, and a fresh learning-rate schedule."""
        self.num_skipped_updates = 0
        self.optimizer = self.schedule = None  # an earlier stage's: the device has no room for two
        self.optimizer, self.schedule = make_optimizer(self.model, optim, num_steps)

    def end_training(self) -> None:
        """Drops the optimizer; the model can still be evaluated."""
        self.optimizer = self.schedule = None

    def _in_training(self) -> tuple[ChainedOptimizer, OptimizerParamScheduler]:
        assert self.optimizer is not None and self.schedule is not None, "start_training comes first"
        return self.optimizer, self.schedule

    def update(self, micro_batches: Sequence[PackedBatch], loss_function: Loss) -> UpdateStats:
        """`forward_backward`, then `optimizer_step`."""
        self.forward_backward(micro_batches, loss_function)
        return self.optimizer_step()

    @on_megatron
    def forward_backward(self, micro_batches: Sequence[PackedBatch], loss_function: Loss) -> None:
        """Computes the gradients of this rank's micro-batches, reduced over the job; the number is equal on all ranks.

        Loss and metrics stay on the device until `optimizer_step` reads them with the gradient norm: the host waits for
        the device once per update.
        """
        optimizer, _ = self._in_training()
        self.model.zero_grad_buffer()
        optimizer.zero_grad()

        # A context-parallel rank has the hidden states of a part of the tokens; the loss needs all tokens.
        folds = self.kernels.fold_loss and loss_function.folds and self.cluster.cp_size == 1

        def compute_loss(batch: PackedBatch, output: Tensor | tuple[Tensor, dict[str, Tensor]]):
            loss, metrics = output if isinstance(output, tuple) else loss_function(*output.unbind(), batch)
            one = torch.ones((), dtype=torch.int, device=loss.device)
            return loss, one, {"loss": loss.detach(), **{k: v.detach() for k, v in metrics.items()}}

        from_hidden = cast(FoldedLoss, loss_function).from_hidden if folds else None
        self._reports = self._run(micro_batches, compute_loss, from_hidden, forward_only=False)

    @on_megatron
    def optimizer_step(
        self, objection: Callable[[dict[str, float]], str] = lambda metrics: ""
    ) -> UpdateStats:
        """Clips the gradient, steps, and gathers the parameters.

        Loss and metrics are equal on all ranks, each summed over micro-batches and ranks; of a metric whose name ends
        in `_min` or `_max` it is the extreme. The gradient norm is that before clipping. If loss or gradient is not
        finite, or `objection` to the metrics is not empty, weights, moments and schedule do not change and
        `num_skipped_updates` is incremented. All ranks have the same numbers, so they take the same decision.
        """
        optimizer, schedule = self._in_training()
        lr = float(optimizer.param_groups[0]["lr"])
        optimizer.prepare_grads()
        reports, squared_norm = self._read(self._reports, self._squared_grad_norm())
        metrics, grad_norm = self._reduce(reports), math.sqrt(squared_norm)
        loss = metrics.pop("loss")
        stats = UpdateStats(loss=loss, grad_norm=grad_norm, lr=lr, metrics=metrics)
        skipped = objection(metrics)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            skipped = f"the loss is {loss:g} and the gradient norm {grad_norm:g}"
        if skipped:
            self.num_skipped_updates += 1
            return replace(stats, skipped=skipped)
        self._weights_folder = None
        for distributed in optimizer.chained_optimizers:
            if distributed.config.clip_grad > 0:
                parameters: list[Tensor] = [*distributed.get_parameters()]
                clip_grad_by_total_norm_fp32(parameters, distributed.config.clip_grad, grad_norm)
        optimizer.step_with_ready_grads()
        schedule.step(1)
        return stats

    def _squared_grad_norm(self) -> Tensor:
        """Of the whole gradient, on the device: the host waits for the result of Megatron's own function."""
        total = torch.zeros((), dtype=torch.float32, device=self.cluster.device)
        for distributed in self._in_training()[0].chained_optimizers:
            grads = distributed.get_main_grads_for_grad_norm()
            part = (
                torch.stack(torch._foreach_norm(grads)).square().sum()  # pyright: ignore[reportPrivateImportUsage]
                if grads
                else torch.zeros_like(total)
            )
            dist.all_reduce(part, group=distributed.get_grad_stats_parallel_group())
            total += part
        return total

    @staticmethod
    def _read(reports: list[dict[str, Tensor]], number: Tensor) -> tuple[list[dict[str, float]], float]:
        """Copies all values to the host at once. A vector's elements become `name/0`, `name/1` and so on."""
        values = [value.float().reshape(-1) for report in reports for value in report.values()]
        host = torch.cat([*values, number.reshape(1)]).tolist()
        numbers = iter(host)

        def named(name: str, value: Tensor) -> dict[str, float]:
            if value.ndim == 0:
                return {name: next(numbers)}
            return {f"{name}/{place}": next(numbers) for place in range(value.numel())}

        read = [{k: v for item in report.items() for k, v in named(*item).items()} for report in reports]
        return read, host[-1]

    @on_megatron
    @torch.no_grad()
    def outputs(self, micro_batches: Sequence[PackedBatch]) -> list[Tensor]:
        """[k, T] fp32 of the last stage for each micro-batch, on every rank that has the micro-batch."""

        def keep(_batch: PackedBatch, output: Tensor, non_loss_data: bool = True):
            return output

        outputs = self._run(micro_batches, keep, forward_only=True, collect_non_loss_data=True)
        if self.cluster.pp_size == 1:
            return outputs
        shapes = [(self.gpt.num_outputs, len(batch.targets)) for batch in micro_batches]
        outputs = outputs or [torch.empty(shape, device=self.cluster.device) for shape in shapes]
        for output in outputs:
            dist.broadcast(output, self.cluster.last_stage_rank(), group=self.cluster.pp_group)
        return outputs

    def _run(self, micro_batches, per_batch, from_hidden=None, **schedule_options) -> list:
        """Runs Megatron's schedule over the micro-batches; returns the last stage's results, in order.

        The last stage's output is [k, T], or the result of `from_hidden` with its hidden states.
        """

        def forward_step(iterator, model):
            batch = next(iterator)
            self.on_progress()
            own = own_tokens(batch, self.cluster)
            self.gpt.loss_from_hidden = from_hidden and partial(from_hidden, batch=batch)
            output = model(
                input_ids=batch.input_ids[None, own],
                position_ids=batch.position_ids[None, own],
                attention_mask=None,
                labels=batch.targets[None, own],
                packed_seq_params=packed_params(batch, self.cluster),
            )
            return output, lambda tensor, **options: per_batch(batch, tensor, **options)

        with deterministic_kernels(self.cluster.deterministic):
            return get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iter(micro_batches),
                model=[self.model],
                num_microbatches=len(micro_batches),
                seq_length=max(
                    len(batch.input_ids) for batch in micro_batches
                ),  # required, but unused: the shapes come from `stage_links`
                micro_batch_size=1,
                **stage_links(self.model.config, self.cluster, micro_batches),
                **schedule_options,
            )

    def _reduce(self, reports: list[dict[str, float]]) -> dict[str, float]:
        """Sums over micro-batches and data-parallel ranks (minima and maxima by name), on the host."""
        names = reports[0] if reports else ()
        local = {name: _merge(name, [report[name] for report in reports]) for name in names}
        if self.cluster.pp_size > 1:
            box = [local]
            dist.broadcast_object_list(box, self.cluster.last_stage_rank(), group=self.cluster.pp_group)
            local = box[0]
        every = self.cluster.all_gather_data(local)
        return {name: _merge(name, [part[name] for part in every]) for name in every[0]}

    def sharded_state(self, prefix: str = "") -> dict[str, list]:
        """Weights and moments of this rank's optimizer, as views, by their place in the whole model's tensors.

        `prefix` precedes the names if one checkpoint holds several models.
        """
        return sharded_optimizer_state(self.gpt, self.cluster, self._in_training()[0], prefix)

    def training_state(self) -> dict[str, int]:
        """The numbers that belong to `sharded_state`; equal on all ranks."""
        optimizer, schedule = self._in_training()
        steps = {int(state["step"]) for *_, state in optimizer_shards(optimizer)}
        assert len(steps) <= 1, f"Adam's steps differ between parameters: {sorted(steps)}"
        every = self.cluster.all_gather_data(max(steps, default=0))
        return {
            "adam_step": max(every),
            "schedule_step": schedule.num_steps,
            "num_skipped_updates": self.num_skipped_updates,
        }

    @on_megatron
    @torch.no_grad()
    def resume_training(self, state: dict[str, int]) -> None:
        """Continues from `training_state`, after `sharded_state` was filled: its weights become the model's."""
        optimizer, schedule = self._in_training()
        self._weights_folder = None
        for *_, shard in optimizer_shards(optimizer):
            shard["step"].fill_(state["adam_step"])
        self.num_skipped_updates = state["num_skipped_updates"]
        schedule.num_steps = state["schedule_step"]
        schedule.step(0)
        for distributed in optimizer.chained_optimizers:
            assert isinstance(distributed, DistributedOptimizer)
            COPY_MAIN_PARAMS.get(distributed)()
        self.model.start_param_sync(force_sync=True)

    def weights_identity(self) -> str:
        """A hash of the weights, equal in all layouts."""
        return identity(self.gpt, self.cluster)

    def load(self, folder: str | Path) -> None:
        """Overwrites the weights in place; a generator that shares them has them at once."""
        hf.load(self.gpt, self.cluster, folder)
        self._weights_folder = Path(folder).resolve()

    def has_weights_of(self, folder: str | Path) -> bool:
        """Whether the weights were read from `folder` and no update has changed them since."""
        return self._weights_folder == Path(folder).resolve()

    def export(self, target: str | Path) -> None:
        """Writes a Hugging Face folder; collective over all ranks."""
        hf.export(self.gpt, self.cluster, self.folder, target)


def _mark_sharded(model: PackedGPT, cluster: Cluster) -> None:
    """Marks the tensor-parallel parameters for the gradient norm, as Megatron does where it draws their weights."""
    for _, parameter, mapping in hf.parameter_maps(model, cluster):
        if mapping.split_dim is not None and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, True, mapping.split_dim, 1)


def _merge(name: str, values: list[float]) -> float:
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else sum(values)


def _finalize_without_scaling(model, num_tokens=None, **options):
    """Megatron's gradient reductions without its division by the number of tokens, which is part of the loss."""
    finalize_model_grads(model, None, **options)
