"""The actor's recipe, cut short, with a GenRM in the same processes: a second engine, whose weights stay."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.config.run import ModelConfig
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.runtime.errors import UserError
from ralign.recipes import actor_rlhf_mini
from ralign.recipes.common.tiny_sft import train_tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification

pytestmark = pytest.mark.usefixtures("two_gpus")  # on a GPU machine; on a CPU nothing is needed

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "actor_rlhf_mini.py"
SHORT = [
    "sft.num_steps=4", "num_steps=2", "algo.num_prompts=4", "algo.num_samples=4", "eval.num_pairs=16",
    "data.world.num_train=400", "data.world.num_dev=16", "data.world.num_test=16", "rollouts_every=1",
    "generator.max_new_tokens=24", "eval.max_new_tokens=24", "genrm.max_new_tokens=16",
]  # fmt: skip


@pytest.mark.slow
def test_an_actor_is_trained_by_the_oracle_and_by_a_genrm_that_stays_as_it_was(tmp_path):
    genrm = tmp_path / "genrm"
    pairs = build_judgeworld(JudgeWorldConfig(num_train=200, num_warm_start=1, num_dev=1, num_test=1))[
        "train"
    ]
    template = load_template("compact")
    model = ModelConfig(
        num_layers=1, hidden_size=64, ffn_hidden_size=128, num_attention_heads=2, num_query_groups=1
    )
    train_tiny_model(
        genrm,
        [(render(template, pair), f"\\boxed{{{pair.gt_label}}}") for pair in pairs],
        model=model,
        num_steps=30,
    )
    weights = next(genrm.glob("*.safetensors"))
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        str(SCRIPT),
    ]
    done = subprocess.run(
        [*command, f"out={tmp_path}", f"genrm.model={genrm}", *SHORT],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "the GenRM's weights are unchanged: checksum" in done.stdout + done.stderr
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
    folder = tmp_path / "actor_rlhf_mini"
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert list(summary["actors"]) == ["sft", "oracle", "genrm"]
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [name, "quality"] for name in summary["actors"]
    ]
    assert all(0 <= actor["quality"]["value"] <= 1 for actor in summary["actors"].values())
    oracle, paid = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("oracle", "genrm")
    )
    assert len(oracle) == len(paid) == 2
    for step in oracle:
        assert step["reward/mean"] == pytest.approx(step["actor/quality"]) and step["judge/num_calls"] == 0
    for step in paid:
        assert step["judge/num_comparisons"] == 16  # four circles of four
        assert step["judge/num_calls"] + step["judge/num_same"] == 16
        assert math.isfinite(step["policy/loss"]) and math.isfinite(step["actor/quality"])
    lines = (folder / "genrm" / "rollouts" / "step00001.jsonl").read_text().splitlines()
    assert len(lines) == 16 and {"reward", "quality", "cue"} <= json.loads(lines[0]).keys()
    said = [one for line in lines for one in json.loads(line).get("comparisons", [])]
    assert 0 < len(said) <= 8 and all(one["A"]["text"] != one["B"]["text"] for one in said)
    # The same start and the same seed: before the first update both actors say the same.
    assert oracle[0]["actor/quality"] == paid[0]["actor/quality"]


@pytest.mark.slow
@pytest.mark.parametrize(("advantages", "num_steps"), [("grpo", 10), ("gae", 16)])
def test_rewarded_by_the_oracle_true_quality_rises(tmp_path, advantages, num_steps):
    """The recipe as it is, cut short; 95 % intervals over 256 notes that no training saw do not touch."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = [f"out={tmp_path}", f"algo.advantages={advantages}", f"num_steps={num_steps}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), *settings],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "actor_rlhf_mini"
    actors = json.loads((folder / "report" / "summary.json").read_text())["actors"]
    before, after = actors["sft"]["quality"], actors["oracle"]["quality"]
    assert after["low"] > before["high"], (before, after)
    steps = [json.loads(line) for line in (folder / "oracle" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == num_steps and ("critic/loss" in steps[0]) == (advantages == "gae")


@pytest.mark.slow
def test_an_actor_is_trained_by_ppo_with_one_answer_a_prompt_and_a_reward_model_as_critic(tmp_path):
    shape = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=1, head_dim=32, vocab_size=1100, num_labels=1)  # fmt: skip
    config = AutoConfig.for_model("qwen3", **shape)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward_model")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    ppo = ["algo.advantages=gae", "algo.num_samples=1", "algo.num_prompts=8", "critic.warmup_steps=1"]
    ppo.append(f"critic.hf_path={tmp_path}/reward_model")
    done = subprocess.run(
        [*launch, str(SCRIPT), f"out={tmp_path}", *SHORT, *ppo],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "actor_rlhf_mini" / "oracle"
    first, second = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert "policy/loss" not in first and math.isfinite(second["policy/loss"])
    for step in (first, second):
        assert math.isfinite(step["critic/loss"]) and step["critic/grad_norm"] > 0
        # The policy's moments come with its first update.
        assert 0 < step["memory/critic_held_gib"] <= step["memory/critic_held_predicted_gib"]
    exported = AutoModelForSequenceClassification.from_pretrained(folder / "critic_hf")
    assert exported.num_labels == 1 and exported.config.hidden_size == 64


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("genrm.model=/nowhere", "genrm.model=/nowhere: no Hugging Face folder"),
        ("actor.error_rate=2", "actor.error_rate is a share from 0 to 1, got 2"),
        ("actor.genrm=/nowhere", "actor.genrm is now genrm.model: give genrm.model=/nowhere"),
    ],
)
def test_mistakes_are_refused_before_anything_is_built(tmp_path, monkeypatch, override, named):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=named):
        actor_rlhf_mini.main([override, f"out={tmp_path}"])
    assert list(tmp_path.iterdir()) == []
