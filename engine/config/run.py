"""The settings of an experiment: one tree of dataclasses, `Run`, which a recipe fills and a user overrides.

Nothing here imports torch, so `--help` is fast. The text under a field is its help text. Units are in names; sizes
without a unit count items. `command_line.parse` applies overrides, and `validation.validate` rejects settings that
cannot work.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ralign.engine.config.algo import AlgoConfig, CriticConfig, OptimConfig
from ralign.engine.config.judge import EvalMetaRMConfig, MetaRMConfig
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The policy's architecture: a dense decoder. The vocabulary size comes from the tokenizer."""

    hf_path: str | None = None
    """Hugging Face folder of the initial weights; its config.json then replaces the sizes below."""
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
    """Longest sequence, prompt and answer together, tokens."""
    init_std: float = 0.02
    """Standard deviation of random initial weights."""


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """Parallel layout of the trainer. The data-parallel size is world / (tensor * pipeline * context)."""

    tensor: int = 1
    """Tensor-parallel size of the trainer (and of the generator, if generator.tensor=0)."""
    pipeline: int = 1
    """Pipeline-parallel size (stages of layers)."""
    context: int = 1
    """Context-parallel size: the number of ranks that share the tokens of a micro-batch."""
    sequence: bool = False
    """Sequence parallelism: shard norms and residuals along the sequence. Needs tensor > 1."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights and activations."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""

    def data_size(self, world_size: int) -> int:
        """Data-parallel size of `world_size` processes; `validate` checks that the sizes divide it."""
        return world_size // (self.tensor * self.pipeline * self.context)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The preference pairs and the judge's prompt."""

    train: str | None = None
    """Pairs file (JSON lines, a JSON array, or Parquet) to train on; None: generated pairs of JudgeWorld."""
    template: str = "compact"
    """Template of the judge's prompt: compact, full, or a file."""
    verdict: str = "boxed"
    """Form of verdicts: boxed, boxed_index, brackets, verdict_tag, answer_tag, scores, or a pattern with one group."""
    chat: bool = False
    """Format prompts with the tokenizer's chat template, which instruct models expect; else plain text."""
    max_bad_lines: int = 0
    """Bad lines of a pairs file that may be skipped; one more ends the run."""
    max_prompt_tokens: int = 192
    """Longest prompt, tokens; pairs with a longer prompt are dropped and counted."""
    world: JudgeWorldConfig = field(default_factory=JudgeWorldConfig)
    """The generated world of pairs."""


@dataclass(kw_only=True, slots=True)
class GeneratorConfig:
    """vLLM inside the training processes, and its sampling."""

    max_new_tokens: int = 128
    """Longest answer, tokens."""
    temperature: float = 1.0
    """Sampling temperature; the trainer divides its logits by the same number."""
    top_p: float = 1.0
    """Must stay 1: truncated sampling biases the policy ratio."""
    top_k: int = -1
    """Must stay -1 (all tokens): truncated sampling biases the policy ratio."""
    tensor: int = 0
    """Tensor-parallel size of the generator; 0: the trainer's, so that both share one copy where possible."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that may be in use during generation, including the trainer's part."""
    kv_cache_gib: float = 0.5
    """KV cache per process, GiB; 0: the unused rest of gpu_memory_utilization (needs a GPU)."""
    max_num_seqs: int = 256
    """Largest number of sequences that one engine decodes at once."""
    max_num_batched_tokens: int = 8192
    """Largest number of tokens in one forward pass of the engine; longer prompts are split into chunks."""
    all_reduce: Literal["custom", "flashinfer"] = "custom"
    """All-reduce of the engine's ranks on CUDA: vLLM's custom one (fixed order of sums) or FlashInfer's fused one."""
    enforce_eager: bool = False
    """Decode without CUDA graphs: a faster start, slower generation."""
    verify: Literal["first", "every"] = "first"
    """Updates after which a checksum proves that the engine reads the trainer's weights: the first or every one."""


@dataclass(kw_only=True, slots=True)
class MemoryConfig:
    """Offloading in each phase, and reserves of the memory plan."""

    offload: Literal["auto", "never", "always"] = "auto"
    """During generation, move optimizer state to pinned host memory and free gradients; auto: if the plan needs it."""
    kv_sleep: Literal["auto", "never", "always"] = "auto"
    """Free the KV cache during training; auto: if the plan needs it."""
    bucket_mib: int = 256
    """Staging buffer for gathering weights where the layouts of training and generation differ, MiB."""
    reserve_gib: float = 6.0
    """Unaccounted GPU memory, GiB: CUDA context, NCCL buffers, CUDA graphs, fragmentation."""


@dataclass(kw_only=True, slots=True)
class KernelsConfig:
    """Implementation of each op: auto is Triton on CUDA; torch is plain PyTorch, for diagnosis."""

    linear_logprob: Literal["auto", "torch"] = "auto"
    """Logprobs and entropy from the logits of the LM head, and their gradients."""
    policy_loss: Literal["auto", "torch"] = "auto"
    """Ratio, clipping, KL, importance weights, metrics."""
    advantages: Literal["auto", "torch"] = "auto"
    """Group advantages, and the critic's."""
    rms_norm: Literal["auto", "torch"] = "auto"
    """The policy's norms."""
    fold_loss: bool = True
    """Compute the loss inside the LM head's pass, with a quarter less work. Not with context parallelism."""


