"""The planner's view of a run: sizes, layout and world size."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ralign.engine.planner.judges import GIB, ResidentJudge
from ralign.engine.planner.shapes import Shape, shape_of_folder

if TYPE_CHECKING:
    from ralign.engine.config.run import Run

BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of the formulas; `Job.of` makes it from a run's settings and the number of processes."""

    shape: Shape
    world_size: int
    tensor: int
    pipeline: int
    context: int
    sequence: bool
    recompute: bool
    dtype: str
    generate_tensor: int
    token_budget: int
    max_prompt_tokens: int
    max_new_tokens: int
    num_prompts: int
    num_samples: int
    num_updates: int
    has_reference: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    bucket_bytes: int
    reserve_bytes: int
    utilization: float
    kv_bytes: int  # 0: the rest of `utilization`
    offload: str  # auto, never, always
    kv_sleep: str
    critic: Shape | None = None  # PPO's, with the policy's layout
    judge: ResidentJudge | None = None  # if it shares the devices

    @classmethod
    def of(cls, run: "Run", world_size: int, shape: Shape) -> "Job":
        parallel, generator, memory = run.parallel, run.generator, run.memory
        start = shape_of_folder(run.critic.hf_path, "critic.hf_path") if run.critic.hf_path else shape
        return cls(
            shape=shape,
            world_size=world_size,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            context=parallel.context,
            sequence=parallel.sequence,
            recompute=parallel.recompute,
            dtype=parallel.dtype,
            generate_tensor=generator.tensor or parallel.tensor,
            token_budget=run.token_budget,
            max_prompt_tokens=run.data.max_prompt_tokens,
            max_new_tokens=max(generator.max_new_tokens, run.eval.max_new_tokens),
            num_prompts=run.algo.num_prompts,
            num_samples=run.algo.num_samples,
            num_updates=run.algo.num_updates,
            has_reference=run.algo.kl_coef > 0,
            max_num_seqs=generator.max_num_seqs,
            max_num_batched_tokens=generator.max_num_batched_tokens,
            bucket_bytes=memory.bucket_mib * 2**20,
            reserve_bytes=int(memory.reserve_gib * GIB),
            utilization=generator.gpu_memory_utilization,
            kv_bytes=int(generator.kv_cache_gib * GIB),
            offload=memory.offload,
            kv_sleep=memory.kv_sleep,
            critic=start.as_critic() if run.has_critic else None,
            judge=ResidentJudge.of(run),
        )

    def of_critic(self) -> "Job":
        """The critic as a job."""
        return replace(self, shape=self.critic, critic=None)

    @property
    def data(self) -> int:
        return self.world_size // (self.tensor * self.pipeline * self.context)

    @property
    def shares_weights(self) -> bool:
        """Whether the generator reads the trainer's memory: same tensor-parallel size, no pipeline."""
        return self.generate_tensor == self.tensor and self.pipeline == 1

    @property
    def num_replicas(self) -> int:
        """Number of engines in the job."""
        return self.world_size // self.generate_tensor

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one rank's part of a micro-batch (n)."""
        return -(-self.token_budget // self.context)

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def sequence_bytes(self) -> int:
        """KV cache of the longest sequence, on one rank of an engine."""
        return (self.max_prompt_tokens + self.max_new_tokens) * self.kv_token_bytes

    @property
    def kv_token_bytes(self) -> int:
        shape = self.shape
        groups = max(shape.num_query_groups // self.generate_tensor, 1)
        return 2 * shape.num_layers * groups * shape.head_dim * self.weight_bytes
