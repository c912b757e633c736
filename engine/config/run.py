"""The settings of an experiment: one tree of dataclasses, `Run`, which a recipe fills and a user overrides.

Nothing here imports torch, so that `--help` answers at once. Every field carries its meaning: the text under
a field is what `--help` shows. Units are in names; sizes count items. `command_line.parse` applies overrides,
`validation.validate` refuses what cannot work; both are re-exported here, for recipes.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The policy's architecture: a dense decoder. The vocabulary's size comes from the tokenizer."""

    hf_path: str | None = None
    """Hugging Face folder to start from; the shape then comes from its config.json, not from here."""
    family: str = "qwen3"
    """Architecture: qwen3, qwen2, llama, mistral or olmo2; or FILE.py:NAME."""
    num_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    ffn_hidden_size: int = 384
    """Width inside the gated MLP."""
    num_attention_heads: int = 4
    """Query heads."""
    num_query_groups: int = 2
    """Key and value heads (grouped-query attention)."""
    head_dim: int = 32
    """Channels of one head; even, since RoPE rotates pairs."""
    rope_theta: float = 10000.0
    """Base of the rotary position embedding."""
    norm_eps: float = 1e-6
    """Epsilon of RMSNorm."""
    tie_embeddings: bool = True
    """Use the token embedding as the output layer too."""
    max_position_embeddings: int = 1024
    """Longest sequence the model may see, prompt and answer together."""
    init_std: float = 0.02
    """Standard deviation of freshly drawn weights."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """How the model is cut. The data-parallel size is what is left: world / (tensor * pipeline * context)."""

    tensor: int = 1
    """Tensor-parallel size of the trainer (and of the generator, unless generator.tensor says otherwise)."""
    pipeline: int = 1
    """Pipeline-parallel size (stages of layers)."""
    context: int = 1
    """Context-parallel size: the tokens of a micro-batch are spread over this many ranks."""
    sequence: bool = False
    """Sequence parallelism: shard norms and residuals along the sequence; needs tensor > 1."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights and activations."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""

    def data_size(self, world_size: int) -> int:
        """Data-parallel size in a world of `world_size` processes (`validate` makes sure that it divides)."""
        return world_size // (self.tensor * self.pipeline * self.context)


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-6
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine or linear schedule."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to norms and biases."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The preference pairs and how a judge is asked about them."""

    train: str | None = None
    """Pairs file (JSONL) to train on; None makes JudgeWorld."""
    template: str = "compact"
    """Judge prompt: compact, full, or a file of your own."""
    chat: bool = False
    """Ask in the tokenizer's chat template, system and user message, as instruct models expect; else in plain text."""
    max_bad_lines: int = 0
    """Bad lines of a pairs file to go on without; one more ends the run."""
    max_prompt_tokens: int = 192
    """Longest prompt; a pair whose prompt is longer is left out and counted."""
    world: JudgeWorldConfig = field(default_factory=JudgeWorldConfig)
    """The generated world of pairs."""


@dataclass(kw_only=True, slots=True)
class GeneratorConfig:
    """vLLM inside the training processes, and how it samples."""

    max_new_tokens: int = 128
    """Longest answer."""
    temperature: float = 1.0
    """Sampling temperature; the trainer divides its logits by the same number."""
    top_p: float = 1.0
    """Must stay 1: truncated sampling biases the policy ratio."""
    top_k: int = -1
    """Must stay -1 (all tokens): truncated sampling biases the policy ratio."""
    tensor: int = 0
    """Tensor-parallel size of the generator; 0: the trainer's, whose weights it then shares where it can."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that may be in use while generating, the trainer's part included."""
    kv_cache_gib: float = 0.5
    """KV cache a process, GiB; 0: what the other holders leave of gpu_memory_utilization (needs a GPU)."""
    max_num_seqs: int = 256
    """Most sequences decoded at once in one engine."""
    max_num_batched_tokens: int = 8192
    """Most tokens of one forward pass of the engine: a long prompt is computed in chunks of this size."""
    all_reduce: Literal["custom", "flashinfer"] = "custom"
    """All-reduce of the engine's ranks on CUDA: vLLM's own, whose order of sums is fixed, or FlashInfer's, fused."""
    enforce_eager: bool = False
    """Decode without CUDA graphs: starts sooner, generates slower."""
    verify: Literal["first", "every"] = "first"
    """After which updates to prove that the engine reads the trainer's weights."""


