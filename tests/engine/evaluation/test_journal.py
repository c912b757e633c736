import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ralign.engine.evaluation.journal import Journal, is_text, journal_key
from ralign.engine.runtime.errors import UserError


def test_records_survive_and_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / "deep" / "j.jsonl"
    journal = Journal(path, {"seed": 1}, {})
    journal.add("a", {"text": "one\u2028\n\ud800"})
    journal.add("b", {"text": "two"})
    journal.close()
    whole = path.read_bytes()
    for num_bytes in range(len(whole.splitlines(keepends=True)[2])):
        path.write_bytes(whole[: len(whole) - num_bytes])
        again = Journal(path, {"seed": 1}, {})
        assert again["a"] == {"text": "one\u2028\n\ud800"} and ("b" in again) == (num_bytes == 0)
        if num_bytes:
            again.add("b", {"text": "two"})
        again.close()
        assert path.read_bytes() == whole


def test_one_process_at_a_time_and_a_refusal_frees_the_file(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {"seed": 1}, {})
    with pytest.raises(UserError, match="j.jsonl is in use by another process"):
        Journal(path, {"seed": 1}, {})
    journal.close()
    with pytest.raises(UserError, match="was made with seed=1, not 2") as refused:
        Journal(path, {"seed": 2}, {})
    Journal(path, {"seed": 1}, {}).close()
    assert refused.traceback  # kept until here: what it holds has not freed the file


def test_the_tokens_of_all_records_are_added_up_also_after_a_restart(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", {}, {})
    journal.add("a", {"tokens": [10, 5]})
    journal.add("b", {})  # cost nothing here
    journal.add("c", {"tokens": [1, 2]})
    journal.close()
    again = Journal(tmp_path / "j.jsonl", {}, {})
    assert journal.tokens == again.tokens == (11, 7)
    again.close()


def test_other_settings_and_broken_lines_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, {"seed": 1, "model": "x"}, {}).close()
    with pytest.raises(UserError, match=r"was made with model='x', not 'y' \(and other seed\)"):
        Journal(path, {"seed": 2, "model": "y"}, {})
    with path.open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match=r"j.jsonl:2: not JSON"):
        Journal(path, {"seed": 1, "model": "x"}, {})
    path.write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match=r"j.jsonl:1: not the settings of a journal"):
        Journal(path, {}, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"key": "p0"}', "not a line of this journal"),
        ('{"key": "p0", "text": 5}', "not a line of this journal"),
        ('{"key": "p0", "text": null}', "not a line of this journal"),
        ('{"key": "p0", "text": "a", "tokens": "no"}', "not a line of this journal"),
        ('{"key": "p0", "text": "a", "tokens": [1]}', "not a line of this journal"),
        ('{"key": "p0", "text": "a", "tokens": [1, "2"]}', "not a line of this journal"),
        ('{"key": "p0", "text": "a", "tokens": [1, -2]}', "not a line of this journal"),
        ('{"key": "p0", "text": "a", "tokens": [true, 1.5]}', "not a line of this journal"),
        ('{"key": 5, "text": "a"}', "not a line of this journal"),
        ('{"key": ["p0"], "text": "a"}', "not a line of this journal"),
        ('{"text": "a"}', "not a line of this journal"),
        ('{"key": "first", "text": "a"}', "the key 'first' was already used"),
        ('{"key": "p0", "text": "a", "text": "b"}', "the key 'text' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff", "not UTF-8"),
        ("5", "expected a JSON object, got int"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, reason):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {}, {"text": is_text})
    journal.add("first", {"text": "a", "tokens": [1, 2]})
    journal.close()
    with path.open("a", encoding="latin-1") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=f"j.jsonl:3: .*{reason}.*; remove the line, or the file"):
        Journal(path, {}, {"text": is_text})


@pytest.mark.parametrize("settings", ["null", "5", "[]", '"x"'])
def test_settings_of_another_shape_are_refused(tmp_path, settings):
    (tmp_path / "j.jsonl").write_text(f'{{"settings": {settings}}}\n')
    with pytest.raises(UserError, match="j.jsonl:1: not the settings of a journal"):
        Journal(tmp_path / "j.jsonl", {}, {})


parts = st.lists(st.text(st.sampled_from("p\t\\t\\\\") | st.characters()), min_size=1, max_size=3)


@given(parts, parts)
@example(["p", "swapped"], ["p\tswapped"]).via("an id with a tab")
@example(["p\\", "t"], ["p", "\\t"]).via("a backslash at the end")
def test_keys_are_injective(one, other):
    assert (journal_key(*one) == journal_key(*other)) == (one == other)


def test_the_keys_of_plain_ids_are_those_of_earlier_journals():
    assert journal_key("p-1") == "p-1" and journal_key("p-1", "swapped") == "p-1\tswapped"


def test_a_full_disk_loses_no_record_and_the_journal_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {}, {})
    journal.add("a", {"tokens": [1, 2]})

    class Full:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, data):
            raise OSError(28, "No space left on device")

    file = journal._log._file
    with monkeypatch.context() as patch:
        patch.setattr(journal._log, "_file", Full())
        with pytest.raises(UserError, match="cannot write .*j.jsonl: No space left on device"):
            journal.add("b", {})
    assert "b" not in journal
    journal.add("b", {})
    journal.close()
    again = Journal(path, {}, {})
    assert "a" in again and "b" in again and again.tokens == (1, 2)
    again.close()
    assert os.listdir(tmp_path) == ["j.jsonl"]
