"""Everything that reads what models, servers and users wrote, against hostile input.

No crash, no hang, no wrong acceptance: each parser is compared with an oracle that is written in another way. By
default a few thousand inputs, the same ones every time; RALIGN_FUZZ_INPUTS=100000 makes it a campaign with new ones.
"""

import json
import os
import time

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ralign.engine.data.metarm_prompts import BINARY, SECTIONS, TAGS, render_review
from ralign.engine.data.pairs import (
    BadLine,
    Pair,
    parse_object,
    parse_pair,
    read_pairs,
    scan_pairs,
    write_pairs,
)
from ralign.engine.data.swap import swap_names
from ralign.engine.data.verdicts import all_verdicts, released_verdict, visible
from ralign.engine.evaluation.records import parse_judged
from ralign.engine.judging.client import Failure, read_completion
from ralign.engine.judging.judge import Reply
from ralign.engine.judging.lm_metarm import parse_review
from ralign.engine.judging.metarm import Outcome

CAMPAIGN = "RALIGN_FUZZ_INPUTS" in os.environ
NUM_INPUTS = int(os.environ.get("RALIGN_FUZZ_INPUTS", "2000"))
# Share of the inputs of each test; they add up to one.
SHARES = {"verdict": 0.2, "review": 0.24, "graded": 0.08, "defuse": 0.06, "completion": 0.1, "swap": 0.04}
SHARES |= {"line": 0.16, "file": 0.02, "judged": 0.1}
assert abs(sum(SHARES.values()) - 1) < 1e-9


def fuzz(name):
    """The settings of one test: its share of the inputs."""
    return settings(
        max_examples=max(20, round(SHARES[name] * NUM_INPUTS)),
        deadline=None,
        derandomize=not CAMPAIGN,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def pieces(*parts, max_size=14):
    """Texts put together from telling parts, with anything between them."""
    return st.lists(st.one_of(st.sampled_from(parts), st.text(max_size=4)), max_size=max_size).map("".join)


# ---- verdicts

_VERDICT_PARTS = (
    "\\boxed{A}", "boxed{B}", "\\boxed{", "A}", "}", "{", "boxed", "\\boxed{C}", "\\boxed{a}", "\\boxed{AB}",
    "\\boxed{ A }", "\\\\boxed{B}", "boxed{\u0410}", "<think>", "</think>", "</think", "\\boxed\n{A}", "\x00",
    "boxedboxed{A}", "[[A]]", "A is better", "\\boxed{\\boxed{B}}",
)  # fmt: skip


def _boxed(text):
    """Places and letters of boxed verdicts, with or without backslash, by plain scanning."""
    return [(at, text[at + 6]) for at in range(len(text)) if text[at : at + 8] in ("boxed{A}", "boxed{B}")]


@fuzz("verdict")
@given(pieces(*_VERDICT_PARTS))
def test_a_verdict_is_the_first_boxed_letter_and_nothing_else(text):
    found = [letter for _, letter in _boxed(text)]
    whole = [letter for at, letter in _boxed(text) if text[:at].endswith("\\")]
    assert released_verdict(text) == next(iter(whole + found), None)
    assert all_verdicts(text) == found
    shown = visible(text)
    assert shown in text and "</think>" not in shown and "<think>" not in shown
    if "</think>" in text:
        assert len(shown) <= len(text) - text.rindex("</think>") - len("</think>")


# ---- the MetaRM's answers

_TAG_PARTS = [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
_REVIEW_PARTS = (
    *_TAG_PARTS, "Correct", "Incorrect", "correct", " CORRECT ", "Correct.", "not Correct", "yes", "no", ",",
    "<think>", "</think>", "<final_verdict >", "<FINAL_VERDICT>", "</ final_verdict>", "&lt;", "<final_verdict/>",
    "<final_verdict>Correct</final_verdict>", "<genrm_analysis>x</genrm_analysis>",
)  # fmt: skip
_SECTION_PARTS = [f"<{slash}{section}>" for section in SECTIONS for slash in ("", "/")]
_REPLIES = {
    "finish_reason": st.sampled_from(["stop", "stop", "stop", "length", ""]),
    "failed": st.sampled_from([False] * 9 + [True]),
    "problem": st.sampled_from([""] * 9 + ["the answer is empty"]),
}
_GOOD = "<golden_key_points>k</golden_key_points><genrm_analysis>a</genrm_analysis><final_verdict>{}</final_verdict>"


def _damaged(text, places):
    """A good answer with pieces cut out, doubled and moved."""
    for start, end, kind in places:
        start, end = sorted((start % (len(text) + 1), end % (len(text) + 1)))
        part = text[start:end]
        text = {"cut": text[:start] + text[end:], "double": text[:end] + part + text[end:]}.get(
            kind, text[:start] + text[end:] + part
        )
    return text


_PLACES = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 400), st.sampled_from(["cut", "double", "move"])),
    max_size=3,
)
_ANSWERS = st.one_of(
    pieces(*_REVIEW_PARTS),
    st.builds(
        lambda before, verdict, after, places: _damaged(before + _GOOD.format(verdict) + after, places),
        pieces("<think>", "</think>", "x", max_size=3),
        st.sampled_from(["Correct", "Incorrect", " correct\n", "Correct!", "", "Correct Incorrect"]),
        pieces("<think>", "</think>", "\n", *_TAG_PARTS, max_size=2),
        _PLACES,
    ),
)