@dataclass(kw_only=True, slots=True)
class MemoryConfig:
    """What leaves a GPU in which phase, and what a start is checked against."""

    offload: Literal["auto", "never", "always"] = "auto"
    """Optimizer state to pinned host memory, and gradients freed, while generating; auto: if the plan asks."""
    kv_sleep: Literal["auto", "never", "always"] = "auto"
    """Free the KV cache while training; auto: if the plan asks."""
    bucket_mib: int = 256
    """Staging memory of the gather path (generation and training layouts differ), MiB."""
    reserve_gib: float = 6.0
    """GPU memory that the ledger does not itemise: CUDA context, NCCL buffers, CUDA graphs, fragmentation."""


@dataclass(kw_only=True, slots=True)
class AlgoConfig:
    """What an answer is paid and how the policy learns from it."""

    reward: str = "r_align"
    """label: the verdict is right (RLVR); r_align: and the MetaRM finds its rationale right; or FILE.py:NAME."""
    invalid_reward: float = -1.0
    """Reward of an answer without a verdict."""
    advantages: str = "grpo"
    """grpo (centred, over the deviation), dr_grpo (centred), rloo (leave-one-out); gae (critic); or FILE.py:NAME."""
    num_prompts: int = 32
    """Prompts a step, over all processes."""
    num_samples: int = 8
    """Answers sampled for a prompt: its group."""
    both_orders: bool = False
    """Ask about each pair in both orders, and pay an answer only if its partner in the other order earns the same."""
    num_updates: int = 1
    """Optimizer updates a step, each on its own part of the samples; 1 is on-policy."""
    objective: str = "clip"
    """clip: PPO's clipped ratio; cispo: the clipped ratio as a constant weight of the logprob; or FILE.py:NAME."""
    ratio: Literal["token", "sequence"] = "token"
    """Whose probability ratio is clipped: each token's, or the sequence's geometric mean (GSPO)."""
    clip_low: float = 0.2
    """Ratios below 1 - clip_low earn nothing more."""
    clip_high: float = 0.28
    """Ratios above 1 + clip_high earn nothing more."""
    dual_clip: float | None = 3.0
    """Bound on the loss of a token of negative advantage, in advantages; None for none."""
    normalisation: Literal["token", "sequence"] = "token"
    """Mean of the loss over all tokens of an update, or over sequences (mean over tokens in each)."""
    kl_coef: float = 0.0
    """Weight of the divergence from the frozen reference; 0 keeps no reference model."""
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that divergence."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    tis_cap: float | None = 2.0
    """Truncated importance sampling between engine and trainer: largest weight; None turns it off."""

    @property
    def num_orders(self) -> int:
        """In how many orders each pair is asked about."""
        return 2 if self.both_orders else 1


def _critic_optim() -> OptimConfig:
    return OptimConfig(lr=1e-5)


@dataclass(kw_only=True, slots=True)
class CriticConfig:
    """PPO's critic; there is one with algo.advantages=gae alone."""

    hf_path: str | None = None
    """Folder it starts from, such as a reward model with one label; None: the policy's start, with all values 0."""
    optim: OptimConfig = field(default_factory=_critic_optim)
    """Optimizer of the critic."""
    warmup_steps: int = 0
    """Steps at the start of a stage in which the critic learns and the policy stays as it is."""
    value_clip: float | None = 0.2
    """How far an update may move a value from what it was before the step; None does not clip."""
    gamma: float = 1.0
    """Discount of a reward for each token that comes before it."""
    lam: float = 0.95
    """Lambda of GAE: 1 trusts the rewards alone, 0 the next token's value."""
    whiten: bool = True
    """Centre the advantages of a step's tokens, and divide them by their deviation."""


