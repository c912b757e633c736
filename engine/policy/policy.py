"""The policy: a sharded Megatron model with its optimizer, that turns micro-batches into logprobs and updates.

Denominators live in the loss function alone: nothing here divides by micro-batches, ranks or tokens, so an
update does not depend on how the batch was split.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from ralign.engine.cluster import Cluster, cuda_stand_in, on_megatron
from ralign.engine.config import OptimConfig
from ralign.engine.packing import PackedBatch
from ralign.engine.policy import hf
from ralign.engine.policy.model import PackedGPT, transformer_config
from torch import Tensor
from transformers import AutoConfig

# (logprobs [T], entropy [T], micro-batch) -> (scalar loss, metrics to sum over micro-batches and ranks)
LossFunction = Callable[[Tensor, Tensor, PackedBatch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(kw_only=True, frozen=True)
class UpdateStats:
    """What one optimizer step reports: `metrics` as the loss gave them, summed over the global batch."""

    loss: float
    grad_norm: float
    lr: float
    metrics: dict[str, float]


class Policy:
    """A Hugging Face model on Megatron-core, sharded over the cluster's groups."""

    def __init__(
        self,
        folder: str | Path,
        cluster: Cluster,
        *,
        dtype: str = "fp32",
        sequence_parallel: bool = False,
        recompute: bool = False,
        temperature: float = 1.0,
    ):
        """Build the model and read its weights from `folder` (see `transformer_config` for what is refused)."""
        self.folder = Path(folder)
        self.cluster = cluster
        self.hf_config = AutoConfig.from_pretrained(folder)
        with cuda_stand_in():
            config = transformer_config(
                self.hf_config, cluster, dtype=dtype, sequence_parallel=sequence_parallel, recompute=recompute
            )
            # Our losses carry their own denominators; this flag keeps Megatron from dividing by micro-batches.
            config.calculate_per_token_loss = True
            config.finalize_model_grads_func = _finalize_without_scaling
            module = PackedGPT(self.hf_config, config, cluster, temperature).to(cluster.device)
            _mark_sharded(module, cluster)
            self.model = DistributedDataParallel(
                config,
                DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
                module,
            )
        hf.load(self.gpt, cluster, folder)
        self.pad_multiple = cluster.tp_size if sequence_parallel else 1

    @property
    def gpt(self) -> PackedGPT:
        return self.model.module

    @on_megatron
    def start_training(self, optim: OptimConfig, num_steps: int) -> None:
        """A fresh Adam (master weights from the model as it is now) and a fresh learning-rate schedule."""
        config = self.gpt.config
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=optim.lr,
                min_lr=optim.min_lr,
                weight_decay=optim.weight_decay,
                adam_beta1=optim.beta1,
                adam_beta2=optim.beta2,
                adam_eps=optim.eps,
                clip_grad=optim.clip_grad,
                bf16=config.bf16,
                params_dtype=config.params_dtype,
                use_distributed_optimizer=True,
            ),
            [self.model],
        )
        self.schedule = OptimizerParamScheduler(
            self.optimizer,
            init_lr=0.0,
            max_lr=optim.lr,
            min_lr=optim.min_lr,
            lr_warmup_steps=optim.warmup_steps,
            lr_decay_steps=max(num_steps, optim.warmup_steps + 1),
            lr_decay_style=optim.lr_schedule,
            start_wd=optim.weight_decay,
            end_wd=optim.weight_decay,
            wd_incr_steps=0,
            wd_incr_style="constant",
            use_checkpoint_opt_param_scheduler=False,
            override_opt_param_scheduler=True,
        )
        # Megatron's schedule gives lr 0 to step 0 of a warm-up; counting from 1 makes every step train.
        self.schedule.step(1)

    def update(self, micro_batches: Sequence[PackedBatch], loss_function: LossFunction) -> UpdateStats:
        """`forward_backward`, then `optimizer_step`."""
        loss, metrics = self.forward_backward(micro_batches, loss_function)
        grad_norm, lr = self.optimizer_step()
        return UpdateStats(loss=loss, grad_norm=grad_norm, lr=lr, metrics=metrics)

    @on_megatron
    def forward_backward(
        self, micro_batches: Sequence[PackedBatch], loss_function: LossFunction
    ) -> tuple[float, dict[str, float]]:
        """Gradients of this rank's micro-batches, reduced over the job; every rank brings the same number.

        Returns loss and metrics, the same on every rank, each summed over micro-batches and ranks; a metric
        whose name ends in `_min` or `_max` is the extreme instead.
        """
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()

        def compute_loss(batch: PackedBatch, output: Tensor):
            loss, metrics = loss_function(output[0], output[1], batch)
            one = torch.ones((), dtype=torch.int, device=output.device)
            return loss, one, {"loss": loss.detach(), **{k: v.detach() for k, v in metrics.items()}}

        reports = self._run(micro_batches, compute_loss, forward_only=False)
        total = self._reduce(reports)
        return total.pop("loss"), total

    @on_megatron
    def optimizer_step(self) -> tuple[float, float]:
        """Clip, step, gather parameters. Returns the gradient norm before clipping and the learning rate used."""
        lr = self.optimizer.param_groups[0]["lr"]
        _, grad_norm, _ = self.optimizer.step()
        self.schedule.step(1)
        return float(grad_norm), float(lr)

    @on_megatron
    @torch.no_grad()
    def logprobs(self, micro_batches: Sequence[PackedBatch]) -> list[Tensor]:
        """[2, T] (logprobs, entropy) fp32 for each micro-batch, on every rank that shares its data."""

        def keep(_batch: PackedBatch, output: Tensor, non_loss_data: bool = True):
            return output

        outputs = self._run(micro_batches, keep, forward_only=True, collect_non_loss_data=True)
        if self.cluster.pp_size == 1:
            return outputs
        shapes = [(2, len(batch.targets)) for batch in micro_batches]
        outputs = outputs or [torch.empty(shape, device=self.cluster.device) for shape in shapes]
        for output in outputs:
            dist.broadcast(output, self.cluster.last_stage_rank(), group=self.cluster.pp_group)
        return outputs

    def _run(self, micro_batches, per_batch, **schedule_options) -> list:
        """Megatron's schedule over the micro-batches; the last stage's results, in order."""

        def forward_step(iterator, model):
            batch = next(iterator)
            output = model(
                input_ids=batch.input_ids[None],
                position_ids=batch.position_ids[None],
                attention_mask=None,
                labels=batch.targets[None],
                packed_seq_params=_packed_params(batch),
            )
            return output, lambda tensor, **options: per_batch(batch, tensor, **options)

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[self.model],
            num_microbatches=len(micro_batches),
            # With variable lengths the stages tell each other the real shapes; these are only required.
            seq_length=max(len(batch.input_ids) for batch in micro_batches),
            micro_batch_size=1,
            **schedule_options,
        )

    def _reduce(self, reports: list[dict[str, Tensor]]) -> dict[str, float]:
        """Sum (or min, max by name) over micro-batches and data-parallel ranks; one collective, one host copy."""
        local: dict[str, float] = {}
        if reports:
            stacked = torch.stack(
                [torch.stack([report[name].float() for name in reports[0]]) for report in reports]
            )
            rows = stacked.tolist()
            local = {name: _merge(name, [row[i] for row in rows]) for i, name in enumerate(reports[0])}
        if self.cluster.pp_size > 1:
            box = [local]
            dist.broadcast_object_list(box, self.cluster.last_stage_rank(), group=self.cluster.pp_group)
            local = box[0]
        every = self.cluster.all_gather_data(local)
        return {name: _merge(name, [part[name] for part in every]) for name in every[0]}

    def freeze_reference(self) -> None:
        """Keep a copy of the weights as they are now, in host memory, as the reference of KL terms."""
        self._reference = [buffer.param_data.to("cpu", copy=True) for buffer in self.model.buffers]

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """While open, the model holds the reference's weights; afterwards its own, bit for bit."""
        own = [buffer.param_data.clone() for buffer in self.model.buffers]
        for buffer, reference in zip(self.model.buffers, self._reference, strict=True):
            buffer.param_data.copy_(reference)
        yield
        for buffer, weights in zip(self.model.buffers, own, strict=True):
            buffer.param_data.copy_(weights)

    def vllm_parameters(self) -> dict[str, Tensor]:
        """This stage's parameters under vLLM's names: the trainer's own memory, not copies."""
        return {row.vllm: parameter.data for _, parameter, row in hf.parameter_slots(self.gpt, self.cluster)}

    def load(self, folder: str | Path) -> None:
        """Overwrite the weights in place (a generator that shares them sees them at once)."""
        hf.load(self.gpt, self.cluster, folder)

    def export(self, target: str | Path) -> None:
        """Write a Hugging Face folder; collective over all ranks."""
        hf.export(self.gpt, self.cluster, self.folder, target)


def _mark_sharded(model: PackedGPT, cluster: Cluster) -> None:
    """Megatron marks tensor-parallel parameters only when it draws their weights; the gradient norm needs the mark."""
    for _, parameter, row in hf.parameter_slots(model, cluster):
        if row.split_dim is not None and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, True, row.split_dim, 1)


def _merge(name: str, values: list[float]) -> float:
    if name.endswith("_max"):
        return max(values)
    return min(values) if name.endswith("_min") else sum(values)


def _finalize_without_scaling(model, num_tokens=None, **options):
    """Megatron's gradient reductions, without its division by a token count that the loss already did."""
    finalize_model_grads(model, None, **options)


def _packed_params(batch: PackedBatch) -> PackedSeqParams:
    if batch.packed_params is None:
        batch.packed_params = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=batch.cu_seqlens,
            cu_seqlens_kv=batch.cu_seqlens,
            max_seqlen_q=batch.max_seqlen,
            max_seqlen_kv=batch.max_seqlen,
        )
    return batch.packed_params
