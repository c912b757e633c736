import pytest
from ralign.engine.evaluation.journal import Journal
from ralign.engine.runtime.errors import UserError


def test_records_survive_and_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / "deep" / "j.jsonl"
    journal = Journal(path, {"seed": 1})
    journal.add("a", {"text": "one\u2028\n\ud800"})
    journal.add("b", {"text": "two"})
    journal.close()
    whole = path.read_bytes()
    for num_bytes in range(len(whole.splitlines(keepends=True)[2])):
        path.write_bytes(whole[: len(whole) - num_bytes])
        again = Journal(path, {"seed": 1})
        assert again["a"] == {"text": "one\u2028\n\ud800"} and ("b" in again) == (num_bytes == 0)
        if num_bytes:
            again.add("b", {"text": "two"})
        again.close()
        assert path.read_bytes() == whole


def test_one_process_at_a_time_and_a_refusal_frees_the_file(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {"seed": 1})
    with pytest.raises(UserError, match="j.jsonl is in use by another process"):
        Journal(path, {"seed": 1})
    journal.close()
    with pytest.raises(UserError, match="was made with seed=1, not 2") as refused:
        Journal(path, {"seed": 2})
    Journal(path, {"seed": 1}).close()
    assert refused.traceback  # kept until here: what it holds has not freed the file


def test_the_tokens_of_all_records_are_added_up_also_after_a_restart(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", {})
    journal.add("a", {"tokens": [10, 5]})
    journal.add("b", {})  # cost nothing here
    journal.add("c", {"tokens": [1, 2]})
    journal.close()
    again = Journal(tmp_path / "j.jsonl", {})
    assert journal.tokens == again.tokens == (11, 7)
    again.close()


def test_other_settings_and_broken_lines_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, {"seed": 1, "model": "x"}).close()
    with pytest.raises(UserError, match=r"was made with model='x', not 'y' \(and other seed\)"):
        Journal(path, {"seed": 2, "model": "y"})
    with path.open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(UserError, match=r"j.jsonl:2: not JSON"):
        Journal(path, {"seed": 1, "model": "x"})
    path.write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match=r"j.jsonl:1: not a line of a journal"):
        Journal(path, {})
