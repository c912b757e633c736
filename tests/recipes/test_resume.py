"""A recipe killed in one stage and asked to stop in the next ends with the files of one that ran through."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ralign.engine.checkpoint import export
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.tiny_sft import train_tiny_model
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "sft.competence=0", "arms=rlvr,r_align",
    "sft.num_steps=3", "num_steps=8", "algo.num_prompts=4", "algo.num_samples=2", "eval.num_pairs=4",
    "data.world.num_train=64", "data.world.num_warm_start=64", "data.world.num_dev=8", "data.world.num_test=8",
    "generator.max_new_tokens=24", "eval.max_new_tokens=8", "rollouts_every=0", "model.num_layers=2",
    # A model that answers nothing readable learns from these alone.
    "algo.entropy_coef=0.01", "algo.kl_coef=0.05", "checkpoint_every=1",
]  # fmt: skip


# More layouts, by name: RALIGN_RESUME_LAYOUTS=tp2-fp32,tp2-bf16,dp2-fp32,dp2-bf16,pp2-fp32,pp2-bf16
LAYOUTS = os.environ.get("RALIGN_RESUME_LAYOUTS", "one-fp32").split(",")


class Job:
    """The recipe on one process or, where the layout says 2, on two, without a launcher that catches signals."""

    def __init__(
        self, out: Path, layout: str, recipe: str = "r_align_mini", settings: Sequence[str] = SETTINGS
    ):
        cut, dtype = layout.split("-")
        settings = [f"out={out}", *settings, f"parallel.dtype={dtype}"]
        settings += {"tp": ["parallel.tensor=2"], "pp": ["parallel.pipeline=2"]}.get(cut[:2], [])
        world_size = 2 if cut.endswith("2") else 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        world = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.errors = out / f"errors{len(list(out.glob('errors*')))}.txt"
        with self.errors.open("w") as errors:
            self.ranks = [
                subprocess.Popen(
                    [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *settings],
                    env={
                        **os.environ,
                        **world,
                        "OMP_NUM_THREADS": "1",
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                    },
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
                for rank in range(world_size)
            ]

    def interrupt(self, stage: Path, number: int) -> None:
        """Send the signal to every rank in the stage's fifth step: a checkpoint is complete by then."""
        deadline_s = time.monotonic() + 300
        while num_steps_of(stage) < 4 and self.ranks[0].poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        for rank in self.ranks:
            rank.send_signal(number)

    def finish(self, status: int) -> str:
        """What it said, when every rank has ended with this status."""
        statuses = [rank.wait(timeout=400) for rank in self.ranks]
        said = self.errors.read_text()
        assert statuses == [status] * len(self.ranks), said[-5000:]
        return said