def _sft_optim() -> OptimConfig:
    return OptimConfig(lr=1e-3, lr_schedule="cosine", warmup_steps=50)


@dataclass(kw_only=True, slots=True)
class SFTConfig:
    """The supervised warm start."""

    num_steps: int = 1000
    """Optimizer steps; 0 skips the stage. With `competence`, the most steps."""
    competence: float = 0.0
    """Mean probability of the decisive token of golden judgments at which the stage ends; 0: after num_steps."""
    probe_every: int = 10
    """Steps between measurements of that probability."""
    num_probes: int = 256
    """Held-out golden judgments on which it is measured."""
    num_samples: int = 64
    """Judgments per step, over all processes."""
    golden_share: float = 0.5
    """Share of golden judgments; the others follow the spurious cue. In JudgeWorld only."""
    source: Literal["golden", "rejection"] = "golden"
    """On users' pairs: golden judgments, or the model's own that are right and Correct for the MetaRM."""
    num_pairs: int = 1024
    """Pairs that source=rejection samples."""
    keep_per_pair: int = 1
    """Most judgments of a pair that source=rejection keeps."""
    optim: OptimConfig = field(default_factory=_sft_optim)
    """Optimizer of this stage."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation of trained judges."""

    every: int = 0
    """RL steps between evaluations on held-out pairs, whose metrics are eval/*; 0: none while training."""
    metarm: EvalMetaRMConfig = field(default_factory=EvalMetaRMConfig)
    """The MetaRM of evaluations, if not that of the training."""
    num_pairs: int = 512
    """Largest number of pairs judged per test set."""
    temperature: float = 0.4
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int = 128
    """Longest judgment, tokens."""
    twins: str = ""
    """Also judge pairs and their twins greedily, for flip rates: order, cues, markdown, padding, reorder or
    FILE.py:NAME, or several with commas."""
    num_bootstrap: int = 2000
    """Resamples of the 95 % bootstrap intervals."""


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Where the metrics of training go, beside metrics.jsonl."""

    trackers: str = "auto"
    """tensorboard, wandb, mlflow, trackio or FILE.py:NAME, or several with commas; none; auto: TensorBoard if there."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Retention of a stage's checkpoints."""

    keep_last: int = 2
    """Number of newest checkpoints to keep."""
    keep_best: int = 0
    """Number of best checkpoints to keep in addition."""
    watch: str = "eval/f_score"
    """Metric of held-out samples that ranks checkpoints (eval/*, actor/win_rate); higher is better."""


@dataclass(kw_only=True, slots=True)
class FaultsConfig:
    """Limits on stalls and on skipped updates."""

    stall_s: float = 1800.0
    """Longest time without progress (a phase, a micro-batch), after which every rank writes its stacks and exits."""
    generation_stall_s: float = 7200.0
    """The same limit for generation and judging, where ranks wait for the slowest."""
    max_skipped_updates: int = 10
    """Updates per stage that may be skipped (non-finite loss, algo.max_rollout_kl); one more ends the run."""


@dataclass(kw_only=True, slots=True)
class Run:
    """Settings of every experiment."""

    name: str = "run"
    """Folder of the run, inside `out`."""
    out: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Seed of the data, the initial weights and the sampling."""
    deterministic: bool = False
    """Use only bit-reproducible kernels on CUDA, at some cost in speed. CPU kernels always are."""
    num_steps: int = 100
    """RL steps."""
    token_budget: int = 4096
    """Largest number of tokens in a micro-batch of one process."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only one at the end."""
    resume: Literal["auto", "accept", "never"] = "auto"
    """auto: resume a run of this name, settings and input files; accept: also with changed files; never: start over."""
    rollouts_every: int = 10
    """Steps between writes of samples to rollouts/; 0: none."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy's architecture."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Parallel layout."""
    data: DataConfig = field(default_factory=DataConfig)
    """Preference pairs and prompts."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """vLLM and its sampling."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Offloading in each phase."""
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    """Rewards, advantages and policy loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer of the RL stage."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """The supervised warm start."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """PPO's critic."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    """Implementation of each op."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """Experiment trackers."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Retention of checkpoints."""
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    """Limits on stalls and on skipped updates."""

    @property
    def has_critic(self) -> bool:
        """Whether a critic computes the advantages."""
        return self.algo.advantages == "gae"

    @property
    def folder(self) -> Path:
        """Folder of all outputs of this run: `out`/`name`."""
        return Path(self.out) / self.name


@dataclass(kw_only=True, slots=True)
class GenRMRun(Run):
    """Settings of the training of a GenRM."""

    metarm: MetaRMConfig = field(default_factory=MetaRMConfig)
    """The MetaRM and its requests."""


def save_config(run: Run, path: str | Path) -> None:
    """Writes the resolved settings as JSON and creates the folder; call it on one rank."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(run), indent=2) + "\n", encoding="utf-8")
