"""The built wheel in an environment of its own: what it contains, its dependencies, and each command without torch.

An environment has the wheel, the packages that its metadata require, and nothing else. They are links to the packages
of the environment that runs the tests, so that no test but the last, which installs from a package index, needs one.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ralign.engine.config.renamed import RENAMED

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engine", "kernels", "recipes", "requirements")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SITE = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
HEAVY = ("torch", "triton", "transformers", "tokenizers", "vllm", "megatron")
PAIR = {
    "source": {"dataset": "test"},
    "conversations": [{"role": "user", "content": "How much is two and two? [box a]"}],
    "response_A": "Two and two is four.",
    "response_B": "Two and two is five.",
}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        list(map(str, command)),
        **{"env": env, "capture_output": True, "text": True, "timeout": 300} | options,
    )


def checked(*command: str | Path, **options) -> str:
    """The stdout of a command that ends with status 0."""
    done = run(*command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def pip(*arguments: str | Path, **options) -> str:
    return checked(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **options)


def copy_source(folder: Path) -> Path:
    """The files of the source tree that a build reads."""
    for name in (*FOLDERS, "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


def requirements_of(found: Distribution, extras: Sequence[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, found.requires or ()):
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": e}) for e in ("", *extras)
        ):
            yield requirement


def resolved(
    name: str, extras: Sequence[str], path: Sequence[str]
) -> list[tuple[Requirement, Distribution | None]]:
    """What a distribution requires, and what that requires, each with the distribution on `path` that has its name."""
    found: dict[str, tuple[Requirement, Distribution | None]] = {}
    waiting = [Requirement(f"{name}[{','.join(extras)}]")]
    while waiting:
        requirement = waiting.pop()
        if str(requirement) not in found:
            each = next(iter(distributions(name=requirement.name, path=list(path))), None)
            found[str(requirement)] = (requirement, each)
            waiting += requirements_of(each, tuple(requirement.extras)) if each else ()
    return list(found.values())


def make_environment(folder: Path, wheel: Path, extras: Sequence[str] = ()) -> Path:
    """An environment with the wheel and the packages that it requires; the folder of its programs."""
    checked(sys.executable, "-m", "venv", "--without-pip", folder)
    python, site = folder / "bin" / "python", folder / SITE
    pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    for _, found in resolved("ralign", extras, [str(site), *sys.path]):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"} if found else ():
            if not os.path.lexists(site / name):
                (site / name).symlink_to(Path(str(found.locate_file(name))))
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this source tree, with the C++ extension as set-up has built it (compiling takes a minute)."""
    folder = tmp_path_factory.mktemp("build")
    source, built = copy_source(folder / "source"), folder / "built" / "ralign" / "kernels"
    built.mkdir(parents=True)
    extension = f"_packing{sysconfig.get_config_var('EXT_SUFFIX')}"
    shutil.copy2(
        ROOT / "kernels" / extension, built / extension
    )  # build_ext compiles what is older than its source
    config = folder / "build.cfg"
    config.write_text(f"[build]\nbuild_lib = {folder / 'built'}\n")
    pip(
        "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source,
        env={**os.environ, "DIST_EXTRA_CONFIG": str(config)},
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel and its dependencies, without its extras."""
    return make_environment(tmp_path_factory.mktemp("light") / "venv", wheel)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    """Address of a server that answers `[box a]` with a judgment for A."""
    port_file = tmp_path_factory.mktemp("endpoint") / "port"
    server = subprocess.Popen([sys.executable, ROOT / "tests" / "programs" / "fake_endpoint.py", port_file])
    while not port_file.exists():
        assert server.poll() is None
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port_file.read_text()}/v1"
    server.kill()
    server.wait()


def write_lines(path: Path, records: Sequence[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def write_pairs(path: Path, golden: str) -> Path:
    """Two pairs: the endpoint's judgment is right on the first and wrong on the second."""
    return write_lines(
        path, [{**PAIR, "id": f"pair{side}", "gt_label": side, "gt_judgment": golden} for side in "AB"]
    )


def test_the_wheel_has_all_modules_and_the_files_that_they_read(wheel):
    sources = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    sources |= {ROOT / "engine" / "report" / "browser.html", ROOT / "recipes" / "slurm" / "train.sbatch"}
    sources |= set((ROOT / "requirements").glob("*.lock"))
    with zipfile.ZipFile(wheel) as opened:
        packed = {name for name in opened.namelist() if name.startswith("ralign/")}
    expected = {f"ralign/{path.relative_to(ROOT)}" for path in sources}
    assert packed == expected | {f"ralign/kernels/_packing{sysconfig.get_config_var('EXT_SUFFIX')}"}


def test_the_environment_is_complete_and_has_no_package_of_the_extras(light):
    for requirement, found in resolved("ralign", (), [str(light.parent / SITE)]):
        assert found and requirement.specifier.contains(found.version, prereleases=True), requirement
    code = f"import importlib.util as u; print([name for name in {HEAVY} if u.find_spec(name)])"
    assert checked(light / "python", "-c", code).strip() == "[]"


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_command_prints_its_help(light, tmp_path, name):
    assert f"usage: {name}" in checked(light / name, "--help", cwd=tmp_path)


def test_data_checks_and_converts(light, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", r"B is wrong. \boxed{A}")
    assert "2 pairs, 0 bad lines" in checked(light / "ralign-data", "validate", pairs)
    rows = write_lines(tmp_path / "rows.jsonl", [{"input": "1+1?", "accepted": "2", "rejected": "3"}])
    assert "1 pairs" in checked(light / "ralign-data", "convert", "code", rows, tmp_path / "converted.jsonl")
    assert json.loads((tmp_path / "converted.jsonl").read_text())["conversations"][0]["content"] == "1+1?"


def test_annotate_writes_the_judgments_of_an_endpoint(light, endpoint, tmp_path):
    pairs, output = write_pairs(tmp_path / "pairs.jsonl", ""), tmp_path / "golden.jsonl"
    settings = (f"annotator.base_url={endpoint}", "annotator.model=m", "num_tries=1")
    printed = checked(
        light / "ralign-annotate", f"pairs={pairs}", f"output={output}", *settings, cwd=tmp_path
    )
    assert "1 of 2 pairs have a golden judgment" in printed
    assert json.loads(output.read_text())["gt_judgment"].endswith(r"\boxed{A}")


def test_eval_judges_with_endpoints_and_scores_the_judged_file(light, endpoint, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", r'A is "right about it". \boxed{A}')
    judging = ("--model", f"endpoint:{endpoint}#m", "--metarm", "keywords", "--out", tmp_path / "out")
    checked(light / "ralign-eval", "run", "--pairs", pairs, *judging, cwd=tmp_path)
    judged = tmp_path / "out" / "judgments" / "m" / "pairs.jsonl"
    scoring = ("--json", "--draws", "50", "--out", tmp_path / "report")
    summary = json.loads(checked(light / "ralign-eval", "score", judged, *scoring, cwd=tmp_path))
    found = summary["models"]["m"]["pairs"]
    assert (found["l_acc"]["value"], found["f_score"]["value"]) == (0.5, 0.5)
    assert "<html" in (tmp_path / "report" / "index.html").read_text()
    assert list((tmp_path / "report").rglob("*.png"))


def test_plan_and_submit_find_a_recipe_of_the_wheel_by_its_name(light, tmp_path):
    planned = checked(light / "ralign-plan", "r_align_8b", "--gpus", "8", "--gpu", "h100", cwd=tmp_path)
    assert planned.startswith("r_align_8b: Qwen3-8B, ")
    submitted = run(
        light / "ralign-submit", "r_align_8b", "--nodes", "2", "--dry-run", "seed=3", cwd=tmp_path
    )
    recipes = light.parent / SITE / "ralign" / "recipes"
    command = submitted.stdout.splitlines()[0]
    assert command.endswith(f"{recipes}/slurm/train.sbatch {recipes}/r_align_8b.py seed=3")
    assert "predicted for 16 x h100" in submitted.stderr


def test_submit_takes_a_users_own_recipe_with_the_batch_script_of_the_wheel(light, tmp_path):
    (tmp_path / "mine.py").write_text("print('training')\n")
    printed = checked(light / "ralign-submit", "mine.py", "--nodes", "1", "--dry-run", cwd=tmp_path)
    assert printed.splitlines()[0].endswith(
        f"{light.parent / SITE}/ralign/recipes/slurm/train.sbatch mine.py"
    )


def test_check_reports_the_packages_that_a_run_needs(light, tmp_path):
    done = run(light / "ralign-check", "r_align_8b", "--gpus", "8", "--gpu", "h100", "--json", cwd=tmp_path)
    assert done.returncode == 1 and not done.stderr, done.stderr
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert {found[name]["level"] for name in ("torch", "packages", "model")} == {"FAIL"}
    assert "torch" in found["packages"]["found"] and "requirements/" in found["packages"]["next_step"]
    assert found["plan"]["level"] == found["extension"]["level"] == "OK"


@pytest.mark.parametrize(
    "command",
    [
        ("ralign-export", "checkpoint", "out"),
        ("ralign-eval", "run", "--pairs=pairs.jsonl", "--model=model", "--metarm=keywords", "--out=out"),
        ("python", "-m", "ralign.recipes.r_align_mini"),
        ("python", "-m", "ralign.recipes.r_align_8b", "--smoke"),
        ("python", "-m", "ralign.recipes.paper_in_miniature"),
    ],
    ids=" ".join,
)
def test_a_command_that_needs_torch_names_the_extras(light, tmp_path, command):
    write_pairs(tmp_path / "pairs.jsonl", r'A is "right". \boxed{A}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = run(light / command[0], *command[1:], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(tuple(f"error: {package} is not installed" for package in HEAVY))
    assert "pip install 'ralign[cpu]'" in last and "'ralign[cuda]'" in last
    assert "Traceback" not in done.stderr


def test_the_changelog_has_every_renamed_setting():
    rows = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("| `")]
    cells = {old: new for _, old, new, _ in (row.split("|") for row in rows)}
    for old, new in RENAMED.items():
        cell = cells[f" `{old}*` " if old.endswith(".") else f" `{old}` "]
        assert all(f"`{name}*`" in cell if name.endswith(".") else f"`{name}`" in cell for name in new), old


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_recipe_of_the_wheel_trains_under_torchrun(wheel, tmp_path):
    python = make_environment(tmp_path / "venv", wheel, extras=("cpu",)) / "python"
    launch = (python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    short = (
        "sft.competence=0", "sft.num_steps=1", "num_steps=1", "arms=r_align", "algo.num_prompts=4",
        "algo.num_samples=4", "eval.num_pairs=16",
        "data.world.num_train=400", "data.world.num_dev=8", "data.world.num_test=16",
        "generator.max_new_tokens=24", "eval.max_new_tokens=24",
    )  # fmt: skip
    checked(*launch, "ralign.recipes.r_align_mini", *short, cwd=tmp_path, timeout=900)
    assert (tmp_path / "runs" / "r_align_mini" / "report" / "index.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_source_distribution_installs_from_a_package_index(tmp_path):
    """`pip install` of the source distribution into an empty environment: it compiles, its requirements exist."""
    source = copy_source(tmp_path / "source")
    build = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    checked(sys.executable, "-c", build, tmp_path, cwd=source)
    checked(sys.executable, "-m", "venv", tmp_path / "venv")
    install = (tmp_path / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet")
    probe = run(*install, "--dry-run", "--no-deps", "tyro", timeout=600)
    if probe.returncode:
        pytest.skip(f"no package index: {probe.stderr.splitlines()[-1]}")
    checked(*install, next(tmp_path.glob("*.tar.gz")), timeout=1500)
    planned = checked(tmp_path / "venv" / "bin" / "ralign-plan", "r_align_8b", "--gpus=8", cwd=tmp_path)
    assert planned.startswith("r_align_8b: Qwen3-8B, ")
