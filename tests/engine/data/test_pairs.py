import json

import pytest
from ralign.engine.data.pairs import Pair, context_turns, prompt_text, read_pairs, write_pairs
from ralign.engine.runtime.errors import UserError


def record(**changes):
    good = {
        "id": "p1",
        "source": {"name": "made up"},
        "conversations": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "user", "content": "Where is Oslo?"},
        ],
        "response_A": "In Norway.",
        "response_B": "In Peru.",
        "gt_label": "A",
        "gt_judgment": "B is wrong. \\boxed{A}",
    }
    return {key: value for key, value in (good | changes).items() if value != "left out"}


def write_lines(path, *lines):
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def test_a_file_survives_writing_and_reading(tmp_path):
    pairs = [
        Pair(**record(), meta={"k": [1, None]}),
        Pair(**record(id="p2", source="text", response_B="naïve \u2028 雪 {prompt}\n\n- x", gt_label="B")),
    ]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_prompt_is_the_last_turn_and_context_the_earlier_ones():
    pair = Pair(**record())
    assert prompt_text(pair) == "Where is Oslo?"
    assert [turn["content"] for turn in context_turns(pair)] == ["Hello", "Hi"]


BAD_LINES = {
    "not JSON": b"{'id': 1}",
    "not UTF-8": json.dumps(record()).encode().replace(b"Norway", b"Norw\xff"),
    "JSON object": b"[1, 2]",
    "missing field gt_label, gt_judgment": record(gt_label="left out", gt_judgment="left out"),
    "gt_label must be A or B, got 'C'": record(gt_label="C"),
    "gt_label must be str": record(gt_label=None),
    "response_B is empty": record(response_B=" \n"),
    "gt_judgment is empty": record(gt_judgment=""),
    "response_A must be str": record(response_A=["x"]),
    "id must be str": record(id=7),
    "source must be str or dict": record(source=3),
    "conversations is empty": record(conversations=[]),
    "role and content": record(conversations=[{"role": "user"}]),
    "last turn of conversations is empty": record(conversations=[{"role": "user", "content": ""}]),
    "meta must be dict": record(meta=[1]),
    "lone surrogate": record(response_A="\ud800"),
    "nested too deeply": b"[" * 100_000,
    "already used on line 1": record(id="first"),
}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_line_is_named_with_its_number_and_reason(tmp_path, reason, caplog):
    good, last = record(id="first"), record(id="last")
    path = write_lines(tmp_path / "pairs.jsonl", good, BAD_LINES[reason], b"", last)
    with pytest.raises(UserError) as error:
        read_pairs(path)
    assert f"{path}:2: " in str(error.value) and reason in str(error.value)
    assert [pair.id for pair in read_pairs(path, max_bad_lines=1)] == ["first", "last"]
    assert f"{path}:2: " in caplog.text and reason in caplog.text


def test_too_many_bad_lines_end_the_reading_with_the_first_reasons(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", record(), *[record(id="x", gt_label="C")] * 8)
    with pytest.raises(UserError, match="8 bad lines, at most 7 allowed") as error:
        read_pairs(path, max_bad_lines=7)
    assert f"{path}:6: " in str(error.value) and f"{path}:7: " not in str(error.value)
    assert "and 3 more" in str(error.value)
    assert len(read_pairs(path, max_bad_lines=8)) == 1


def test_no_file_and_no_pair_are_the_users_mistakes(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_pairs(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="holds no pair"):
        read_pairs(write_lines(tmp_path / "empty.jsonl", b""))
