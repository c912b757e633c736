"""Published layouts: small files made in them, loaded by `datasets` as the published ones are."""

import contextlib
import json

import pytest
from ralign.engine.data.cli import _main
from ralign.engine.data.converters import convert, load_rows
from ralign.engine.data.layouts import LAYOUTS, MAX_TIES_PAIRS
from ralign.engine.data.pairs import read_pairs
from ralign.engine.runtime.errors import UserError

_HELPSTEER3 = [
    {
        "domain": "code",
        "language": "python",
        "context": [{"role": "user", "content": "Sort a list."}],
        "response1": "sorted(x)",
        "response2": "x.sorted()",
        "overall_preference": -2,
        "individual_preference": [
            {"score": -2, "reasoning": "@Response 1 runs, Response 2 fails.", "feedback1": "a", "feedback2": "b"},
            {"score": 1, "reasoning": "Response 2 is shorter.", "feedback1": "a", "feedback2": "b"},
        ],
    },
    {
        "domain": "general",
        "language": "english",
        "context": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Where is Oslo?"},
        ],
        "response1": "In Peru",
        "response2": "In Norway",
        "overall_preference": 3,
        "individual_preference": [],
    },
    {
        "domain": "general", "language": "english", "context": [{"role": "user", "content": "x"}],
        "response1": "a", "response2": "b", "overall_preference": 0, "individual_preference": [],
    },
]  # fmt: skip
_REWARDBENCH2 = [
    {
        "id": "17", "prompt": "2+2?", "chosen": ["4"], "rejected": ["5", "22", "3"], "num_correct": 1,
        "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4, "subset": "Math",
        "additional_metadata": {"category": None},
    },
    {
        "id": "18", "prompt": "Name a colour", "chosen": ["red", "blue"], "rejected": ["seven"], "num_correct": 2,
        "num_incorrect": 1, "total_completions": 3, "models": ["m"] * 3, "subset": "Ties",
        "additional_metadata": {"category": None},
    },
]  # fmt: skip
_PPE = [
    {
        "question_id": f"q{n}", "model_a": "m1", "model_b": "m2", "winner": winner, "prompt": "Hi",
        "response_1": "one", "response_2": "two", "language": "English",
        "conv_metadata": {"turns": 1}, "is_code": False,
    }
    for n, winner in enumerate(("model_a", "model_b", "tie", "tie (bothbad)"))
]  # fmt: skip
_SKYWORK = [
    {
        "chosen": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "bad"}],
        "source": "magpie",
    }
    for n in range(40)
] + [
    {
        "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
        "rejected": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "bad"}],
        "source": "magpie",
    }
]
_CODE = [
    {"id": 1, "input": "Write f", "accepted": "def f(): return 1", "rejected": "def f(): retrun 1"},
    {"id": 2, "input": "Write g", "accepted": "same", "rejected": "same "},
    {"id": 3, "input": "Write h", "accepted": "x", "rejected": ""},
]
_MATH = [
    {
        "dataset": "MATH", "prompt": "1+1?", "initial_reason_steps": "", "chosen": "2", "rejected": "3",
        "full_chosen": "It is 2.", "full_rejected": "It is 3.", "answer": "2",
    },
    {
        "dataset": "MATH", "prompt": "2+2+2?", "initial_reason_steps": "Step 1: 2+2=4.\nStep 2:",
        "chosen": " 4+2=6.", "rejected": " 4+2=7.", "full_chosen": " 4+2=6.\nStep 3: So 6.",
        "full_rejected": " 4+2=7.\nStep 3: So 7.", "answer": "6",
    },
    {
        "dataset": "MATH", "prompt": "3?", "initial_reason_steps": "Step 1:", "chosen": " 3.", "rejected": "",
        "full_chosen": " 3.", "full_rejected": "", "answer": "3",
    },
]  # fmt: skip
_R_ALIGN = [
    {
        "id": f"r{n}",
        "source": source,
        "conversations": [{"role": "user", "content": "Where is Oslo?"}],
        "response_A": "Norway",
        "response_B": "Peru",
        "gt_label": "A",
        "gt_judgment": "Response B errs. \\boxed{A}",
    }
    for n, source in enumerate(({"name": "skywork", "part": "x"}, {"name": "math", "part": None}))
]
_CHOSEN_REJECTED = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5", "score": 0.5},
    {"prompt": "Name a colour", "chosen": "red", "rejected": "red ", "score": 0.1},
]
ROWS = {
    "helpsteer3": _HELPSTEER3,
    "rewardbench2": _REWARDBENCH2,
    "ppe": _PPE,
    "skywork": _SKYWORK,
    "code": _CODE,
    "math": _MATH,
    "r_align": _R_ALIGN,
    "chosen_rejected": _CHOSEN_REJECTED,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` prepares stays in the test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(params=["json", "parquet", "folder"])
def published(request, tmp_path):
    """layout -> a place that holds its rows as a published set does."""
    datasets = pytest.importorskip("datasets")

    def place(layout):
        made = datasets.Dataset.from_list(ROWS[layout])
        if request.param == "folder":
            made.save_to_disk(tmp_path / layout)
            return str(tmp_path / layout)
        path = tmp_path / f"{layout}.{'jsonl' if request.param == 'json' else 'parquet'}"
        made.to_json(path) if request.param == "json" else made.to_parquet(path)
        return str(path)

    return place


def better(pair):
    return pair.response_A if pair.gt_label == "A" else pair.response_B


def worse(pair):
    return pair.response_B if pair.gt_label == "A" else pair.response_A


# layout -> (better, worse) of each pair, rows left out
EXPECTED = {
    "helpsteer3": ([("sorted(x)", "x.sorted()"), ("In Norway", "In Peru")], {"tie": 1}),
    "rewardbench2": ([("4", "5"), ("4", "22"), ("4", "3"), ("red", "seven"), ("blue", "seven")], {}),
    "ppe": ([("one", "two"), ("two", "one")], {"tie": 2}),
    "skywork": ([("good", "bad")] * 40, {"chosen and rejected answer different prompts": 1}),
    "code": ([(_CODE[0]["accepted"], _CODE[0]["rejected"])], {"equal responses": 1, "empty response": 1}),
    "math": (
        [
            ("It is 2.", "It is 3."),
            (
                "Step 1: 2+2=4.\nStep 2: 4+2=6.\nStep 3: So 6.",
                "Step 1: 2+2=4.\nStep 2: 4+2=7.\nStep 3: So 7.",
            ),
        ],
        {"empty response": 1},
    ),
    "r_align": ([("Norway", "Peru")] * 2, {}),
    "chosen_rejected": ([("4", "5")], {"equal responses": 1}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_pairs_with_the_better_response_labelled(published, layout, tmp_path, capsys):
    source = published(layout)
    found = convert(layout, load_rows(source))
    pairs, left_out = EXPECTED[layout]
    assert [(better(pair), worse(pair)) for pair in found.pairs] == pairs
    assert found.left_out == left_out
    _main(["convert", layout, source, f"{tmp_path}/out/pairs.jsonl"])
    assert read_pairs(tmp_path / "out" / "pairs.jsonl", need_golden=False) == found.pairs
    said = capsys.readouterr().out
    assert f"{len(pairs)} pairs" in said and all(reason in said for reason in left_out)
    assert ("ralign-annotate" in said) == (layout != "r_align")


def test_helpsteer3_keeps_order_context_subset_and_the_reasons_of_the_majority():
    first, second = convert("helpsteer3", _HELPSTEER3).pairs
    assert (first.response_A, first.gt_label, second.gt_label) == ("sorted(x)", "A", "B")
    assert first.meta["reviews"] == ["Response A runs, Response B fails."]  # not that of who disagreed
    assert first.source == {"dataset": "helpsteer3", "subset": "code"}
    assert [turn["role"] for turn in second.conversations] == ["user", "assistant", "user"]
    assert "reviews" not in second.meta


def test_helpsteer3_s_reasons_name_both_responses_by_letter():
    reason = (
        "@Response 1 and @Response2 differ. Responses 1 and 2 cite 2 books; response 1, 2 years old, errs."
    )
    row = {**_HELPSTEER3[0], "individual_preference": [{"score": -1, "reasoning": reason}]}
    (pair,) = convert("helpsteer3", [row]).pairs
    assert pair.meta["reviews"] == [
        "Response A and Response B differ. Responses A and B cite 2 books; response A, 2 years old, errs."
    ]


def test_sides_are_even_and_the_same_each_time():
    rows = [{**_CODE[0], "input": f"Write {n}"} for n in range(1000)]
    pairs = convert("code", rows).pairs
    assert convert("code", rows).pairs == pairs
    assert 450 < sum(pair.gt_label == "A" for pair in pairs) < 550


def test_ids_that_a_set_repeats_are_told_apart():
    ids = [pair.id for pair in convert("ppe", _PPE + _PPE).pairs]
    assert len(set(ids)) == len(ids) == 4


def test_r_align_sets_keep_golden_judgments_and_lose_arrow_s_nulls(published):
    pairs = convert("r_align", load_rows(published("r_align"))).pairs
    assert [pair.id for pair in pairs] == ["r0", "r1"]
    assert pairs[0].gt_judgment == "Response B errs. \\boxed{A}"
    assert pairs[0].source["name"] == "skywork" and "part" not in pairs[1].source
    bad = convert("r_align", [{**_R_ALIGN[0], "gt_label": "C"}])
    assert not bad.pairs and list(bad.left_out) == ["gt_label must be A or B, got 'C'"]


def test_another_layout_is_named_with_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="no column 'accepted': this is not the layout code"):
        convert("code", _MATH)
    with pytest.raises(UserError, match="unknown layout 'x'"):
        convert("x", [])
    with pytest.raises(UserError, match="no row can be converted to a pair"):
        (tmp_path / "c.jsonl").write_text(json.dumps(_CODE[1]) + "\n")
        _main(["convert", "code", f"{tmp_path}/c.jsonl", f"{tmp_path}/o.jsonl"])


def test_a_source_that_is_not_there_and_a_split_that_must_be_chosen(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="expected a .*file"):
        (tmp_path / "x.txt").write_text("x")
        load_rows(f"{tmp_path}/x.txt")
    with pytest.raises(UserError, match="cannot load .*nowhere"):
        load_rows(f"{tmp_path}/nowhere")
    made = datasets.Dataset.from_list(_MATH)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match="splits train, test: choose one with --split"):
        load_rows(f"{tmp_path}/two")
    assert len(list(load_rows(f"{tmp_path}/two", split="test"))) == len(_MATH)


def test_every_right_answer_of_a_ties_prompt_is_paired_with_every_wrong_one():
    rows = [{**_REWARDBENCH2[1], "chosen": ["red", "blue", "green"], "rejected": ["seven", "oak"]}]
    pairs = convert("rewardbench2", rows).pairs
    expected = {(right, wrong) for right in rows[0]["chosen"] for wrong in rows[0]["rejected"]}
    assert len(pairs) == 6 and {(better(pair), worse(pair)) for pair in pairs} == expected
    assert {pair.meta["prompt_id"] for pair in pairs} == {"18"}
    other = convert("rewardbench2", [{**rows[0], "subset": "Focus"}]).pairs
    assert [(better(pair), worse(pair)) for pair in other] == [("red", "seven"), ("red", "oak")]


@pytest.mark.parametrize(("num_right", "num_wrong"), [(26, 4), (5, 30), (64, 64), (8, 8), (9, 9), (63, 2)])
def test_a_ties_prompt_gives_a_bounded_number_of_pairs_that_use_every_answer(num_right, num_wrong):
    row = {
        **_REWARDBENCH2[1],
        "chosen": [f"right {n}" for n in range(num_right)],
        "rejected": [f"wrong {n}" for n in range(num_wrong)],
    }
    found = convert("rewardbench2", [row])
    pairs = {(better(pair), worse(pair)) for pair in found.pairs}
    assert len(pairs) == len(found.pairs) == min(num_right * num_wrong, MAX_TIES_PAIRS)
    assert {right for right, _ in pairs} == {*row["chosen"]}
    assert {wrong for _, wrong in pairs} == {*row["rejected"]}
    beyond = f"pairs of a Ties prompt beyond {MAX_TIES_PAIRS}"
    assert found.left_out == ({beyond: 1} if num_right * num_wrong > MAX_TIES_PAIRS else {})


def test_one_empty_answer_of_several_leaves_the_others():
    found = convert("rewardbench2", [{**_REWARDBENCH2[0], "rejected": ["5", "", "3"]}])
    assert [worse(pair) for pair in found.pairs] == ["5", "3"] and found.left_out == {"empty response": 1}


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"question": "Q", "good": "yes", "bad": "no"}, [user("Q")]),
        ({"question": [user("Q")], "good": "yes", "bad": "no"}, [user("Q")]),
        ({"question": "Q", "good": [answer("yes")], "bad": [answer("no")]}, [user("Q")]),
        ({"question": "Q", "good": [user("Q"), answer("yes")], "bad": [user("Q"), answer("no")]}, [user("Q")]),
        (
            {"question": "Q", "good": [{"role": "system", "content": "S"}, user("Q"), answer("yes")],
             "bad": [{"role": "system", "content": "S"}, user("Q"), answer("no")]},
            [{"role": "system", "content": "S"}, user("Q")],
        ),
        (
            {"question": None, "good": [user("Q"), answer("a"), user("R"), answer("yes")],
             "bad": [user("Q"), answer("a"), user("R"), answer("no")]},
            [user("Q"), answer("a"), user("R")],
        ),
    ],
)  # fmt: skip
def test_chosen_and_rejected_are_texts_or_dialogues_in_columns_of_any_name(row, turns):
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    (pair,) = convert("chosen_rejected", [row], columns=columns).pairs
    assert pair.conversations == turns and (better(pair), worse(pair)) == ("yes", "no")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q", "chosen": [user("R"), answer("a")], "rejected": [user("R"), answer("b")]},
         "chosen answers another prompt than the prompt column has"),
        ({"chosen": [user("Q"), answer("a")], "rejected": [user("R"), answer("b")]},
         "chosen and rejected answer different prompts"),
        ({"prompt": "Q", "chosen": [answer("a"), user("b")], "rejected": [answer("a"), user("c")]},
         "dialogue that does not end in an answer"),
        ({"chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": "Q", "chosen": {"text": "a"}, "rejected": "b"}, "dict in place of a text"),
    ],
)  # fmt: skip
def test_rows_that_are_no_comparison_are_left_out(row, reason):
    assert convert("chosen_rejected", [row]).left_out == {reason: 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--columns", "chosen=nowhere"], "row 0 has no column 'nowhere'"),
        (["--columns", "winner=chosen"], "--columns winner=…: the columns of chosen_rejected that can be named are"),
        (["--columns", "chosen"], "--columns chosen: expected NAME=COLUMN"),
        (["--labels", "0=A,1=B"], "--labels is for the layout r_align"),
        (["--labels", "0=C"], "--labels 0=C: expected LABEL=A,LABEL=B"),
    ],
)  # fmt: skip
def test_a_mistake_in_an_option_is_named(tmp_path, options, said):
    write(tmp_path / "c.jsonl", _CHOSEN_REJECTED)
    with pytest.raises(UserError) as error:
        _main(["convert", "chosen_rejected", f"{tmp_path}/c.jsonl", f"{tmp_path}/o.jsonl", *options])
    assert said in str(error.value)
    with pytest.raises(UserError, match="pairs are written as JSON lines"):
        _main(["convert", "chosen_rejected", f"{tmp_path}/c.jsonl", f"{tmp_path}/o.parquet"])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_labels_and_ids_as_people_have_them(tmp_path, capsys):
    labels = ["A", "b", " B ", 0, 1, "0", True, 1.0, "tie", "Tie (bothbad)", None, 2]
    rows = [{**_R_ALIGN[0], "id": 100 + n, "gt_label": label} for n, label in enumerate(labels)]
    write(tmp_path / "r.jsonl", rows)
    args = ["convert", "r_align", f"{tmp_path}/r.jsonl", f"{tmp_path}/o.jsonl"]
    with pytest.raises(UserError, match="row 3: gt_label 0 can mean either response: .* --labels 0=A,1=B"):
        _main(args)
    assert not (tmp_path / "o.jsonl").exists()
    _main([*args, "--labels", "0=A,1=B,true=A,2=tie"])
    pairs = read_pairs(tmp_path / "o.jsonl")
    assert [(pair.id, pair.gt_label) for pair in pairs] == list(
        zip([f"{100 + n}" for n in range(8)], "ABBABAAB", strict=True)
    )
    assert "left out: 3 tie, 1 no gt_label" in capsys.readouterr().out
    _main([*args, "--labels", "0=B,1=A,true=A,2=tie"])
    assert "".join(pair.gt_label for pair in read_pairs(tmp_path / "o.jsonl")) == "ABBBABAA"


def test_columns_of_two_responses_with_a_label_have_any_names(tmp_path):
    rows = [{"q": "1+1?", "first": "2", "second": "3", "winner": "a", "why": "3 is wrong. \\boxed{A}"}]
    write(tmp_path / "r.jsonl", rows)
    names = "conversations=q,response_A=first,response_B=second,gt_label=winner,gt_judgment=why"
    _main(["convert", "r_align", f"{tmp_path}/r.jsonl", f"{tmp_path}/o.jsonl", "--columns", names])
    (pair,) = read_pairs(tmp_path / "o.jsonl")
    assert (pair.response_A, pair.gt_label, pair.gt_judgment) == ("2", "A", rows[0]["why"])
    assert pair.conversations == [user("1+1?")]


def test_contents_of_two_types_are_read_from_json_and_dates_stay_text(tmp_path):
    """Arrow's reader wants one type a column, and makes dates of texts."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "When?"}]}]
    rows = [
        {**_R_ALIGN[0], "id": "a", "response_A": "2026-01-02T03:04:05", "conversations": [user("When?")]},
        {**_R_ALIGN[0], "id": "b", "response_A": "2026-01-02T03:04:05", "conversations": parts, "extra": 1},
    ]
    write(tmp_path / "r.json", rows)
    first, second = convert("r_align", load_rows(f"{tmp_path}/r.json")).pairs
    assert first.conversations == second.conversations == [user("When?")]
    assert first.response_A == second.response_A == "2026-01-02T03:04:05"


def test_ids_are_unique_also_where_a_set_has_such_ids_itself():
    rows = [{"question_id": id, "winner": "model_a", "prompt": "q", "response_1": "a", "response_2": "b"} for id in (
        "x#2", "x", "x", "x", "x#2", "x#3")]  # fmt: skip
    ids = [pair.id for pair in convert("ppe", rows).pairs]
    assert ids == ["ppe-x#2", "ppe-x", "ppe-x#3", "ppe-x#4", "ppe-x#2#2", "ppe-x#3#2"]


class Row(dict):
    """A row with every column; `choose` gives the value of a column by its name."""

    def __init__(self, choose):
        self.choose = choose

    def __missing__(self, name):
        return self.choose(name)

    def get(self, name, default=None):
        return self.choose(name)


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], [5], [None], {"a": 1}, [{"role": "user"}], float("nan"), b"x"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_another_shape_are_a_mistake_or_left_out(layout, value):
    for other in ("x", -1, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]):
        for share in range(1, 4):
            row = Row(lambda name, other=other, share=share: value if len(name) % 3 < share else other)
            with contextlib.suppress(UserError):
                convert(layout, [row])
    with pytest.raises(UserError, match="row 0 does not fit the layout helpsteer3: "):
        convert("helpsteer3", [Row(lambda name: "x")])


@pytest.mark.parametrize("source", ["", " ", "/", "//"])
def test_no_source_at_all_is_refused(source):
    with pytest.raises(UserError, match="SOURCE='.*': expected a file, a folder or a name"):
        load_rows(source)
