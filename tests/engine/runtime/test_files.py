import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import (
    check_input,
    check_output,
    check_output_folder,
    drafting,
    file_name,
    is_full,
    replacing,
    write_text,
)


def test_an_output_takes_its_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new folder" / "out.jsonl"
    write_text(path, "first\n")
    path.chmod(0o640)
    with pytest.raises(KeyError), replacing(path) as file:
        file.write("half")
        raise KeyError
    assert path.read_text() == "first\n"
    with replacing(path) as file:
        file.write("second\n")
        file.flush()
        assert path.read_text() == "first\n"
    assert path.read_text() == "second\n" and path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["out.jsonl"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "out"
    write_text(path, "old")
    with pytest.raises(UserError, match=f"cannot write {path}: No space left on device"), replacing(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("path", ["/dev/null", "/", ".", ".."])
def test_special_files_and_folders_are_no_outputs(path):
    with pytest.raises(UserError, match="cannot write"):
        check_output(path)


def test_a_pipe_is_neither_input_nor_output(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for check in (check_input, check_output):
        with pytest.raises(UserError, match="not a regular file"):
            check(tmp_path / "pipe")


def test_an_input_is_no_output_under_any_name(tmp_path):
    path, link = tmp_path / "pairs", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    for output in (path, link, tmp_path / "." / "pairs"):
        with pytest.raises(UserError, match="also an input"):
            check_output(output, [path])
    check_output(tmp_path / "other", [path])


@pytest.mark.parametrize(
    "path, reason", [("missing", "No such file"), ("", "a folder"), ("a/b", "Not a direc")]
)
def test_an_unreadable_input_is_one_line(tmp_path, path, reason):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=reason):
        check_input(tmp_path / path)


def test_every_device_is_refused_as_input():
    with pytest.raises(UserError, match="/dev/zero: it is not a regular file"):
        check_input("/dev/zero")


texts = st.text(st.characters(), max_size=300) | st.text("./%~aA\ud800", max_size=6)


@given(texts, texts)
@example("..", ".").via("a folder")
@example("a/b", "a%2Fb").via("an encoded slash")
@example("x" * 400, "x" * 401).via("only the end differs")
def test_file_names_are_injective_and_stay_in_their_folder(one, other):
    assert (file_name(one) == file_name(other)) == (one == other)
    name = file_name(one)
    assert name.isascii() and 0 < len(name) <= 120 and "/" not in name and not name.startswith(".")


def test_json_with_a_lone_surrogate_is_read_back(tmp_path):
    text = "a\ud800b\\\udfff"
    write_text(tmp_path / "out", json.dumps({"text": text}, ensure_ascii=False))
    assert json.loads((tmp_path / "out").read_text("utf-8"))["text"] == text


def test_a_file_that_a_library_writes_takes_its_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "out.png"
    with drafting(path) as draft:
        draft.write_bytes(b"\x89")
        assert not path.exists()
    with pytest.raises(UserError, match=f"cannot write {path}: No space"), drafting(path) as draft:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"\x89" and os.listdir(path.parent) == ["out.png"]


def test_a_folder_for_outputs_may_be_missing_but_is_no_file(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "a" / "b"):
        assert check_output_folder(path) == path
    for path in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / "loose" / "a"):
        with pytest.raises(UserError, match=f"cannot write .*{path}: .* is not a folder"):
            check_output_folder(path)


def test_errors_of_rust_libraries_keep_the_number_in_their_text():
    assert is_full(RuntimeError("Error while serializing: No space left on device (os error 28)"))
    assert not is_full(RuntimeError("No such file (os error 2)")) and not is_full(OSError(2, "no such file"))
