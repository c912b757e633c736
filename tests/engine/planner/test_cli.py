"""ralign-plan: tables and JSON, refusal with numbers and advice, and a recipe's start without its GPUs."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import MetaRMConfig
from ralign.engine.config.run import DataConfig, GeneratorConfig, GenRMRun, ModelConfig, ParallelConfig, Run
from ralign.engine.planner import cli
from ralign.engine.planner.hardware import _RANGES, Constants, chip_of, read_constants
from ralign.engine.planner.judges import GIB
from ralign.engine.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def make_run(model: str = "Qwen3-32B", **parallel) -> GenRMRun:
    parallel = {"tensor": 8, "sequence": True, "dtype": "bf16"} | parallel
    return GenRMRun(
        name="test",
        token_budget=16384,
        model=ModelConfig(hf_path=f"models/{model}"),
        parallel=ParallelConfig(**parallel),
        data=DataConfig(max_prompt_tokens=6144),
        algo=AlgoConfig(num_prompts=256, num_samples=8, kl_coef=1e-3),
        generator=GeneratorConfig(max_new_tokens=8192, kv_cache_gib=0),
    )


def plan(run: Run, num_gpus: int, gpu: str) -> dict:
    return cli.plan(run, num_gpus, chip_of(gpu), Constants())


def test_32b_on_one_node_of_h100_is_refused_with_what_would_do():
    report = plan(make_run(), 8, "h100")
    assert any("update needs" in problem and "of 79.2 GiB" in problem for problem in report["problems"])
    assert report["nearest"] is None and not report["best"]
    assert "no layout of 8 such GPUs fits; 16 GPUs are enough" in report["refusal"]


def test_a_host_that_is_too_small_is_named_in_the_refusal():
    report = cli.plan(make_run("Qwen3-8B"), 8, chip_of("h100"), Constants(), host_gb=4)
    assert (
        "(79 GiB): " in report["refusal"] and "of pinned host memory per GPU, of 3.7 GiB" in report["refusal"]
    )


def test_32b_without_tensor_parallelism_names_the_nearest_layout():
    report = plan(make_run(tensor=1, sequence=False), 16, "h200")
    near = report["nearest"]
    assert "learn needs" in report["refusal"] and "nearest layout that fits: parallel." in report["refusal"]
    assert all(total <= chip_of("h200").memory_bytes for total in near["total_bytes"].values())


def test_where_only_the_judges_server_is_in_the_way_the_refusal_says_that_it_could_sleep():
    run = make_run("Qwen3-8B", tensor=4)
    run.metarm = MetaRMConfig(kind="managed", model="org/name")
    refusal = plan(run, 8, "h100")["refusal"]
    assert "learn needs" in refusal and "with metarm.server.sleep_level=1 it fits" in refusal
    run.metarm.server.sleep_level = 1
    assert plan(run, 8, "h100")["problems"] == []
    # What does not fit without the judge either is not its fault.
    large = make_run()
    large.metarm = run.metarm
    assert "sleep_level" not in plan(large, 8, "h100")["refusal"]


def test_a_token_budget_far_too_large_is_refused_by_its_activations():
    run = make_run()
    run.token_budget = 1 << 20
    report = plan(run, 8, "h200")
    learn = report["layout"]["memory_bytes"]["learn"]
    assert learn["activations"] > 100 * GIB and "learn needs" in report["refusal"]
    assert report["nearest"] is None or report["nearest"]["recompute"]


def test_a_kv_cache_that_holds_no_sequence_is_refused():
    run = make_run()
    run.memory.offload = "never"
    report = plan(run, 8, "82GB")
    assert any(
        "for the KV cache, one sequence of 14336 tokens needs 0.44 GiB" in p for p in report["problems"]
    )


def test_offload_recomputation_and_slow_layouts_are_called_wasteful():
    run = make_run("Qwen3-8B", tensor=1, context=8, sequence=False, recompute=True)
    run.memory.offload, run.generator.kv_cache_gib = "always", 4.0
    report = plan(run, 8, "b200")
    assert not report["problems"]
    advice = " ".join(report["advice"])
    assert "memory.offload=always is unnecessary" in advice
    assert "activations fit without it" in advice
    assert "is predicted" in advice and "times as fast" in advice


def test_a_pipeline_with_few_micro_batches_is_called_wasteful():
    run = make_run("Qwen3-8B", tensor=1, pipeline=4, sequence=False, recompute=True)
    run.algo.num_prompts, run.token_budget = 16, 32768
    assert any("pipeline bubble" in line for line in plan(run, 8, "b200")["advice"])


def test_the_best_three_fit_and_intricate_ones_must_earn_their_place():
    report = plan(make_run(), 16, "h200")
    first, *others = report["best"]
    assert len(others) == 2
    for other in others:
        if other["pipeline"] * other["context"] <= first["pipeline"] * first["context"]:
            assert other["time_s"]["total"] >= 0.9 * first["time_s"]["total"]
    for layout in report["best"]:
        assert max(layout["total_bytes"].values()) <= chip_of("h200").memory_bytes
        assert layout["tensor"] * layout["pipeline"] * layout["context"] * layout["data"] == 16


def test_more_gpus_give_more_tokens_a_day():
    days = [plan(make_run(), num_gpus, "h200")["layout"]["tokens_a_day"] for num_gpus in (8, 64, 256)]
    assert days[0] < days[1] < days[2] and days[2] < 32 * days[0]


def test_measured_constants_replace_the_assumed_ones(tmp_path):
    path = tmp_path / "constants.json"
    path.write_text('{"train_efficiency": 0.2}')
    slower = cli.plan(make_run(), 8, chip_of("h200"), read_constants(path))["layout"]["time_s"]
    assert slower["learn"] > 1.8 * plan(make_run(), 8, "h200")["layout"]["time_s"]["learn"]
    path.write_text('{"train_eficiency": 0.2}')
    with pytest.raises(UserError, match="train_eficiency=0.2; expected numbers named"):
        read_constants(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"judge_s": -1}', "judge_s=-1; expected a number from 0 to 1e+06"),
        ('{"judge_s": 1e999}', "judge_s=inf; expected a number"),
        ('{"judge_s": NaN}', "judge_s=nan; expected a number"),
        (f'{{"judge_s": 1{"0" * 400}}}', f"judge_s=1{'0' * 79}; expected a number"),
        ('{"judge_s": true}', "judge_s=True; expected a number"),
        (f'{{"judge_s": "{"x" * 5000}"}}', f"judge_s='{'x' * 79}; expected a number"),
        ('{"train_efficiency": 0}', "train_efficiency=0; expected a number from 1e-06 to 100"),
        ('{"train_efficiency": 1e-320}', "train_efficiency=1e-320; expected a number"),
        ('{"mean_prompt": 7}', "mean_prompt=7; expected a number from 1e-06 to 1"),
        ('{"mean_response": 0}', "mean_response=0; expected a number from 1e-06 to 1"),
        ('{"gpus_per_node": 0.5}', "gpus_per_node=0.5; expected a whole number from 1 to 1e+06"),
        (f'{{"{"x" * 5000}": 1}}', f"{'x' * 80}=1; expected numbers named"),
    ],
    ids=lambda text: text[:30],
)
def test_constants_out_of_range_are_named(tmp_path, text, message):
    path = tmp_path / "constants.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_constants(path)


@pytest.mark.parametrize("extreme", [0, 1])
def test_a_plan_with_constants_at_their_bounds_is_finite(tmp_path, extreme):
    path = tmp_path / "constants.json"
    bounds = {name: ends[extreme] for name, ends in _RANGES.items() if not name.endswith("tokens")}
    path.write_text(json.dumps(bounds))
    report = cli.plan(make_run(), 8, chip_of("h200"), read_constants(path))
    json.dumps(report, allow_nan=False)


def test_mean_lengths_are_taken_in_tokens_and_are_at_most_the_longest():
    argv = ["r_align_32b", "--gpus=8", "--gpu=h200"]
    half = cli.report_of(argv)["layout"]
    known = cli.report_of([*argv, "--mean-prompt-tokens=3072", "--mean-new-tokens=4096"])["layout"]
    assert known["time_s"] == pytest.approx(half["time_s"])  # what the default shares come to
    with pytest.raises(UserError, match="mean_new_tokens must be 0 .* to 8192, .* got 9000"):
        cli.main([*argv, "--mean-new-tokens=9000"])
    with pytest.raises(UserError, match="--mean-prompt-tokens: '-1' is not a finite number of at least 0"):
        cli.main([*argv, "--mean-prompt-tokens=-1"])


def test_terms_are_printed_for_the_asked_layout_and_the_best(capsys):
    cli.main(["r_align_32b", "--gpus=8", "--gpu=h200", "--terms"])
    shown = capsys.readouterr().out
    asked, best = shown.split("\nterms of ")[1:]
    assert asked.startswith("t8 p1 c1 d1, offload ") and best.startswith("t8 p1 c1 d1, generate 4, offload ")
    for line in ("KV cache of ", "4.8 TB/s x 0.6", "989 TFLOP/s x 0.4", "15 us each"):
        assert line in asked
    assert "weights received" in best and "weights received" not in asked  # shared: nothing is moved
    cli.main(["r_align_32b", "--gpus=8", "--gpu=h200"])
    assert "terms of" not in capsys.readouterr().out


def test_an_unknown_gpu_recipe_or_model_is_one_line():
    with pytest.raises(UserError, match="--gpu must be one of a100, .* got 'v100'"):
        chip_of("v100")
    with pytest.raises(UserError, match="recipe nothing: no such file"):
        cli.recipe_run("nothing")
    with pytest.raises(UserError, match="no published model of that name"):
        plan(make_run("Unknown-7B"), 8, "h100")
    assert chip_of("48GB").memory_bytes == 48_000_000_000


MISTAKES = [
    (["x.txt", "--gpus=8"], "recipe x.txt: expected a Python file, whose name ends in .py"),
    (["syntax.py", "--gpus=8"], "syntax.py:1: "),
    (["nul.py", "--gpus=8"], "source code string cannot contain null bytes"),
    (["latin.py", "--gpus=8"], "latin.py"),
    (["empty.py", "--gpus=8"], "recipe empty.py: no function without arguments annotated `-> Run`"),
    (["folder.py", "--gpus=8"], "recipe folder.py: no such file"),
    (["/dev/zero", "--gpus=8"], "recipe /dev/zero: no such file"),
    (["x" * 5000, "--gpus=8"], "no such file and no recipe of that name"),
    (["r_align_32b"], "the following arguments are required: --gpus"),
    (["r_align_32b", "--gpus=0"], "argument --gpus: '0' is not a whole number from 1 to 1000000"),
    (["r_align_32b", "--gpus=99999999999"], "argument --gpus: '99999999999' is not a whole number"),
    (
        ["r_align_32b", "--gpus=8", "--host-gb=nan"],
        "argument --host-gb: 'nan' is not a finite number above 0",
    ),
    (["r_align_32b", "--gpus=8", "--mean-prompt-tokens=inf"], "'inf' is not a finite number of at least 0"),
    (["r_align_32b", "--gpus=8", "parallel.tensor=0"], "parallel.tensor must be at least 1, got 0"),
    (["r_align_32b", "--gpus=8", "token_budget=0"], "exceeds token_budget = 0"),
    (["r_align_32b", "--gpus=8", "memory.reserve_gib=1e308"], "memory.reserve_gib must be at most 1000000"),
    (["r_align_32b", "--gpus=8", "model.hf_path=broken"], "broken/config.json: not JSON"),
    (
        ["r_align_mini", "--gpus=2", "optim.lr=x", "qq=1"],
        "2 mistakes: optim.lr=x: expected a number; unknown",
    ),
    (["r_align_32b", "--gpus=8", "--gpu="], "or a memory size in GB, got ''"),
    (["r_align_32b", "--gpus=8", "--gpu=-1"], "or a memory size in GB, got '-1'"),
    (["r_align_32b", "--gpus=8", "--gpu=８５"], "or a memory size in GB, got '８５'"),
    (["r_align_32b", "--gpus=8", f"--gpu={'9' * 5000}"], f"got '{'9' * 80}'"),
    (["r_align_32b", "--gpus=8", "--gpu=\x1b[31m"], r"got '\x1b[31m'"),
    (["r_align_32b", "--gpus=8", "--constants=/dev/zero"], "cannot read /dev/zero: it is not a regular file"),
    (["r_align_32b", "--gpus=8", "--constants=list.json"], "list.json: expected a JSON object, got list"),
    (["r_align_32b", "--gpus=8", "--constants=cut.json"], "cut.json: not JSON ("),
    (["raises.py", "--gpus=8"], "raises.py:1: ZeroDivisionError: division by zero"),
    (["exits.py", "--gpus=8"], "exits.py:2: SystemExit: 3"),
    (["lacks.py", "--gpus=8"], "lacks.py:1: ImportError: cannot import name 'Nothing'"),
    (["calls.py", "--gpus=8"], "calls.py:6: TypeError: "),
    (["returns.py", "--gpus=8"], "recipe returns.py: f() must return a Run, got int"),
    (
        ["r_align_32b", "--gpus=8", "--mean-new-tokens=1e-320"],
        "mean_new_tokens must be 0 (unknown) or from 1",
    ),
    (
        ["r_align_mini", "--gpus=2", f"algo.num_samples=1{'0' * 400}"],
        "algo.num_samples must be a whole number",
    ),
    (["r_align_mini", "--gpus=2", "token_budget=9223372036854775808"], "64 bits, got 9223372036854775808"),
    (["r_align_mini", "--gpus=2", "model.num_layers=1000000000"], "model.num_layers must be a whole number"),
    (["r_align_mini", "--gpus=2", "name=\x1b[31m/"], r"name must name a folder inside out, got '\x1b[31m/'"),
    (["\x1b[31m.py", "--gpus=2"], r"recipe \x1b[31m.py: no such file"),
]


RECIPE = b"from ralign.engine.config.run import Run\n\n\ndef f() -> Run:\n    # the settings\n"


@pytest.mark.parametrize(
    ("argv", "message"), MISTAKES, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_every_mistake_is_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    files = {
        "x.txt": b"x",
        "syntax.py": b"def f(:\n",
        "nul.py": b"\0",
        "latin.py": b"# \xff\n",
        "empty.py": b"",
        "list.json": b"[]",
        "cut.json": b'{"judge_s": 1',
        "raises.py": b"1 / 0\n",
        "exits.py": b"import sys\nsys.exit(3)\n",
        "lacks.py": b"from ralign.engine.config.run import Nothing\n",
        "calls.py": RECIPE + b"    return Run(nothing=1)\n",
        "returns.py": RECIPE + b"    return 5\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"a":')
    monkeypatch.setattr(sys, "argv", ["ralign-plan", *argv])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        cli.entry_point()
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("error: ") and message in shown.err


def test_a_recipe_of_ralign_is_imported_by_its_name_and_a_users_own_from_its_file(tmp_path, monkeypatch):
    found = list(sys.path)
    monkeypatch.setattr(sys, "path", list(found))
    monkeypatch.delitem(sys.modules, "ralign.recipes.rlvr_14b", raising=False)
    for recipe in ("rlvr_14b", str(ROOT / "recipes" / "rlvr_14b.py")):
        assert cli.recipe_run(recipe).name == "rlvr_14b"
    assert "ralign.recipes.rlvr_14b" in sys.modules and sys.path == found

    (tmp_path / "neighbour_of_mine.py").write_text("NUM_STEPS = 7\n")
    (tmp_path / "mine.py").write_text(
        "from neighbour_of_mine import NUM_STEPS\nfrom ralign.engine.config.run import Run\n\n\n"
        "def mine() -> Run:\n    return Run(num_steps=NUM_STEPS)\n"
    )
    assert cli.recipe_run(str(tmp_path / "mine.py")).num_steps == 7
    monkeypatch.delitem(sys.modules, "neighbour_of_mine")


def run_command(*command: str, **env: str) -> tuple[subprocess.CompletedProcess, float]:
    """The finished process and the CPU seconds it took (others may use the machine)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **env},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