def _accepted(text):
    """The verdict of a faultless answer, or None, by splitting."""
    shown = text.split("</think>")[-1].split("<think>")[0]
    end = 0
    for tag in ("genrm_analysis", "final_verdict"):
        parts = shown.split(f"<{tag}>")
        if len(parts) != 2 or len(shown.split(f"</{tag}>")) != 2 or f"</{tag}>" not in parts[1]:
            return None
        if len(parts[0]) < end:
            return None
        inside = parts[1].split(f"</{tag}>")[0]
        end = len(parts[0]) + len(f"<{tag}>") + len(inside) + len(f"</{tag}>")
    return {"correct": Outcome.CORRECT, "incorrect": Outcome.INCORRECT}.get(inside.strip().lower())


@fuzz("review")
@given(_ANSWERS, st.fixed_dictionaries(_REPLIES))
def test_a_review_is_accepted_if_and_only_if_it_is_faultless(text, reply):
    review = parse_review(Reply(text=text, **reply))
    faultless = None if reply["problem"] or reply["finish_reason"] == "length" else _accepted(text)
    expected = Outcome.CALL_FAIL if reply["failed"] else faultless or Outcome.PARSE_FAIL
    assert review.outcome is expected
    assert bool(review.error) == review.outcome.failed or reply["failed"]
    assert review.outcome is not Outcome.SKIPPED


@fuzz("graded")
@given(
    st.lists(st.sampled_from(["yes", "no", "maybe", "YES ", "", "yes no"]), max_size=4),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.5, 1.0]),
    _PLACES,
)
def test_a_graded_review_needs_a_mark_a_point(marks, num_points, threshold, places):
    points = "".join(f"<point>p{n}</point>" for n in range(num_points))
    whole = (
        f"<golden_key_points>{points}</golden_key_points><genrm_analysis>a</genrm_analysis>"
        f"<coverage>{','.join(marks)}</coverage>"
    )
    text = _damaged(whole, places)
    review = parse_review(Reply(text=text, finish_reason="stop"), graded=True, threshold=threshold)
    if text == whole:
        read = [mark.strip().lower() for mark in marks] or [""]
        good = num_points == len(read) and set(read) <= {"yes", "no"} and num_points > 0
        assert review.outcome.failed == (not good)
        if good:
            share = read.count("yes") / len(read)
            assert review.coverage == share
            assert (review.outcome is Outcome.CORRECT) == (share > 0 and share >= threshold)
    if review.outcome is Outcome.CORRECT:
        assert "yes" in text.lower() and text.count("<coverage>") == text.count("</coverage>") == 1


def _pair_of(golden, response_a, response_b, prompt, turn, role):
    turns = [{"role": role, "content": turn}, {"role": "user", "content": prompt}]
    fields = {"id": "p", "source": "s", "gt_label": "A", "conversations": turns}
    return Pair(**fields, response_A=response_a, response_B=response_b, gt_judgment=golden)


@fuzz("defuse")
@given(st.lists(pieces(*_REVIEW_PARTS, *_SECTION_PARTS), min_size=7, max_size=7))
def test_no_text_brings_a_tag_of_the_answer_or_the_prompt_into_the_prompt(texts):
    prompt = render_review(BINARY, _pair_of(*texts[:6]), texts[6]).lower()
    template = BINARY.lower()
    for tag in (*TAGS, *SECTIONS):
        for written in (f"<{tag}>", f"</{tag}>"):
            assert prompt.count(written.lower()) == template.count(written.lower())
    assert prompt.count("think>") == 0 or "<think>" not in prompt and "</think>" not in prompt


# ---- bodies of completions

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _body(content, usage, where):
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    bodies = {
        "good": {"choices": [choice], "usage": usage},
        "empty": {"choices": []},
        "none": {"choices": None},
    }
    bodies |= {"text": {"choices": "x"}, "half": {"choices": [{"message": content}]}, "other": content}
    return bodies[where]


