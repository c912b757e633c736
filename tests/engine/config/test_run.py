import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import pytest
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import GeneratorConfig, ModelConfig, ParallelConfig, Run, save_config
from ralign.engine.config.validation import validate
from ralign.engine.runtime import entry_point
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError

_RECIPE = """
import sys
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import Run
from ralign.engine.config.validation import validate
from ralign.engine.runtime.entry_point import run_main
def main(argv):
    run = parse(Run(num_steps=7), argv, "A recipe of the tests.")
    validate(run, world_size=2)
    heavy = {"torch", "vllm", "megatron", "transformers", "matplotlib"} & set(sys.modules)
    assert not heavy, heavy
    print("ran", run.num_steps)
if __name__ == "__main__":
    run_main(main)
"""


def _leaves(node, prefix=""):
    for item in fields(node):
        value = getattr(node, item.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def _recipe(tmp_path, *argv, **env):
    path = tmp_path / "recipe.py"
    path.write_text(_RECIPE)
    start_s = _children_s()
    done = subprocess.run(
        [sys.executable, path, *argv], env=os.environ | env, capture_output=True, text=True, timeout=60
    )
    return done, _children_s() - start_s


def _children_s():
    """Processor time of the processes run so far: unlike the clock it is the same on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_overrides_of_every_spelling():
    argv = ["optim.lr=2e-6", "--sft.optim.lr", "-1", "--algo.num-prompts=16", "parallel.sequence=true"]
    argv += ["algo.tis_cap=none", "data.train=a=b.jsonl", "name=x", "name=y", "data.world.num_facts=3"]
    run = parse(Run(), argv)
    assert (run.optim.lr, run.sft.optim.lr, run.algo.num_prompts) == (2e-6, -1.0, 16)
    assert run.parallel.sequence is True and run.algo.tis_cap is None
    assert (run.data.train, run.name, run.data.world.num_facts) == ("a=b.jsonl", "y", 3)


def test_without_overrides_the_recipe_s_values_stay_and_the_default_is_not_touched():
    default = Run(num_steps=7, model=ModelConfig(num_layers=2))
    assert parse(default, []) == default
    parse(default, ["model.num_layers=3"])
    assert default.model.num_layers == 2


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("optim.lrr=1", "unknown setting optim.lrr=1: .*optim.lr"),
        ("lr=1", "unknown setting lr=1: .*optim.lr or sft.optim.lr"),
        ("qqqq=1", "unknown setting qqqq=1 .*--help"),
        ("optim=1", "optim is a group of settings"),
        ("optim.lr=abc", "optim.lr=abc: expected a number"),
        ("num_steps=1.5", "num_steps=1.5: expected a whole number"),
        ("parallel.sequence=maybe", "parallel.sequence=maybe: expected True or False"),
        ("algo.kl_kind=k4", "algo.kl_kind=k4: expected one of k1, k2, k3"),
        ("algo.tis_cap=x", "algo.tis_cap=x: expected a number or None"),
        ("data.world.cue_agreement=3", "data.world: cue_agreement .* got 3"),
        ("--seed", "--seed needs a value"),
        ("stray", "cannot read 'stray'"),
    ],
)
def test_what_cannot_be_parsed_is_named(token, said, capsys):
    with pytest.raises(UserError, match=said):
        parse(Run(), [token])
    assert capsys.readouterr() == ("", "")  # tyro's own box of many lines stays away


def test_all_that_cannot_be_parsed_is_named_in_one_go():
    argv = ["optim.lrr=1", "num_steps=1.5", "stray", "data.world.cue_agreement=3", "optim.lr=abc", "--seed"]
    with pytest.raises(UserError, match="^6 mistakes: ") as refused:
        parse(Run(), argv)
    for said in (
        "cannot read 'stray'",
        "--seed needs a value",
        "unknown setting optim.lrr=1",
        "num_steps=1.5: expected a whole number",
        "optim.lr=abc: expected a number",
        "data.world: cue_agreement",
    ):
        assert said in str(refused.value)


def test_a_dataclass_checks_the_final_values_only():
    """Each of the two alone would be refused: the world is too small for so many pairs."""
    run = parse(Run(), ["data.world.num_train=2000000", "data.world.num_facts=5"])
    assert run.data.world.num_train == 2000000


def test_help_is_quick_and_lists_every_field_with_meaning_and_default(tmp_path):
    done, seconds = _recipe(tmp_path, "--help", COLUMNS="100")
    assert done.returncode == 0 and seconds < 2, (seconds, done.stderr)
    assert "A recipe of the tests." in done.stdout and "optim.lr=2e-6" in done.stdout
    told = " ".join(done.stdout.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"))).split())
    told = told.partition("show this help message and exit")[2]
    for name, value in _leaves(Run(num_steps=7)):
        shown = re.escape(str(value) or "''")
        found = re.search(rf" --{re.escape(name)} \S+ (.*?) ?\(default: {shown}\)", told)
        assert found and "--" not in found[1], f"{name} is not listed with its default"
        assert found[1].count(" ") >= 1 or name == "data.world.seed", f"{name} has no meaning"


def test_mistakes_end_with_one_line_and_status_2(tmp_path):
    for token in ("optim.lrr=1", "optim.lr=abc", "generator.top_p=0.9"):
        done, _ = _recipe(tmp_path, token)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
        assert all(part in done.stderr for part in token.split("=")), done.stderr
    done, _ = _recipe(tmp_path, "num_steps=9")
    assert (done.returncode, done.stdout) == (0, "ran 9\n")


def test_other_ranks_let_rank_0_speak(tmp_path, monkeypatch, capsys):
    assert _recipe(tmp_path, "--help", RANK="1")[0].stdout == ""
    monkeypatch.setenv("RANK", "1")
    waited = []
    monkeypatch.setattr(entry_point.time, "sleep", waited.append)
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda argv: parse(Run(), argv), ["nope=1"])
    assert exit_.value.code == 2 and waited == [entry_point._GRACE_S]
    assert capsys.readouterr().err.startswith("error (rank 1): unknown setting nope=1")


def test_run_main_leaves_bugs_their_traceback():
    def main(argv):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_main(main, [])


def test_save_config_writes_what_was_resolved(tmp_path):
    run = parse(Run(), ["optim.lr=2e-6", "algo.tis_cap=None"])
    save_config(run, tmp_path / "new" / "config.json")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["optim"]["lr"] == 2e-6 and saved["algo"]["tis_cap"] is None
    assert {name for name, _ in _leaves(run)} == set(_names(saved))


def _names(tree, prefix=""):
    for name, value in tree.items():
        yield from _names(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "world_size"), [(1, 1, 1), (1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 8)]
)
def test_the_defaults_are_valid_at_every_layout(tensor, pipeline, world_size):
    run = Run(parallel=ParallelConfig(tensor=tensor, pipeline=pipeline, sequence=tensor > 1))
    validate(run, world_size)
    assert run.parallel.data_size(world_size) * tensor * pipeline == world_size


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("parallel.tensor=4", "4 [*] 1 [*] 1 does not divide the world of 2"),
        ("parallel.tensor=0", "parallel.tensor must be at least 1, got 0"),
        (
            "parallel.tensor=2 model.num_query_groups=1",
            "num_query_groups = 1 is not divisible by",
        ),
        ("parallel.tensor=2 model.num_attention_heads=3 model.num_query_groups=1", "num_attention_heads = 3"),
        ("parallel.tensor=2 model.ffn_hidden_size=33", "ffn_hidden_size = 33"),
        (
            "parallel.pipeline=2 model.num_layers=3",
            "num_layers = 3 is not divisible by parallel.pipeline = 2",
        ),
        ("parallel.sequence=True", "needs parallel.tensor > 1, got 1"),
        ("model.head_dim=31", "model.head_dim must be even .* got 31"),
        (
            "model.num_query_groups=3",
            "num_attention_heads = 4 is not divisible by model.num_query_groups = 3",
        ),
        ("algo.num_prompts=3", "algo.num_prompts = 3 is not divisible by the data-parallel size = 2"),
        ("algo.num_updates=7", "= 256 is not divisible by algo.num_updates = 7"),
        ("algo.num_samples=1", "algo.num_samples must be at least 2, got 1"),
        ("algo.num_samples=0 algo.advantages=gae", "algo.num_samples must be at least 1, got 0"),
        ("critic.optim.lr=0", "critic.optim.lr must be positive, got 0.0"),
        ("critic.lam=1.5", "critic.lam must be from 0 to 1, got 1.5"),
        ("critic.gamma=-0.1", "critic.gamma must be from 0 to 1, got -0.1"),
        ("critic.value_clip=0", "critic.value_clip must be positive .* got 0.0"),
        ("critic.warmup_steps=-1", "critic.warmup_steps must be at least 0, got -1"),
        (
            "algo.advantages=gae critic.warmup_steps=100",
            "= 100 leaves the policy no update in num_steps = 100",
        ),
        ("algo.advantages=gae algo.ratio=sequence", "algo.ratio=sequence needs one advantage per sequence"),
        ("critic.hf_path=/nowhere", "critic.hf_path=/nowhere: algo.advantages=grpo has no critic"),
        ("algo.advantages=gae critic.hf_path=/nowhere", "critic.hf_path=/nowhere: cannot read"),
        ("algo.clip_low=1.5", "algo.clip_low must be less than 1, got 1.5"),
        ("algo.dual_clip=1", "algo.dual_clip must exceed 1 .* got 1.0"),
        ("algo.tis_cap=0", "algo.tis_cap must be positive .* got 0.0"),
        ("algo.tis_level=sequence algo.tis_cap=None", "algo.tis_level=sequence needs importance weights"),
        ("algo.mask_low=0", "algo.mask_low must be positive, got 0.0"),
        ("algo.mask_low=3", "algo.mask_low must be less than algo.mask_high, got 3.0 and 2.0"),
        ("algo.clip_low=-0.1", "algo.clip_low must be at least 0, got -0.1"),
        (
            "algo.ratio=sequence algo.clip_high=0.28",
            "algo.clip_high=0.28 clips nothing with algo.ratio=sequence.* at most 0.05, or None for GSPO's 0.0004",
        ),
        ("algo.ratio=sequence algo.clip_low=0.2", "algo.clip_low=0.2 clips nothing .* GSPO's 0.0003"),
        ("algo.dynamic_sampling=-1", "algo.dynamic_sampling must be at least 0, got -1"),
        ("algo.dynamic_sampling=2 algo.advantages=gae", "algo.dynamic_sampling=2 is for group advantages"),
        (
            "algo.group=pair",
            "algo.group=pair needs algo.partner=order, .* or FILE.py:NAME: a pair has no twin",
        ),
        (
            "algo.couple=True",
            "algo.couple=True needs algo.partner=order, .* or FILE.py:NAME: a pair has no twin",
        ),
        ("algo.group=pair algo.partner=order algo.advantages=gae", "is for group advantages, got .*gae"),
        ("algo.partner=ordre", "algo.partner=ordre: expected one of order, .*, or FILE.py:NAME"),
        (
            "algo.both_orders=True",
            "is gone: algo.both_orders=True is now algo.partner=order algo.couple=True$",
        ),
        ("algo.overlong_share=1.5", "algo.overlong_share must be from 0 to 1, got 1.5"),
        ("algo.max_rollout_kl=0", "algo.max_rollout_kl must be positive, got 0"),
        (
            "algo.kl_in_reward=True algo.kl_coef=0.1",
            "algo.kl_in_reward=True needs algo.advantages=gae, got grpo",
        ),
        (
            "algo.kl_in_reward=True algo.advantages=gae",
            "algo.kl_in_reward=True needs algo.kl_coef > 0, got 0",
        ),
        (
            "algo.advantages=gae critic.warmup_steps=0",
            "critic.warmup_steps=0 lets a critic whose values are all 0",
        ),
        ("critic.policy_lam=2", "critic.policy_lam must be from 0 to 1, got 2"),
        ("critic.length_adaptive=0", "critic.length_adaptive must be positive, got 0"),
        (
            "critic.length_adaptive=1 critic.policy_lam=1",
            "critic.length_adaptive=1.0 and critic.policy_lam=1.0 both",
        ),
        ("eval.every=-1", "eval.every must be at least 0, got -1"),
        (
            "checkpoint.keep_best=1",
            "checkpoint.watch=eval/f_score is measured every eval.every=0 steps: set eval.every",
        ),
        (
            "checkpoint.keep_best=1 checkpoint.watch=reward/mean",
            "checkpoint.watch=reward/mean is of training samples",
        ),
        (
            "checkpoint.keep_best=1 eval.every=4 checkpoint_every=10",
            "eval.every=4 steps, which does not divide checkpoint_every=10",
        ),
        ("sft.num_pairs=0", "sft.num_pairs must be at least 1, got 0"),
        ("sft.keep_per_pair=0", "sft.keep_per_pair must be at least 1, got 0"),
        ("generator.top_p=0.9", "generator.top_p must be 1, got 0.9: .*biases the policy ratio"),
        ("generator.top_k=50", "generator.top_k must be -1, got 50: .*biases the policy ratio"),
        ("generator.temperature=0", "generator.temperature must be positive, got 0.0"),
        ("eval.temperature=-1", "eval.temperature must be at least 0, got -1.0"),
        ("token_budget=300", "192 [+] 128 = 320 exceeds token_budget = 300"),
        ("eval.max_new_tokens=900", "192 [+] 900 = 1092 exceeds the model's max_position_embeddings = 1024"),
        ("optim.lr=0", "optim.lr must be positive, got 0.0"),
        ("optim.lr=nan", "optim.lr must be finite, got nan"),
        ("sft.optim.beta2=1", "sft.optim.beta2 must be from 0 to less than 1, got 1.0"),
        ("optim.min_lr=1", "optim.min_lr must be from 0 to optim.lr = 1e-06, got 1.0"),
        ("sft.golden_share=1.1", "sft.golden_share must be from 0 to 1, got 1.1"),
        ("sft.num_samples=3", "sft.num_samples = 3 is not divisible by the data-parallel size = 2"),
        ("num_steps=-1", "num_steps must be at least 0, got -1"),
        ("name=a/b", "name must name a folder inside out, got 'a/b'"),
        ("data.train=/nowhere.jsonl", "data.train=/nowhere.jsonl: no such file"),
        ("model.hf_path=/nowhere", "model.hf_path=/nowhere: cannot read"),
    ],
)
def test_impossible_combinations_are_refused_with_their_values(overrides, said):
    with pytest.raises(UserError, match=said):
        validate(parse(Run(), overrides.split()), world_size=2)


def test_all_impossible_settings_are_named_in_one_go_and_no_more():
    overrides = (
        "parallel.tensor=0 model.num_layers=0 algo.num_samples=1 optim.lr=0 generator.top_p=0.9 name=a/b"
    )
    with pytest.raises(UserError) as refused:
        validate(parse(Run(), overrides.split()), world_size=2)
    assert str(refused.value).split("; ") == [
        "6 mistakes: model.num_layers must be at least 1, got 0",
        "parallel.tensor must be at least 1, got 0",
        "generator.top_p must be 1, got 0.9: truncated sampling biases the policy ratio, since the trainer's logprobs"
        " cover the whole vocabulary",
        "algo.num_samples must be at least 2, got 1: grpo compares answers to the same prompt",
        "optim.lr must be positive, got 0.0",
        "name must name a folder inside out, got 'a/b'",
    ]
    with pytest.raises(
        UserError, match="^2 mistakes: optim.lr must be finite, got nan; .*eps must be finite"
    ):
        validate(parse(Run(), ["optim.lr=nan", "optim.eps=inf"]), world_size=2)
    with pytest.raises(
        UserError, match="^2 mistakes: algo.reward=no: .*; algo.objective=none: expected one of"
    ):
        validate(parse(Run(), ["algo.reward=no", "algo.objective=none"]), world_size=2)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_of_zero_is_a_mistake_or_fine_but_never_divides(size):
    for name in (name for name, value in _leaves(Run()) if type(value) is int):
        with contextlib.suppress(UserError):
            validate(parse(Run(), [f"{name}={size}", "generator.tensor=2"]), world_size=4)


@pytest.mark.parametrize(
    "content", ["", "5", "[]", "null", '{"num_hidden_layers": 4', "[" * 100_000, "{}", "\xff"]
)
def test_a_config_json_that_describes_no_model_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    for setting in ("model.hf_path", "critic.hf_path"):
        run = parse(Run(), [f"{setting}={tmp_path}", "algo.advantages=gae"])
        with pytest.raises(UserError, match=f"^{setting}={tmp_path}: .*config.json"):
            validate(run, world_size=2)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="latin-1")
    run = parse(Run(), [f"model.hf_path={tmp_path}", "data.chat=True"])
    with pytest.raises(UserError, match="data.chat=True: .*chat template"):
        validate(run, world_size=2)


def test_a_critic_s_own_layers_must_divide_too_and_a_group_of_one_will_do(tmp_path):
    shape = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 256}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    run = parse(Run(), ["algo.advantages=gae", "algo.num_samples=1", "parallel.pipeline=2"])
    validate(run, world_size=2)
    run.critic.hf_path = str(tmp_path)
    with pytest.raises(
        UserError, match="the critic's num_layers = 3 is not divisible by parallel.pipeline = 2"
    ):
        validate(run, world_size=2)
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match="= 320 exceeds the critic's max_position_embeddings = 256"):
        validate(run, world_size=2)


def test_a_hugging_face_folder_s_shape_counts_not_the_run_s(tmp_path):
    shape = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    run = Run(model=ModelConfig(hf_path=str(tmp_path), num_query_groups=2))
    validate(run, world_size=2)
    with pytest.raises(UserError, match="num_query_groups = 1 is not divisible by parallel.tensor = 2"):
        validate(replace(run, parallel=ParallelConfig(tensor=2)), world_size=2)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json has no num_hidden_layers"):
        validate(run, world_size=2)


def test_settings_are_keyword_only_and_have_slots():
    with pytest.raises(TypeError):
        GeneratorConfig(128)
    with pytest.raises(AttributeError):
        Run().nmae = "typo"


def test_a_wrong_form_of_verdicts_is_one_line():
    run = parse(Run(), ["data.verdict=boxes"])
    with pytest.raises(
        UserError, match="data.verdict=boxes: expected one of boxed, .*or a pattern with one group"
    ):
        validate(run, 1)
