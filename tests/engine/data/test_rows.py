"""Pairs files as people have them: each form is read, or refused with a sentence that says what to do."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.checkpoint.inputs import fingerprints
from ralign.engine.config.run import DataConfig, Run
from ralign.engine.data.cli import _main
from ralign.engine.data.pairs import Pair, read_pairs, scan_pairs
from ralign.engine.data.rows import read_rows
from ralign.engine.runtime.errors import UserError


def record(id, **changes):
    return {
        "id": id,
        "source": {"name": "made up"},
        "conversations": [{"role": "user", "content": "Wo liegt Köln? 雪"}],
        "response_A": "In Germany.",
        "response_B": "In Peru.",
        "gt_label": "A",
        "gt_judgment": "B is wrong. \\boxed{A}",
        **changes,
    }


RECORDS = [record("a"), record("b", meta={"n": 1, "list": [None, 2]}), record("c", source="text")]
PAIRS = [Pair(**each) for each in RECORDS]
LINES = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in RECORDS)
FORMS = {
    "lines.jsonl": LINES.encode(),
    "mark.jsonl": LINES.encode("utf-8-sig"),
    "returns.jsonl": LINES.replace("\n", "\r\n").encode(),
    "lines.json": LINES.encode(),
    "array.json": json.dumps(RECORDS).encode(),
    "array.jsonl": json.dumps(RECORDS, indent=2).encode(),
    "array_of_lines.json": ("[\n" + LINES.strip().replace("\n", ",\n") + "\n]\n").encode("utf-8-sig"),
    "no_suffix": json.dumps(RECORDS).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_text_is_read_in_every_form(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    assert read_pairs(tmp_path / name) == PAIRS
    _main(["validate", f"{tmp_path}/{name}"])


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl"])
def test_parquet_is_read_whatever_its_name(tmp_path, name):
    pytest.importorskip("pyarrow")
    rows = [{**each, "source": {"name": "made up"}, "when": n} for n, each in enumerate(RECORDS)]
    to_parquet(tmp_path / name, rows)
    expected = [{**each, "source": {"name": "made up"}} for each in RECORDS]
    assert read_pairs(tmp_path / name) == [Pair(**each) for each in expected]
    _main(["validate", f"{tmp_path}/{name}"])


def test_a_run_knows_its_parquet_file_by_its_content(tmp_path):
    """A resume goes on with the file that the run began with."""
    path = tmp_path / "p.parquet"
    run = Run(data=DataConfig(train=str(path)))
    found = []
    for rows in (RECORDS[:1], RECORDS[:2], RECORDS[:1]):
        to_parquet(path, [{**each, "source": "s"} for each in rows])
        found.append(fingerprints(run)["data.train"])
    assert found[0] == found[2] != found[1]


def to_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    names = dict.fromkeys(name for row in rows for name in row)  # Arrow takes those of the first row
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    parquet.write_table(table, path)


def test_columns_that_no_pair_has_are_not_read_from_parquet_and_bad_rows_are_named(tmp_path):
    import datetime

    now = datetime.datetime(2026, 1, 2)
    rows = [
        {**record("a"), "seen": now, "image": b"\x00"},
        {**record("b"), "gt_judgment": None},
        {**record("a"), "gt_label": "A"},
        {**record("d"), "meta": {"seen": now}},
    ]
    to_parquet(tmp_path / "p.parquet", rows)
    pairs, reasons = scan_pairs(tmp_path / "p.parquet")
    assert [pair.id for pair in pairs] == ["a"]
    assert [reason.removeprefix(f"{tmp_path}/") for reason in reasons[:2]] == [
        "p.parquet: row 2: gt_judgment must be str, got NoneType",
        "p.parquet: row 3: id 'a' was already used on row 1",
    ]
    assert reasons[2].startswith(f"{tmp_path}/p.parquet: row 4: cannot be written back")
    assert len(read_pairs(tmp_path / "p.parquet", need_golden=False, max_bad_lines=2)) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", LINES.encode("utf-16"), "it is UTF-16, not UTF-8; ralign-data convert r_align FILE OUT"),
        ("p.jsonl", LINES.encode("utf-32"), "it is UTF-32, not UTF-8; ralign-data convert r_align FILE OUT"),
        ("p.jsonl.gz", gzip.compress(LINES.encode()), "it is compressed; ralign-data convert r_align FILE OUT"),
        ("p.parquet", LINES.encode(), "it is not Parquet"),
        ("p.parquet", b"PAR1 and no more", "Parquet"),
        ("p.json", json.dumps(RECORDS).encode()[:-40], "not JSON (Unterminated string"),
        ("p.json", json.dumps(RECORDS, indent=1).encode()[:-3], "at line"),
        ("p.json", json.dumps({"data": RECORDS}, indent=1).encode(), "missing field id, source"),
        ("p.json", b"[]", "holds no pair"),
        ("p.jsonl", b"[5]", "item 1: expected a JSON object, got int"),
        ("p.json", b'[{"id": NaN}]', "item 1: unreadable JSON (NaN is not a JSON number)"),
        ("p.json", b'[{"id": 1, "id": 2}]', "item 1: unreadable JSON (the key 'id' is there twice)"),
        ("p.json", json.dumps([record("a"), record("a")]).encode(), "item 2: id 'a' was already used on item 1"),
    ],
)  # fmt: skip
def test_what_training_does_not_read_is_one_mistake_that_says_what_to_do(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_pairs(tmp_path / name)
    assert said.replace("FILE", f"{tmp_path}/{name}") in str(error.value)
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize("name", ["utf16.jsonl", "utf32.json", "lines.jsonl.gz", "utf16.json.gz"])
def test_a_conversion_reads_the_forms_that_training_names_it_for(tmp_path, name):
    content = LINES.encode("utf-16" if "16" in name else "utf-32" if "32" in name else "utf-8")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    _main(["convert", "r_align", f"{tmp_path}/{name}", f"{tmp_path}/out.jsonl"])
    assert read_pairs(tmp_path / "out.jsonl") == PAIRS


@pytest.mark.parametrize(("name", "content"), [("p.gz", b"\x1f\x8b"), ("p.jsonl", b"\xff\xfe\x00")])
def test_a_conversion_names_a_broken_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read .*{name}: not "):
        _main(["convert", "r_align", f"{tmp_path}/{name}", f"{tmp_path}/out.jsonl"])


def test_a_name_on_the_hub_is_answered_with_the_command_that_converts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="ralign-data convert LAYOUT nvidia/HelpSteer3 OUT"):
        read_pairs("nvidia/HelpSteer3")
    for name in ("runs/pairs.jsonl", "pairs", "a/b/c", "./pairs"):
        with pytest.raises(UserError, match="cannot read .*: No such file or directory"):
            read_pairs(name)
    (tmp_path / "nvidia").mkdir()
    with pytest.raises(UserError, match="No such file or directory"):
        read_pairs("nvidia/HelpSteer3")
    (tmp_path / "nvidia" / "HelpSteer3").write_text(LINES)
    assert len(read_pairs("nvidia/HelpSteer3")) == 3


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), _VALUES, max_size=3), max_size=4),
    st.sampled_from([None, 0, 2, "\t"]),
    st.booleans(),
)
def test_an_array_has_the_elements_that_json_reads(tmp_path_factory, elements, indent, is_ascii):
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(elements, indent=indent, ensure_ascii=is_ascii), "utf-8", "surrogatepass")
    rows = [row.content for row in read_rows(path)]
    assert rows == [*elements]


@pytest.mark.parametrize("form", ["lines.jsonl", "array.json", "array.jsonl", "p.parquet"])
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=3)), max_size=4), st.integers(0, 4000))
def test_a_damaged_file_gives_pairs_and_reasons_or_one_mistake(tmp_path_factory, form, changes, length):
    path = tmp_path_factory.getbasetemp() / form
    if form == "p.parquet":
        to_parquet(path, [{**each, "source": "s"} for each in RECORDS])
    else:
        path.write_bytes(FORMS[form])
    content = bytearray(path.read_bytes())
    for place, new in changes:
        content[place % len(content) : place % len(content) + len(new)] = new
    path.write_bytes(
        bytes(content[: len(content) - length]) if length < len(content) // 2 else bytes(content)
    )
    try:
        pairs, reasons = scan_pairs(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len({pair.id for pair in pairs}) == len(pairs) and all(map(str, reasons))
