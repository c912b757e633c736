"""What the models hold on the device when the engine is built and while it runs; result to argv[1].

argv[2]: memory.offload. A real engine, and a PPO run, so that there are two models.
"""

import json
import sys
from pathlib import Path

from ralign.engine.config.algo import AlgoConfig, CriticConfig
from ralign.engine.config.run import EvalConfig, GeneratorConfig, GenRMRun, MemoryConfig, ModelConfig
from ralign.engine.config.validation import validate
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Generator
from ralign.engine.policy.offload import OffloadedState
from ralign.engine.report.metrics_log import read_metrics
from ralign.engine.training import memory, session
from ralign.engine.training.genrm import GenRM
from ralign.engine.training.loop import reinforce

MODEL = ModelConfig(num_layers=2, hidden_size=64, ffn_hidden_size=96, num_query_groups=2, head_dim=32)
WORLD = JudgeWorldConfig(num_train=8, num_warm_start=8, num_dev=8, num_test=8)


def main(result: str, offload: str) -> None:
    run = GenRMRun(
        name="run",
        out=str(Path(result).parent),
        num_steps=2,
        model=MODEL,
        algo=AlgoConfig(advantages="gae", num_prompts=2, num_samples=2),
        critic=CriticConfig(warmup_steps=1),
        generator=GeneratorConfig(max_new_tokens=8, kv_cache_gib=0.1, max_num_seqs=8),
        memory=MemoryConfig(offload=offload),
        eval=EvalConfig(num_pairs=4, max_new_tokens=8),
    )
    run.data.world = WORLD
    validate(run, 1)
    states: list[OffloadedState] = []
    gradient_bytes: list[int] = []

    class ListedState(OffloadedState):
        def __init__(self, model):
            super().__init__(model)
            states.append(self)

    class RecordedGenerator(Generator):
        def __init__(self, *args, **options):
            gradient_bytes.extend(state.gradient_bytes() for state in states)
            super().__init__(*args, **options)

    memory.OffloadedState, session.Generator = ListedState, RecordedGenerator
    pairs = build_judgeworld(WORLD)["train"]
    genrm = GenRM.start(run, pairs, vocab_size=512)
    start = genrm.session.policy.folder
    reinforce(genrm.session, run, "rl", start, genrm.task(genrm.examples(pairs), "label"))
    first = read_metrics(run.folder / "rl" / "metrics.jsonl")[0]
    held = {phase: first[f"memory/{phase}_held_gib"] for phase in ("start", "generate", "learn")}
    genrm.session.close(run)
    after = sum(state.gradient_bytes() + state.optimizer_bytes() for state in states)
    Path(result).write_text(
        json.dumps({"gradient_bytes": gradient_bytes, "held": held, "after_close": after})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
