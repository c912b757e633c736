"""The R-Align paper's argument, from random weights, on two CPU cores.

Claims: a judge trained on labels only is right for wrong reasons; R-Align prevents this; an actor trained against the
R-Align judge is better, and F-Score predicts that while label accuracy does not. Data: JudgeWorld's pairs for the
judges, its notes for the actors; an oracle measures the true quality of an actor's answers. Model: a 4-layer Qwen3 with
random weights and under a million parameters, for judges and actors.

    torchrun --nproc-per-node 2 recipes/paper_in_miniature.py
    torchrun --nproc-per-node 2 recipes/paper_in_miniature.py seed=1 name=paper_seed1
    torchrun --nproc-per-node 2 recipes/paper_in_miniature.py actors.algo.advantages=gae name=paper_ppo
    python -m ralign.recipes.paper.report runs/paper_seed*/report/summary.json --out runs/pooled

The third command trains the actors by PPO, as in the paper; the last one pools runs of several seeds.

SFT judge -> RLVR and R-Align judges, each exported at several budgets -> one actor per judge, all from one warm start
-> report/: tables, figures, index.html with transcripts. Hardware: two CPU cores, up to 40 minutes. Expected: actors
trained against RLVR judges learn bullets, but not the facts; those trained against R-Align judges learn the facts.
"""

import os
import sys

from ralign.engine.config.actor import ActorConfig, ActorRun
from ralign.engine.config.algo import AlgoConfig, CriticConfig, OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.judge import GenRMConfig, ServerConfig
from ralign.engine.config.run import DataConfig, EvalConfig, GeneratorConfig, SFTConfig
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig
from ralign.engine.runtime.entry_point import run_job
from ralign.recipes.paper.config import JudgesRun, PaperRun


def judges_run() -> JudgesRun:
    """As recipes/r_align_mini.py, which gives the reasons, except for values with a reason here."""
    return JudgesRun(
        token_budget=8192,
        data=DataConfig(
            world=JudgeWorldConfig(
                max_faults=2,  # an actor's answers have no or several faults; judges trained on one fault guess there
                cue_agreement=0.98,  # above the accuracy of reading after this warm start: the cue earns more
            )
        ),
        algo=AlgoConfig(num_prompts=32, num_samples=8, invalid_reward=0.0),
        generator=GeneratorConfig(max_new_tokens=64),
        optim=OptimConfig(lr=2.5e-4),  # at twice the rate, R-Align's judges get worse after 20 steps
        sft=SFTConfig(
            num_steps=430,
            num_samples=32,
            optim=OptimConfig(lr=2e-3, min_lr=2e-4, lr_schedule="linear", warmup_steps=50, beta2=0.98),
        ),
        eval=EvalConfig(num_pairs=384, max_new_tokens=64),
    )


def actors_run() -> ActorRun:
    return ActorRun(
        num_steps=30,
        token_budget=8192,
        data=DataConfig(max_prompt_tokens=64),
        algo=AlgoConfig(
            num_prompts=16,
            num_samples=8,
            kl_coef=0.1,  # otherwise the actor soon leaves the distribution of the judges' training
        ),
        generator=GeneratorConfig(max_new_tokens=40),  # three facts take about 20 tokens
        optim=OptimConfig(lr=2e-4),
        # With algo.advantages=gae; as recipes/actor_rlhf_mini.py, which gives the reasons.
        critic=CriticConfig(optim=OptimConfig(lr=1e-3), lam=0.95, warmup_steps=3),
        sft=SFTConfig(
            num_steps=400,
            num_samples=32,
            optim=OptimConfig(lr=2e-3, min_lr=2e-4, lr_schedule="linear", warmup_steps=50, beta2=0.98),
        ),
        eval=EvalConfig(num_pairs=256, max_new_tokens=40, temperature=1.0),  # as in training
        actor=ActorConfig(
            # A habit, since any training that sharpens the actor's distribution removes noise.
            error_rate=0.05,
            habit_rate=0.5,
            scheme="circular",
            order="agree",  # without a decisive fault, a judge has position bias
            watch_every=3,
        ),
        genrm=GenRMConfig(
            temperature=0.4,  # as in the judges' evaluation
            max_new_tokens=64,
            server=ServerConfig(max_model_len=256, kv_cache_gib=0.25),
        ),
    )


def main(argv: list[str]) -> None:
    paper = parse(PaperRun(judges=judges_run(), actors=actors_run()), argv, __doc__)
    paper.resolve(int(os.environ.get("WORLD_SIZE", "1")))
    reproduce(paper)


def reproduce(paper: PaperRun) -> None:
    from ralign.engine.data.worlds.actorworld import build_notes
    from ralign.engine.data.worlds.judgeworld import TESTS, build_judgeworld, warm_start_judgments
    from ralign.engine.evaluation.baselines import baselines_of
    from ralign.engine.training.loop import warm_start
    from ralign.recipes.paper.experiment import PaperExperiment
    from ralign.recipes.paper.report import write_paper_report
    from ralign.recipes.paper.transcripts import transcripts

    world, notes = build_judgeworld(paper.judges.data.world), build_notes(paper.actors.data.world)
    experiment = PaperExperiment(paper, world["train"], vocab_size=1024)
    session, judges = experiment.session, experiment.judges

    demonstrations = judges.examples(world["warm_start"])
    golden_and_cue = warm_start_judgments(
        [example.pair for example in demonstrations],
        golden_share=paper.judges.sft.golden_share,
        seed=paper.seed,
    )
    sft = warm_start(session, paper.judges, "sft", demonstrations, golden_and_cue)
    tests = {name: judges.examples(world[name]) for name in TESTS}
    folders, results = experiment.train_judges(sft, judges.examples(world["train"]), tests)

    actor = experiment.switch_to_actors()
    train, test = actor.note_examples(notes["train"]), actor.note_examples(notes["in_distribution"])
    start = actor.warm_start("start", notes["warm_start"])
    actors = {"start": {"judge": None, **actor.evaluate("start", test), "steps": []}}
    for judge, folder in folders.items():
        trained = experiment.train_actor(f"by_{judge}", start, train, test, folder)
        actors[f"by_{judge}"] = {"judge": judge, **trained}

    if session.cluster.is_first_rank:
        shown = transcripts(paper.actors.folder, actors, {note.id: note for note in notes["train"]})
        write_paper_report(
            paper.folder,
            results,
            actors,
            shown,
            seed=paper.seed,
            time_s=session.progress.time_s,
            baselines=baselines_of(
                {test: [example.pair for example in examples] for test, examples in tests.items()}
            ),
        )
    experiment.close()


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
