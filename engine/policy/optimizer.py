"""Megatron's Adam with sharded state, and its learning-rate schedule."""

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from ralign.engine.config.algo import OptimConfig


def make_optimizer(
    model: DistributedDataParallel, optim: OptimConfig, num_steps: int
) -> tuple[ChainedOptimizer, OptimizerParamScheduler]:
    """A fresh Adam, with master weights from the model's present weights, and a schedule over `num_steps` updates."""
    config = model.config
    optimizer = get_megatron_optimizer(
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
        [model],
    )
    assert isinstance(optimizer, ChainedOptimizer)
    schedule = OptimizerParamScheduler(
        optimizer,
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
    # At step 0 of a warm-up the learning rate is 0. Counting from 1 makes the first update change the weights.
    schedule.step(1)
    return optimizer, schedule