ENTRY = "import ralign.engine.planner.cli as c; c.entry_point()"


def test_the_command_prints_tables_and_json_and_ends_with_what_it_found():
    done, _ = run_command("-c", ENTRY, "r_align_32b", "--gpus", "8", "--gpu", "h200")
    assert done.returncode == 0, done.stderr
    for text in ("GiB a GPU", "kv_cache", "pinned host memory", "tokens a day", "Best layouts that fit"):
        assert text in done.stdout
    done, _ = run_command("-c", ENTRY, "r_align_32b", "--gpus", "8", "--gpu", "h100", "--json")
    assert done.returncode == 2 and "16 GPUs are enough" in done.stderr
    report = json.loads(done.stdout)
    assert report["layout"]["total_bytes"]["update"] > report["chip"]["memory_bytes"]
    done, seconds = run_command("-c", ENTRY, "--help")
    assert done.returncode == 0 and "--gpus" in done.stdout and seconds < 2


def test_the_recipe_without_gpus_says_what_it_needs_and_found():
    done, seconds = run_command(str(ROOT / "recipes" / "r_align_32b.py"))
    assert done.returncode == 2
    assert "needs 8 x h200" in done.stderr and "found 0 GPU(s) here and 1 process(es)" in done.stderr
    assert "optimizer" in done.stderr and "kv_cache" in done.stderr  # the memory table
    assert seconds < 10
