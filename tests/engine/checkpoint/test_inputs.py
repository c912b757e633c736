"""A resume goes on with the inputs that the run began with."""

import json

import pytest
from ralign.engine.checkpoint import folders
from ralign.engine.checkpoint.inputs import FILE, fingerprints
from ralign.engine.checkpoint.settings import mark_finished, open_folder
from ralign.engine.config.run import GenRMRun
from ralign.engine.runtime.errors import UserError


@pytest.fixture
def run(tmp_path):
    """An interrupted run with a pairs file, a template and a model folder."""
    (tmp_path / "pairs.jsonl").write_text("one\ntwo\n")
    (tmp_path / "template.txt").write_text("{prompt} {response_A} {response_B}")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (model / name).write_text(name)
    run = GenRMRun(out=str(tmp_path / "runs"))
    run.data.train, run.data.template = str(tmp_path / "pairs.jsonl"), str(tmp_path / "template.txt")
    run.model.hf_path = str(model)
    open_folder(run)
    folders.path_of(run.folder / "rlvr" / "checkpoints", 4).mkdir(parents=True)
    return run


CHANGES = {
    "pairs.jsonl": ("data.train", "two\none\n"),  # as many lines as before
    "template.txt": ("data.template", "{prompt} {response_B} {response_A}"),
    "model/tokenizer.json": ("model.hf_path", "other"),
    "model/chat_template.jinja": ("model.hf_path", "other"),
    "model/config.json": ("model.hf_path", "other"),
    "model/model.safetensors": ("model.hf_path", "other"),
}


@pytest.mark.parametrize("file", CHANGES)
def test_a_changed_input_is_named_and_accepted_only_on_request(run, tmp_path, file):
    assert "resumes" in str(open_folder(run))
    setting, content = CHANGES[file]
    (tmp_path / file).write_text(content)
    before = (run.folder / FILE).read_bytes()
    with pytest.raises(UserError, match=rf"other inputs: {setting}=\S+ has other content.*resume=accept"):
        open_folder(run)
    assert (run.folder / FILE).read_bytes() == before
    run.resume = "accept"
    assert "resumes" in str(open_folder(run))
    run.resume = "auto"
    assert "resumes" in str(open_folder(run))


def test_a_missing_input_is_named(run, tmp_path):
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match=r"data.train=\S+ is missing"):
        open_folder(run)


def test_a_finished_run_with_other_inputs_is_kept_aside(run, tmp_path):
    mark_finished(run)
    (tmp_path / "pairs.jsonl").write_text("three\n")
    assert "the finished run with other inputs is now" in str(open_folder(run))


def test_built_in_templates_have_fingerprints_of_their_own(run):
    run.metarm.template = run.data.template = "compact"
    found = fingerprints(run)
    assert found["metarm.template"] != found["data.template"]


@pytest.mark.parametrize("content", ["{", "5", '["a"]'])
def test_a_damaged_record_is_one_line(run, content):
    (run.folder / FILE).write_text(content)
    with pytest.raises(UserError, match=f"cannot read .*{FILE}"):
        open_folder(run)
    run.resume = "accept"
    open_folder(run)
    assert json.loads((run.folder / FILE).read_text()) == fingerprints(run)