@fuzz("completion")
@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda content, usage, where, cut: json.dumps(_body(content, usage, where)).encode()[:cut],
            _JSON,
            _JSON,
            st.sampled_from(["good", "good", "empty", "none", "text", "half", "other"]),
            st.sampled_from([None, None, None, 10, 40]),
        ),
    )
)
def test_a_body_is_a_completion_or_a_failure(content):
    try:
        reply = read_completion(content)
    except Failure as failure:
        assert failure.retry and failure.problem
        return
    body = json.loads(content)
    said = body["choices"][0]["message"]["content"]
    assert said is None or isinstance(said, str)
    assert bool(reply.problem) == (not (said or "").encode("utf-8", "replace").decode().strip())
    reply.text.encode("utf-8")
    assert reply.num_prompt_tokens >= 0 and reply.num_answer_tokens >= 0 and not reply.failed


# ---- names of responses

_NAME_PARTS = (
    "Response ",
    "Assistant",
    " A",
    " B",
    "(a)",
    " 1",
    " 2",
    " and ",
    "'s",
    "[[A]]",
    "first answer",
    ". ",
)


@fuzz("swap")
@given(pieces(*_NAME_PARTS))
def test_swapping_names_twice_changes_nothing(text):
    swapped, num_names = swap_names(text)
    assert swap_names(swapped) == (text, num_names) and len(swapped) - len(text) in range(-100, 100)


# ---- pairs files

_TURN = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
}
_TEXT = {"type": "string", "pattern": "\\S"}
SCHEMA = {
    "type": "object",
    "required": ["id", "source", "conversations", "response_A", "response_B", "gt_label", "gt_judgment"],
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "source": {"type": ["string", "object"]},
        "conversations": {"type": "array", "minItems": 1, "items": _TURN},
        "response_A": _TEXT,
        "response_B": _TEXT,
        "gt_judgment": _TEXT,
        "gt_label": {"enum": ["A", "B"]},
        "meta": {"type": ["object", "null"]},
    },
}
_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def _good(number=0):
    return {
        "id": f"p{number}",
        "source": "s",
        "conversations": [{"role": "user", "content": "Where is Oslo?"}],
        "response_A": "In Norway.",
        "response_B": "In Peru.",
        "gt_label": "A",
        "gt_judgment": "B errs. \\boxed{A}",
        "meta": {"n": 1},
    }


_FIELDS = st.sampled_from([*_good(), "extra", "conversations"])
_VALUES = st.one_of(
    _JSON,
    st.sampled_from(["A", "B", "AB", "", " ", "\u2003", "\ud800", {}, [], [{}], [{"role": "user"}], 1e400]),
    st.lists(
        st.fixed_dictionaries({"role": st.text(max_size=3), "content": st.text(max_size=3)}), max_size=2
    ),
)
_CHANGES = st.lists(st.tuples(st.sampled_from(["set", "drop"]), _FIELDS, _VALUES), max_size=3)
_BYTES = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=2)


def _line(record, changes, bytes_changed):
    for kind, name, value in changes:
        if kind == "set":
            record[name] = value
        else:
            record.pop(name, None)
    line = json.dumps(record).encode().replace(b"\n", b"")
    for at, part in bytes_changed:
        at %= len(line) + 1
        line = line[:at] + part.replace(b"\n", b"") + line[at + len(part) :]
    return line


def _is_finite(value):
    if isinstance(value, dict):
        return all(_is_finite(part) for part in value.values())
    if isinstance(value, list):
        return all(_is_finite(part) for part in value)
    return not isinstance(value, float) or value - value == 0


def _is_pair(line):
    """Whether a line is a pair, by JSON Schema; what it holds, if so."""
    try:
        record = json.loads(line.decode("utf-8"))
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except ValueError:
        return None
    if not _VALIDATOR.is_valid(record) or not _is_finite(record):
        return None
    # JSON Schema's \S and Python's strip differ on a few control characters
    texts = [record[name] for name in ("response_A", "response_B", "gt_judgment")]
    return record if all(text.strip() for text in [*texts, record["conversations"][-1]["content"]]) else None


@fuzz("line")
@given(_CHANGES, _BYTES)
def test_a_line_is_a_pair_if_and_only_if_the_schema_says_so(changes, bytes_changed):
    line = _line(_good(), changes, bytes_changed)
    record = _is_pair(line)
    try:
        pair = parse_pair(parse_object(line))
    except BadLine as bad:
        assert str(bad) and record is None, line
    else:
        assert record is not None, line
        assert pair.response_A == record["response_A"] and pair.gt_label == record["gt_label"]
        assert pair.conversations == record["conversations"] and pair.meta == (record.get("meta") or {})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "pairs.jsonl"