@dataclass(kw_only=True, slots=True)
class KernelsConfig:
    """Implementation of each op: auto is Triton on CUDA; torch turns one back to plain torch, for diagnosis."""

    linear_logprob: Literal["auto", "torch"] = "auto"
    """Logprob, entropy and their gradient from the logits of the LM head."""
    policy_loss: Literal["auto", "torch"] = "auto"
    """Ratio, clipping, KL, importance weights, metrics."""
    advantages: Literal["auto", "torch"] = "auto"
    """Group advantages, and the critic's."""
    rms_norm: Literal["auto", "torch"] = "auto"
    """The policy's norms."""
    fold_loss: bool = True
    """Compute the loss inside the LM head's pass: a quarter less work there. Not with context parallelism."""


def _sft_optim() -> OptimConfig:
    return OptimConfig(lr=1e-3, lr_schedule="cosine", warmup_steps=50)


@dataclass(kw_only=True, slots=True)
class SFTConfig:
    """The supervised warm start."""

    num_steps: int = 1000
    """Optimizer steps; 0 leaves the stage out."""
    num_samples: int = 64
    """Judgments a step, over all processes."""
    golden_share: float = 0.5
    """Share of golden judgments; the others follow the spurious cue."""
    optim: OptimConfig = field(default_factory=_sft_optim)
    """Optimizer of this stage."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """How trained judges are measured."""

    num_pairs: int = 512
    """Pairs of each test that are judged; a smaller test is judged whole."""
    temperature: float = 0.4
    """Sampling temperature; 0 takes the likeliest token."""
    max_new_tokens: int = 128
    """Longest judgment."""
    num_bootstrap: int = 2000
    """Resamples behind the 95 % intervals."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Which checkpoints of a stage stay on the disk."""

    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_best: int = 0
    """Best checkpoints to keep beside the newest ones."""
    watch: str = "reward/mean"
    """Metric that says which checkpoint is best; higher is better."""


@dataclass(kw_only=True, slots=True)
class FaultsConfig:
    """When a run gives up instead of waiting or going on."""

    stall_s: float = 1800.0
    """Longest time without progress (a phase, a micro-batch); then every rank's stack is written and the job ends."""
    generation_stall_s: float = 7200.0
    """The same for generating and judging, where ranks wait for the slowest."""
    max_skipped_updates: int = 10
    """Updates of a stage that may be skipped for a loss or gradient that is not finite; one more ends the run."""


@dataclass(kw_only=True, slots=True)
class Run:
    """Settings that every experiment has."""

    name: str = "run"
    """Folder of the run, inside `out`."""
    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Fixes the data, the fresh weights and the sampling."""
    deterministic: bool = False
    """Only kernels that give the same bits for the same inputs on CUDA, at some cost in speed; a CPU always does."""
    num_steps: int = 100
    """RL steps."""
    token_budget: int = 4096
    """Most tokens in a micro-batch of one process."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at the end alone."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on with an interrupted run of the same name and settings; never: start afresh in its folder."""
    rollouts_every: int = 10
    """Steps between samples written to rollouts/; 0 writes none."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy's architecture."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the model is cut."""
    data: DataConfig = field(default_factory=DataConfig)
    """The preference pairs."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """Sampling."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Memory in phases."""
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    """Reward and policy loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer of the RL stage."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """The warm start."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """PPO's critic."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    """Which implementation of each op."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Measuring."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints to keep."""
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    """Stalls and values that are not finite."""

    @property
    def has_critic(self) -> bool:
        """Whether advantages are a critic's."""
        return self.algo.advantages == "gae"

    @property
    def folder(self) -> Path:
        """Where everything of this run goes: `out`/`name`."""
        return Path(self.out) / self.name


@dataclass(kw_only=True, slots=True)
class GenRMRun(Run):
    """Settings of the training of a GenRM."""

    metarm: MetaRMConfig = field(default_factory=MetaRMConfig)
    """The MetaRM, and its requests."""


def save_config(run: Run, path: str | Path) -> None:
    """Writes the resolved settings as JSON, making the folder; call it on one rank."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run), indent=2) + "\n", encoding="utf-8")
