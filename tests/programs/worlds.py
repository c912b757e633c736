"""A tiny JudgeWorld stage (SFT, RL or PPO) in any layout, for the programs that interrupt one."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch.distributed as dist
from ralign.engine.config.algo import AlgoConfig, CriticConfig, OptimConfig
from ralign.engine.config.run import GeneratorConfig, GenRMRun, ModelConfig, SFTConfig
from ralign.engine.data.examples import encode, encode_answer
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld, cue_judgment
from ralign.engine.generator.generator import Rollout
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.metarm import RuleMetaRM
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.fresh import create_model_folder
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.training.session import Session
from ralign.engine.training.sft import SFT
from ralign.engine.training.tasks import GenRMTask
from ralign.engine.training.trainer import Trainer

MODEL = ModelConfig(
    num_layers=2, hidden_size=64, ffn_hidden_size=96, num_attention_heads=4, num_query_groups=2, head_dim=32,
    init_std=0.1,
)  # fmt: skip
LAYOUTS = {"tp2": {"tensor": 2}, "dp2": {}, "pp2": {"pipeline": 2}}


def stage_run(num_steps: int, kind: str, **algo) -> GenRMRun:
    """Two updates a step, a KL term and a moving learning rate, a critic's warm-up of four steps: much to restore."""
    optim = OptimConfig(lr=2e-3, lr_schedule="cosine", warmup_steps=2, weight_decay=0.1, clip_grad=0.5)
    advantages = "gae" if kind == "ppo" else "grpo"
    standard = {
        "num_prompts": 4,
        "num_samples": 4,
        "num_updates": 2,
        "kl_coef": 0.05,
        "advantages": advantages,
    }
    return GenRMRun(
        num_steps=num_steps,
        token_budget=1024,
        model=MODEL,
        algo=AlgoConfig(**(standard | algo)),
        critic=CriticConfig(optim=optim, warmup_steps=min(4, num_steps - 1)),
        generator=GeneratorConfig(max_new_tokens=24, kv_cache_gib=0.1, max_num_seqs=16),
        optim=optim,
        sft=SFTConfig(num_steps=num_steps, num_samples=8, optim=optim),
    )


class ScriptedGenerator:
    """Stands where vLLM does, and starts at once: golden and cue judgments drawn from the seed."""

    def __init__(self, examples, tokenizer, cluster):
        self.weight_version, self.num_proofs = 0, 0
        self.replicas = Replicas(cluster, cluster.tp_size)
        self.answers = {
            tuple(e.prompt_ids.tolist()): [
                encode_answer(text, tokenizer) for text in (e.pair.gt_judgment, cue_judgment(e.pair))
            ]
            for e in examples
        }

    def generate(self, prompts, *, num_samples, max_new_tokens, temperature, seed, on_finished):
        rng = np.random.default_rng(seed)
        rollouts = []
        for index in range(len(prompts) * num_samples):
            ids = self.answers[tuple(prompts[index // num_samples])][int(rng.integers(2))]
            rollouts.append(
                Rollout(
                    prompt_index=index // num_samples,
                    response_ids=ids,
                    logprobs=rng.normal(-3, 0.5, len(ids)).astype(np.float32),
                    finish_reason="stop",
                    weight_version=self.weight_version,
                )
            )
            on_finished(index, rollouts[-1])
        return rollouts

    def weights_updated(self):
        self.weight_version += 1

    def verify(self):
        self.num_proofs += 1

    def prove(self):
        pass

    def wake(self):
        pass

    def sleep(self):
        pass


class NoMoves:
    """A `Memory` that leaves everything on the device."""

    def offload(self):
        pass

    def onload(self):
        pass

    def wait(self):
        pass

    def measure(self, stage):
        pass

    def metrics(self):
        return {}


class ScriptedSession(Session):
    """A session of these parts, without a run folder."""

    def __init__(self, cluster, policy, tokenizer=None, generator=None, critic=None):
        self.cluster, self.policy, self.tokenizer = cluster, policy, tokenizer
        self.generator, self.critic = generator, critic
        self.watchdog, self.memory = SimpleNamespace(phase=lambda name: None), NoMoves()


def make_world(folder: Path, first: bool):
    """(tokenizer, examples, answers); rank 0 writes the model's folder."""
    world = build_judgeworld(JudgeWorldConfig(num_train=48, num_warm_start=8, num_dev=8, num_test=8))
    pairs, template = world["train"], load_template("compact")
    if first and not (folder / "config.json").exists():
        texts = [text for pair in pairs for text in (render(template, pair), pair.gt_judgment)]
        tokenizer = build_tokenizer(texts, folder, 512)
        create_model_folder(folder, MODEL, tokenizer, 0)
    dist.barrier()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples, _ = encode(pairs, tokenizer, template, 512)
    return tokenizer, examples, [encode_answer(pair.gt_judgment, tokenizer) for pair in pairs]


def make_stage(folder: Path, kind: str, layout: dict, dtype: str, num_steps: int = 6, **algo):
    """(cluster, policy, stage) with fresh weights; every rank."""
    cluster = cluster_module.start(**layout, deterministic=True)  # on a CPU it changes nothing
    tokenizer, examples, answers = make_world(folder / "model", cluster.is_first_rank)
    policy = Policy(folder / "model", cluster, dtype=dtype)
    run = stage_run(num_steps, kind, **algo)
    if kind == "sft":
        return cluster, policy, SFT(ScriptedSession(cluster, policy), run, examples, answers)
    generator = ScriptedGenerator(examples, tokenizer, cluster)
    critic = Critic(folder / "model", cluster, dtype=dtype) if kind == "ppo" else None
    session = ScriptedSession(cluster, policy, tokenizer, generator, critic)
    task = GenRMTask(run, examples, RuleMetaRM(), generator.replicas, run.algo.reward)
    return cluster, policy, Trainer(session, run, task)


def one_step(stage) -> dict[str, float]:
    """A step's metrics without times and memory; exact, as hexadecimal."""
    metrics, _ = stage.step()
    return {k: float(v).hex() for k, v in metrics.items() if not k.startswith(("time_s/", "memory/"))}