@fuzz("file")
@given(lines=st.lists(st.tuples(_CHANGES, _BYTES, st.booleans()), min_size=1, max_size=6))
def test_a_file_gives_its_good_lines_in_order_and_a_reason_for_each_bad_one(path, lines):
    written, expected = [], []
    for number, (changes, bytes_changed, broken) in enumerate(lines):
        line = _line(_good(number // 2), changes if broken else [], bytes_changed if broken else [])
        written.append(line)
        record = _is_pair(line)
        if record is not None and record["id"] not in [pair["id"] for pair in expected]:
            expected.append(record)
    path.write_bytes(b"\n".join(written))
    pairs, reasons = scan_pairs(path)
    assert [pair.id for pair in pairs] == [record["id"] for record in expected]
    assert len(pairs) + len(reasons) == sum(bool(line.strip()) for line in written)
    if pairs:
        write_pairs(path, pairs)
        assert read_pairs(path) == pairs


# ---- judged files

_JUDGED = {"id": "p", "gt_label": "A", "model_pred": "A", "metarm_verdict": "Correct", "meta": {}}
_JUDGED_VALUES = st.one_of(
    _JSON, st.sampled_from(["A", "B", None, "C", *(outcome.value for outcome in Outcome), [], {}, True])
)


@fuzz("judged")
@given(
    st.lists(
        st.tuples(st.sampled_from([*_JUDGED, "model_pred_swapped"]), _JUDGED_VALUES, st.booleans()),
        max_size=4,
    )
)
def test_a_judged_record_is_read_if_and_only_if_it_agrees_with_itself(changes):
    record = dict(_JUDGED)
    for name, value, drop in changes:
        record[name] = value
        if drop:
            del record[name]
    label, verdict, outcome = (record.get(name) for name in ("gt_label", "model_pred", "metarm_verdict"))
    right = [Outcome.CORRECT, Outcome.INCORRECT, Outcome.CALL_FAIL, Outcome.PARSE_FAIL]
    allowed = {each.value for each in right} if verdict == label else {Outcome.SKIPPED.value}
    good = (
        isinstance(record.get("id"), str | int)
        and label in ("A", "B")
        and "model_pred" in record
        and verdict in ("A", "B", None)
        and record.get("model_pred_swapped") in ("A", "B", None)
        and isinstance(outcome, str)
        and outcome in allowed
        and isinstance(record.get("meta"), dict | None)
    )
    try:
        pair = parse_judged(record)
    except BadLine as bad:
        assert str(bad) and not good
    else:
        assert good and (pair.label, pair.verdict, pair.outcome.value) == (label, verdict, outcome)


# ---- size

_LARGE = 2_000_000
HUGE = {
    "boxes": "\\boxed{" * (_LARGE // 7),
    "backslashes": "\\" * _LARGE,
    "thinking": "<think></think>" * (_LARGE // 15),
    "tags": "<final_verdict>" * (_LARGE // 15),
    "openings": "<" * _LARGE,
    "spaces": "<" + " " * _LARGE + "final_verdict>",
    "blanks": "<" + " " * _LARGE,
    "names": "Response A and " * (_LARGE // 15),
    "letters": "A " * (_LARGE // 40),  # each one is looked at with its neighbours
    "words": "response" * (_LARGE // 8),
    "joins": "Assistant 1 " + ", " * (_LARGE // 2),
}


@pytest.mark.parametrize("kind", HUGE)
def test_two_megabytes_of_the_worst_take_no_long_time(kind):
    start_s = time.process_time()
    text = HUGE[kind]
    released_verdict(text), visible(text)
    assert parse_review(Reply(text=text, finish_reason="stop")).outcome is Outcome.PARSE_FAIL
    render_review(BINARY, _pair_of(*[text] * 6), text)
    swap_names(text)
    with pytest.raises(BadLine):
        parse_object(text.encode())
    assert time.process_time() - start_s < 20


def test_deep_and_long_numbers_are_bad_lines_not_crashes():
    for line in (
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b'{"id": ' + b"9" * 10**5 + b"}",
        b'{"id": NaN}',
        b'{"id": -Infinity}',
    ):
        with pytest.raises(BadLine):
            parse_pair(parse_object(line))
    deep = json.dumps(_good()).encode().replace(b'"n": 1', b'"n": ' + b"[" * 900 + b"]" * 900)
    try:
        assert isinstance(parse_pair(parse_object(deep)), Pair)
    except BadLine:
        pass  # too deep here is an honest answer; a crash is none
