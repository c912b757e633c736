"""Two RL steps of a model with an 8B's layers, of which it has a few: the memory ledger beside what the driver counts.

    torchrun --nproc-per-node 1 benchmarks/one_step.py RESULT.json [--vocab-size N] [field.sub=value ...]

Algorithm and dtype are those of recipes/r_align_8b.py, weights are drawn, pairs come from JudgeWorld and a rule judges.
Optimizer state and KV cache leave the GPU in each step. RESULT.json has the second step's metrics (in the first,
kernels compile and Adam's moments are made) and the memory phases of the start; no checkpoint is written.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.run import DataConfig, EvalConfig, GeneratorConfig, GenRMRun, ModelConfig
from ralign.engine.config.validation import validate
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.runtime.entry_point import run_main
from ralign.recipes.common.tiny_sft import trained_once
from ralign.recipes.r_align_32b import r_align_run

NUM_STEPS = 2


def run_of_8b_layers() -> GenRMRun:
    run = r_align_run("one_step", "models/Qwen3-8B", tensor=1)
    return replace(
        run,
        num_steps=NUM_STEPS,
        rollouts_every=0,
        resume="never",
        model=ModelConfig(
            num_layers=4,  # with both embeddings 2 billion weights: 36 GiB of state in bf16, which 80 GB hold
            hidden_size=4096,
            ffn_hidden_size=12288,
            num_attention_heads=32,
            num_query_groups=8,
            head_dim=128,
            rope_theta=1e6,
            tie_embeddings=False,
            max_position_embeddings=4096,
        ),
        parallel=replace(run.parallel, sequence=False),  # which needs tensor parallelism
        memory=replace(run.memory, offload="always", kv_sleep="always"),
        data=DataConfig(world=JudgeWorldConfig(num_train=64, num_warm_start=8, num_dev=8, num_test=8)),
        # Drawn weights never end an answer: each has all of its tokens, and none has a verdict.
        generator=GeneratorConfig(max_new_tokens=512, kv_cache_gib=24, max_num_seqs=128),
        algo=replace(
            run.algo, num_prompts=16, num_samples=8, entropy_coef=0.01
        ),  # rewards alone give no gradient
        eval=EvalConfig(max_new_tokens=512),  # not run, but the engine is made for the longest answer
        metarm=MetaRMConfig(template="compact"),
    )


def draw_model(folder: Path, model: ModelConfig, vocab_size: int, texts: list[str]) -> None:
    """A Hugging Face folder, drawn in bf16, on the GPU if there is one; the vocabulary outgrows the tokenizer's."""
    import torch
    from ralign.engine.data.tokenizer import build_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer(texts, folder, 1024)
    config = AutoConfig.for_model(
        model.family, vocab_size=max(vocab_size, len(tokenizer)), num_hidden_layers=model.num_layers,
        hidden_size=model.hidden_size, intermediate_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads, num_key_value_heads=model.num_query_groups,
        head_dim=model.head_dim, rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        rms_norm_eps=model.norm_eps, tie_word_embeddings=model.tie_embeddings,
        max_position_embeddings=model.max_position_embeddings, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tokenizer.save_pretrained(folder)


def steps(run: GenRMRun, pairs: list) -> dict:
    """Metrics of the last step, with the memory of its phases and of the start."""
    from ralign.engine.training.genrm import GenRM
    from ralign.engine.training.trainer import Trainer

    genrm = GenRM.start(run, pairs, vocab_size=1024)
    session = genrm.session
    measured = session.memory.metrics()
    session.begin_training()
    trainer = Trainer(session, run, genrm.task(genrm.examples(pairs)))
    for _ in range(NUM_STEPS):
        metrics, _ = trainer.step()
        memory = session.memory.metrics()
    session.close(run)
    return measured | metrics | memory


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--vocab-size", type=int, default=151_936)
    args, overrides = parser.parse_known_args(argv)
    result = args.result.resolve()
    run = parse(replace(run_of_8b_layers(), out=str(result.parent)), overrides, __doc__)
    pairs = build_judgeworld(run.data.world)["train"]
    template = load_template(run.data.template)
    texts = [text for pair in pairs for text in (render(template, pair), pair.gt_judgment)]
    folder = result.parent / "model"
    trained_once(folder, lambda draft: draw_model(draft, run.model, args.vocab_size, texts))
    run = replace(run, model=replace(run.model, hf_path=str(folder)))
    validate(run, int(os.environ.get("WORLD_SIZE", "1")))
    metrics = steps(run, pairs)
    if int(os.environ.get("RANK", "0")) == 0:
        result.write_text(json.dumps({"metrics": metrics, "run": asdict(run)}, indent=2) + "\n")
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
