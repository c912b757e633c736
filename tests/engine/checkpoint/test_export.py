"""Exports of a tiny checkpoint: what is written, and what a mistake or a full disk leaves."""

import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ralign.engine.checkpoint.export import _main, export
from ralign.engine.runtime.errors import UserError
from safetensors.torch import load_file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_disk(num_bytes: int):
    """Files of `num_bytes` at most, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_newest_checkpoint_s_weights_and_the_model_s_other_files(newest, run, tmp_path, capsys):
    _main([str(run / "stage" / "checkpoints"), str(tmp_path / "new" / "out")])
    assert "step00000002: 2 tensors" in capsys.readouterr().out
    names = ["config.json", "model-00000.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    tensors = load_file(tmp_path / "new" / "out" / names[1])
    assert torch.equal(tensors["model.embed_tokens.weight"], torch.arange(24.0).reshape(6, 4) + 200)
    assert torch.equal(tensors["model.norm.weight"], torch.arange(4.0) + 201)


def test_an_export_takes_the_place_of_an_earlier_one_and_of_nothing_else(newest, run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (
        "model-00000.safetensors",
        "model-00007.safetensors",
        "model.safetensors.index.json",
        "notes.txt",
    ):
        (out / name).write_text("earlier")
    export(newest, out)
    assert (out / "notes.txt").read_text() == "earlier"
    (out / "notes.txt").unlink()
    export(newest, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_full_disk_leaves_an_earlier_export_as_it_was(newest, run, tmp_path):
    out = tmp_path / "out"
    export(run / "stage" / "checkpoints" / "step00000001", out)
    before = contents(tmp_path)
    for folder in (out, tmp_path / "other"):
        with (
            full_disk(100),
            pytest.raises(UserError, match="cannot (write|copy) .*: .*(too large|os error 27)"),
        ):
            export(newest, folder)
        assert contents(tmp_path) == before and sorted(os.listdir(tmp_path)) == ["out", "run"]
    export(newest, out)  # there is room again
    assert contents(tmp_path) != before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "it is not a folder"),
        ("file/below", "Not a directory"),
        ("/dev/null", "it is not a folder"),
        ("/proc/ralign/out", "No such file"),
        ("run/model", "it is in the folder of the model"),
        ("run/model/hf", "it is in the folder of the model"),
        ("run/stage/checkpoints/step00000002", "it is in the folder of the checkpoint"),
        ("run/stage/checkpoints/step00000002/hf", "it is in the folder of the checkpoint"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(newest, run, tmp_path, out, message):
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"cannot write .*{out}: .*{message}") as found:
        export(newest, tmp_path / out)
    assert "\n" not in str(found.value) and contents(tmp_path) == before


def test_a_folder_that_may_not_be_written_is_one_line(newest, run, tmp_path):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    for out in (tmp_path / "locked", tmp_path / "locked" / "out"):
        with pytest.raises(UserError, match="Permission denied"):
            export(newest, out)


@pytest.mark.parametrize(
    "text", ["{", "5", "{}", "[]", '{"model": 5}', '{"model": {"hf_path": 5}, "parallel": {"dtype": 1}}']
)
def test_settings_of_a_run_that_cannot_be_read_are_one_line(newest, run, tmp_path, text):
    (run / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"run/config\.json: not the settings of a run"):
        export(newest, tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "5", "{}", '{"vocab_size": "6"}', '{"vocab_size": 0}'])
def test_a_model_s_config_that_cannot_be_read_is_one_line(newest, run, tmp_path, text):
    (run / "model" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"model/config\.json: "):
        export(newest, tmp_path / "out")


def test_a_checkpoint_outside_a_run_needs_the_model(newest, run, tmp_path):
    shutil.move(newest, tmp_path / "step00000002")
    with pytest.raises(UserError, match="give the model's folder with --model"):
        export(tmp_path / "step00000002", tmp_path / "out")
    assert export(tmp_path / "step00000002", tmp_path / "out", run / "model")[0] == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"vocab_size": 6}
