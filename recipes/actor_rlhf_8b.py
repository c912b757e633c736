"""Qwen3-8B as an actor, trained against a GenRM: the second half of the R-Align paper.

Question: is an actor better after training against a judge that is right for the right reasons? The paper, mean of 8
benchmarks of a Qwen3-8B actor (53.9 before): 59.4 against RLVR-14B, 61.7 against R-Align-14B. Data: the dialogues of
any pairs file; the better response is the fixed answer for comparisons.

    hf download Qwen/Qwen3-8B --local-dir models/Qwen3-8B
    torchrun --nproc-per-node 8 recipes/actor_rlhf_8b.py data.train=pairs.jsonl genrm.model=ORG/GenRM-14B

genrm.model is a Hugging Face name or a folder, such as runs/r_align_14b/r_align/hf; its vLLM server runs on the same
GPUs. With genrm.kind=endpoint genrm.base_url=URL it runs elsewhere. The paper uses PPO with a critic. GRPO, as in most
related work, needs no critic and no fixed answers:

    ... algo.advantages=grpo actor.scheme=circular

Hardware: 8 GPUs of 80 GB. In miniature, on two CPU cores:

    torchrun --nproc-per-node 2 recipes/actor_rlhf_8b.py --smoke
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from ralign.engine.actors.validation import check_actor
from ralign.engine.config.actor import ActorConfig, ActorRun
from ralign.engine.config.algo import AlgoConfig, CriticConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import GenRMConfig, ServerConfig
from ralign.engine.config.run import DataConfig, EvalConfig, GeneratorConfig, ModelConfig, ParallelConfig
from ralign.engine.config.validation import validate
from ralign.engine.data.pairs import prompt_text
from ralign.engine.data.worlds.judgeworld import build_judgeworld
from ralign.engine.planner.start import require_gpus
from ralign.engine.runtime.entry_point import run_job
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.output import show
from ralign.recipes.common import smoke
from ralign.recipes.common.pairs import train_and_held_out

LAUNCH = "torchrun --nproc-per-node 8 recipes/actor_rlhf_8b.py data.train=pairs.jsonl genrm.model=FOLDER"


def actor_rlhf_8b() -> ActorRun:
    # The paper publishes PPO, the fixed reference and the length penalty, but no other settings. Sources of the others:
    # RM-NLHF's actor (arXiv 2601.07349), NVIDIA's RLHF stage of Nemotron 3 (its published configuration).
    return ActorRun(
        name="actor_rlhf_8b",
        num_steps=200,  # 25,600 prompts at 128 per step; no source gives a number
        token_budget=8192,  # more than the longest sample, 6,144 tokens
        checkpoint_every=10,  # 50 minutes by ralign-plan, plus the judge's time
        model=ModelConfig(hf_path="models/Qwen3-8B"),
        # Two models are trained; on four GPUs per replica they do not fit beside the judge (101 % of an H100).
        # sequence shards norms and residuals, too; bf16 is the dtype of the published weights.
        parallel=ParallelConfig(tensor=8, sequence=True, dtype="bf16"),
        data=DataConfig(
            chat=True,  # an instruct model: its dialogue format, and thinking by its template
            max_prompt_tokens=2048,  # RM-NLHF
        ),
        algo=AlgoConfig(
            advantages="gae",  # the paper's PPO
            num_prompts=128,  # RM-NLHF, NVIDIA
            num_samples=8,  # RM-NLHF
            kl_coef=1e-3,  # RM-NLHF
            num_updates=4,  # PPO's mini-batches
        ),
        critic=CriticConfig(
            # Ten times the actor's, as usual for PPO's critics; Adam's second moment is unreliable at first.
            optim=OptimConfig(lr=1e-5, warmup_steps=10),
            warmup_steps=5,  # with values of 0, every advantage would equal the reward
            lam=1.0,  # for answers of thousands of tokens; a smaller value would discount the reward away
        ),
        actor=ActorConfig(
            scheme="reference",  # the paper: +1 or -1 against one fixed answer
            length_penalty=0.1,  # the paper has a dynamic one of unpublished weight
        ),
        generator=GeneratorConfig(
            max_new_tokens=4096,  # RM-NLHF
            kv_cache_gib=0,  # all memory that the ledger leaves free
        ),
        genrm=GenRMConfig(
            kind="managed",  # a 14B judge needs tensor parallelism, which a server's engine has
            template="full",  # as in recipes/r_align_14b.py
            temperature=0.6,  # NVIDIA's judge
            max_new_tokens=8192,  # the released evaluator's limit for a judgment
            concurrency=256,  # a step has 1,024 comparisons, divided among the engines
            server=ServerConfig(
                tensor=8,  # on the actor's GPUs, one shard each
                gpu_memory_utilization=0.35,  # 28 of 80 GB: 4 for a shard of a 14B, the rest for the KV cache
            ),
        ),
        optim=OptimConfig(
            lr=1e-6,  # RM-NLHF, NVIDIA
            warmup_steps=10,  # as for the critic
        ),
        eval=EvalConfig(
            num_pairs=256,  # two judge calls each; a win rate's 95 % interval is then about 0.12 wide
            max_new_tokens=4096,  # as in training
            temperature=1.0,  # as in training
        ),
    )


def main(argv: list[str]) -> None:
    is_smoke, argv = smoke.take_flag(argv)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    run = parse(smoke_run(world_size) if is_smoke else actor_rlhf_8b(), argv, __doc__)
    if is_smoke:
        run = with_tiny_models(run)
    else:
        if run.genrm.model is None:
            raise UserError("genrm.model is missing: the GenRM's Hugging Face name or folder")
        require_gpus(run, num_gpus=8, gpu="h100", launch=LAUNCH)
    validate(run, world_size)
    check_actor(run)
    train(run)


def train(run: ActorRun) -> None:
    import json

    from ralign.engine.actors.actor import Actor
    from ralign.engine.training.loop import reinforce

    pairs, held_out = train_and_held_out(run, need_golden=False)
    actor = Actor.start(run, [], vocab_size=1024)
    session = actor.session
    tests, examples = actor.open_examples(held_out), actor.open_examples(pairs)
    with actor.genrm() as judge:
        wins = {"start": actor.win_rate("start", tests, judge)}
        task, watch = actor.task(examples, judge), actor.watch(tests, judge)
        reinforce(session, run, "actor", session.policy.folder, task, watch)
        wins["actor"] = actor.win_rate("actor", tests, judge)
    if session.cluster.is_first_rank:
        path = run.folder / "report" / "summary.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"win_rate": wins, "seed": run.seed}, indent=2) + "\n", encoding="utf-8")
        for name, found in wins.items():
            rate = found["win_rate"]
            show(f"{name:8} wins {rate['value']:.3f} of the comparisons" if rate else f"{name:8} no verdict")
    session.close(run)


def smoke_run(world_size: int) -> ActorRun:
    """The run in miniature, also with the judge on a server of this job."""
    run = actor_rlhf_8b()
    small = smoke.shrink(run, world_size)
    return replace(
        small,
        data=replace(small.data, max_prompt_tokens=64, world=replace(small.data.world, num_train=64)),
        critic=replace(run.critic, warmup_steps=1),
        algo=replace(small.algo, num_updates=2),
        actor=replace(run.actor, watch_every=1),
        genrm=GenRMConfig(
            kind="managed",
            max_new_tokens=24,
            temperature=0.6,
            server=ServerConfig(max_model_len=384, kv_cache_gib=0.1, max_num_seqs=16),
        ),
        memory=replace(small.memory, reserve_gib=0.0),
    )


def with_tiny_models(run: ActorRun) -> ActorRun:
    """The run with tiny models as GenRM and actor, trained once, for some seconds, in `run.out`."""
    from ralign.engine.data.chat import pair_messages
    from ralign.engine.data.prompts import load_template
    from ralign.recipes.common.tiny_sft import train_tiny_chat_model, trained_once

    folder = Path(run.out) / f"{run.name}_models"
    pairs = build_judgeworld(run.data.world)["warm_start"]
    template = load_template("compact")

    def train_genrm(path: Path) -> None:
        cases = [(pair_messages(template, pair), f"\\boxed{{{pair.gt_label}}}") for pair in pairs]
        train_tiny_chat_model(path, cases, num_steps=60)

    def train_actor(path: Path) -> None:
        cases = [((("user", prompt_text(pair)),), pair.response_A) for pair in pairs]
        train_tiny_chat_model(path, cases, model=run.model, num_steps=60)

    if run.genrm.model is None:
        run = replace(run, genrm=replace(run.genrm, model=trained_once(folder / "genrm", train_genrm)))
    if run.model.hf_path is None:
        run = replace(run, model=replace(run.model, hf_path=trained_once(folder / "actor", train_actor)))
    return run


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
