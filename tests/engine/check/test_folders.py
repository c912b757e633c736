"""A model folder is complete and one that the trainer takes; a data file is read as the run reads it."""

import json
from dataclasses import replace

import pytest
from ralign.engine.check.folders import check_critic, check_data, check_model
from ralign.engine.check.machine import Torch
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.run import DataConfig, EvalConfig, GeneratorConfig, ModelConfig, Run

TORCH = Torch(version="2.13.0")


def run_of(folder, **changes) -> Run:
    run = Run(
        model=ModelConfig(hf_path=str(folder)),
        data=DataConfig(max_prompt_tokens=6144),
        generator=GeneratorConfig(max_new_tokens=8192),
    )
    return replace(run, **changes)


def test_a_complete_folder_is_ok_with_its_size_and_context(tmp_path, qwen3_folder):
    finding = check_model(run_of(qwen3_folder(tmp_path)), TORCH)
    assert finding.level == "OK", finding
    for text in (
        "qwen3, 8.19 B parameters",
        "2 file(s) with 16.4 GB",
        "context 40960 for at most 14336 tokens",
    ):
        assert text in finding.found
    assert check_model(Run(), TORCH).level == "OK"


def _cut(folder):
    file = folder / "model-00002-of-00002.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


def _pointer(folder):
    (folder / "model-00001-of-00002.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def _foreign_index(folder):
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["model.layers.36.mlp.up_proj.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


FAULTS = {
    "no folder": (lambda folder: folder.rename(folder.with_name("away")), "no such folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer (tokenizer.json or"),
    "missing file": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
        "1 of 2 weight files are missing (model-00002-of-00002.safetensors)",
    ),
    "cut file": (_cut, "model-00002-of-00002.safetensors"),
    "pointer of git-lfs": (_pointer, "is truncated, or not a safetensors file"),
    "tensor that is not there": (_foreign_index, "lacks 1 tensor(s) of the index, model.layers.36"),
    "no weights": (
        lambda folder: (folder / "model.safetensors.index.json").unlink(),
        "neither model.safetensors.index.json nor model.safetensors",
    ),
    "empty index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "has no weight_map",
    ),
    "other family": (
        lambda folder: _config(folder, model_type="mamba"),
        "model_type 'mamba' is not supported",
    ),
    "other feature": (lambda folder: _config(folder, attention_bias=True), "attention_bias=True"),
    "other rope": (
        lambda folder: _config(
            folder,
            rope_theta=None,
            rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0},
        ),
        "rope_type 'yarn'",
    ),
    "short context": (
        lambda folder: _config(folder, max_position_embeddings=8192),
        "has a context of 8192 tokens",
    ),
    "no size": (
        lambda folder: _config(folder, intermediate_size=None),
        "config.json: intermediate_size must",
    ),
    "size of text": (
        lambda folder: _config(folder, hidden_size="4096"),
        "hidden_size must be a whole number",
    ),
    "huge size": (lambda folder: _config(folder, num_hidden_layers=10**400), "num_hidden_layers must be"),
    "no heads": (lambda folder: _config(folder, num_attention_heads=0), "num_attention_heads must be"),
    "deep config": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "config.json cannot be read",
    ),
    "number of text": (lambda folder: _config(folder, rms_norm_eps="x"), "config.json cannot be used ("),
    "list for a mapping": (
        lambda folder: _config(folder, rope_theta=1e6, rope_scaling=[1]),
        "config.json cannot be used (",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_cannot_be_loaded_fails_with_the_reason(tmp_path, qwen3_folder, fault):
    folder = qwen3_folder(tmp_path)
    make, text = FAULTS[fault]
    make(folder)
    finding = check_model(run_of(folder), TORCH)
    assert finding.level == "FAIL" and text in finding.found and str(folder) in finding.found


def test_a_published_model_that_is_not_there_comes_with_its_download(tmp_path):
    finding = check_model(run_of(tmp_path / "Qwen3-32B"), TORCH)
    assert f"hf download Qwen/Qwen3-32B --local-dir {tmp_path}/Qwen3-32B" in finding.next_step


def test_without_torch_the_files_are_still_checked(tmp_path, qwen3_folder):
    folder = qwen3_folder(tmp_path)
    assert check_model(run_of(folder), None).level == "WARN"
    _cut(folder)
    assert check_model(run_of(folder), None).level == "FAIL"


def test_a_critics_folder_is_checked_where_there_is_a_critic(tmp_path, qwen3_folder):
    run = run_of(qwen3_folder(tmp_path))
    run.critic.hf_path = str(tmp_path / "critic")
    assert check_critic(run, TORCH) is None
    run.algo.advantages = "gae"
    assert check_critic(run, TORCH).check == "critic" and check_critic(run, TORCH).level == "FAIL"


def test_a_data_file_is_counted_and_its_bad_lines_are_named(tmp_path, pairs_file):
    file = pairs_file(tmp_path / "pairs.jsonl", 20)
    run = run_of(tmp_path, data=DataConfig(train=str(file)), eval=EvalConfig(num_pairs=8))
    assert check_data(run).level == "OK" and "20 pairs, 0 bad lines" in check_data(run).found
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", *lines[1:], lines[3]]) + "\n")
    bad = check_data(run)
    assert (
        bad.level == "FAIL"
        and "20 pairs, 2 bad lines" in bad.found
        and "pairs.jsonl:2: not JSON" in bad.found
    )
    assert len(bad.details) == 2 and "data.max_bad_lines=2" in bad.next_step
    run.data.max_bad_lines = 2
    assert check_data(run).level == "WARN"


def test_a_data_file_that_is_missing_empty_or_held_out_whole_fails(tmp_path, pairs_file):
    run = run_of(tmp_path, data=DataConfig(train=str(tmp_path / "pairs.jsonl")), eval=EvalConfig(num_pairs=8))
    assert check_data(run).level == "FAIL" and "cannot read" in check_data(run).found
    (tmp_path / "pairs.jsonl").write_text("")
    assert check_data(run).level == "FAIL" and "holds no pair" in check_data(run).found
    pairs_file(tmp_path / "pairs.jsonl", 8)
    assert check_data(run).level == "FAIL" and "eval.num_pairs=8" in check_data(run).next_step


def test_golden_judgments_are_asked_for_where_the_run_reads_them(tmp_path, pairs_file):
    file = pairs_file(tmp_path / "pairs.jsonl", 20)
    records = [json.loads(line) | {"gt_judgment": ""} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {"data": DataConfig(train=str(file)), "eval": EvalConfig(num_pairs=8)}
    assert check_data(Run(**data)).level == "FAIL"
    assert check_data(ActorRun(**data)).level == "OK"


def test_without_a_data_file_a_real_model_is_warned_of_and_a_fresh_one_is_not(tmp_path):
    assert check_data(run_of(tmp_path)).level == "WARN"
    assert check_data(Run()).level == "OK"