def num_steps_of(stage: Path) -> int:
    path = stage / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def without_times(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time_s/", "memory/"))} for line in lines]


@pytest.fixture(scope="module", params=LAYOUTS)
def runs(tmp_path_factory, request) -> dict[str, Path]:
    """Run folders: `whole` ran through; `cut` was killed in rlvr, asked to stop in r_align, and then finished."""
    outs = {name: tmp_path_factory.mktemp(name) for name in ("whole", "cut")}
    folders = {name: out / "r_align_mini" for name, out in outs.items()}
    Job(outs["whole"], request.param).finish(0)

    killed = Job(outs["cut"], request.param)
    killed.interrupt(folders["cut"] / "rlvr", signal.SIGKILL)
    killed.finish(-signal.SIGKILL)
    assert not (folders["cut"] / "finished.json").exists()

    stopped = Job(outs["cut"], request.param)
    stopped.interrupt(folders["cut"] / "r_align", signal.SIGTERM)
    said = stopped.finish(0)
    assert "rlvr continues after step" in said and "stopped on request: saved step" in said
    assert "Traceback" not in said

    assert "r_align continues after step" in Job(outs["cut"], request.param).finish(0)
    return folders


@pytest.mark.slow
def test_metrics_are_those_of_a_run_that_was_not_cut(runs):
    for stage, num_steps in (("sft", 3), ("rlvr", 8), ("r_align", 8)):
        whole, cut = (without_times(runs[name] / stage / "metrics.jsonl") for name in ("whole", "cut"))
        assert len(whole) == num_steps
        assert all(step["policy/grad_norm"] > 0 for step in whole)
        assert whole == cut, stage


@pytest.mark.slow
def test_weights_and_judgments_are_the_same_to_the_bit(runs):
    for stage in ("sft", "rlvr", "r_align"):
        names = sorted(path.name for path in (runs["whole"] / stage / "hf").glob("*.safetensors"))
        assert names
        for name in [*(f"hf/{name}" for name in names), "judgments_unbiased.jsonl"]:
            whole, cut = ((runs[run] / stage / name).read_bytes() for run in ("whole", "cut"))
            assert whole == cut, (stage, name)
    assert (runs["cut"] / "finished.json").exists()


@pytest.mark.slow
def test_only_what_is_kept_is_left(runs):
    for folder in runs.values():
        for stage, last in (("sft", 3), ("rlvr", 8), ("r_align", 8)):
            names = sorted(path.name for path in (folder / stage / "checkpoints").iterdir())
            assert names == [f"step{last - 1:08d}", f"step{last:08d}"]


@pytest.mark.slow
def test_a_checkpoint_can_be_exported_on_demand(runs, tmp_path, capsys):
    export._main([str(runs["cut"] / "r_align" / "checkpoints"), str(tmp_path)])
    assert "step00000008" in capsys.readouterr().out
    exported, wanted = (
        {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}
        for folder in (tmp_path, runs["cut"] / "r_align" / "hf")
    )
    assert exported.keys() == wanted.keys()
    assert all(torch.equal(exported[name], wanted[name]) for name in wanted)
    assert (tmp_path / "tokenizer.json").exists()
    with pytest.raises(UserError, match=r"manifest\.json: No such file"):
        export._main([str(tmp_path / "nowhere"), str(tmp_path / "out")])


ACTOR_SETTINGS = [
    "sft.num_steps=3", "num_steps=8", "algo.num_prompts=4", "algo.num_samples=4", "eval.num_pairs=8",
    "data.world.num_train=400", "data.world.num_warm_start=64", "data.world.num_dev=16", "data.world.num_test=16",
    "generator.max_new_tokens=24", "eval.max_new_tokens=24", "genrm.max_new_tokens=8", "model.num_layers=2",
    "algo.entropy_coef=0.01", "algo.kl_coef=0.05", "checkpoint_every=1", "memory.offload=always",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("advantages", ["grpo", "gae"])
def test_an_actor_that_was_killed_ends_as_one_that_ran_through(tmp_path, advantages):
    """Paid by the oracle, then by a GenRM that samples its judgments in the same process."""
    world = JudgeWorldConfig(num_train=200, num_warm_start=1, num_dev=1, num_test=1)
    template = load_template("compact")
    cases = [(render(template, p), f"\\boxed{{{p.gt_label}}}") for p in build_judgeworld(world)["train"]]
    train_tiny_model(tmp_path / "genrm", cases, num_steps=60)
    settings = [f"genrm.model={tmp_path}/genrm", f"algo.advantages={advantages}", *ACTOR_SETTINGS]
    folders = {name: tmp_path / name / "actor_rlhf_mini" for name in ("whole", "cut")}

    def start(name: str) -> Job:
        (tmp_path / name).mkdir(exist_ok=True)
        return Job(tmp_path / name, "one-fp32", "actor_rlhf_mini", settings)

    start("whole").finish(0)
    killed = start("cut")
    killed.interrupt(folders["cut"] / "genrm", signal.SIGKILL)
    killed.finish(-signal.SIGKILL)
    assert "genrm continues after step" in start("cut").finish(0)
    for stage in ("oracle", "genrm"):
        whole, cut = (without_times(folders[name] / stage / "metrics.jsonl") for name in ("whole", "cut"))
        assert len(whole) == 8 and whole == cut, stage
        for file in (folders["whole"] / stage / "hf").glob("*.safetensors"):
            assert file.read_bytes() == (folders["cut"] / stage / "hf" / file.name).read_bytes(), stage
    paid = without_times(folders["whole"] / "genrm" / "metrics.jsonl")
    assert sum(step["judge/num_calls"] for step in paid) > 0
