"""Warm starts on users' pairs: which judgments are taken, and their token ids."""

import json
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.run import GenRMRun, SFTConfig
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import BOXED
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import MetaRM, Outcome, Review
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.demonstrations import golden, judgment_ids, rejection

EOS, THINK, END = 0, 900, 901


class Tokenizer:
    """One token a character; the tags of thinking are added tokens, as in Qwen3."""

    eos_token_id = EOS
    all_special_ids = (EOS,)
    bos_token = None

    def get_added_vocab(self):
        return {"<think>": THINK, "</think>": END}

    def decode(self, ids, **_):
        names = {THINK: "<think>", END: "</think>", EOS: ""}
        return "".join(names.get(i, chr(i)) for i in ids)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(
        "ralign.engine.training.demonstrations.encode_text",
        lambda text, tokenizer: np.array([*map(ord, text)]),
    )


def text_of(ids):
    assert ids[-1] == EOS and ids.dtype == np.int64
    return Tokenizer().decode(ids)


@pytest.mark.parametrize(
    ("text", "opens", "expected", "num_tags"),
    [
        ("said", False, "said", 0),
        ("<think>t</think>said", False, "<think>t</think>said", 2),
        ("<think>t</think>said", True, "t</think>said", 1),  # the prompt has the first tag
        ("said", True, "</think>said", 1),  # no thinking: the block is closed at once
        ("said <think>", False, "said <think>", 0),  # what is not thinking is text
    ],
)
def test_tags_of_thinking_are_the_models_tokens_and_all_else_is_text(text, opens, expected, num_tags):
    ids = judgment_ids(text, Tokenizer(), opens_thinking=opens)
    assert text_of(ids) == expected
    assert sum(i in (THINK, END) for i in ids) == num_tags


def make_example(name, judgment, label="A"):
    pair = Pair(
        id=name,
        source="s",
        conversations=[{"role": "user", "content": "q"}],
        response_A="a",
        response_B="b",
        gt_label=label,
        gt_judgment=judgment,
    )
    return Example(pair=pair, prompt_ids=np.arange(3))


class Marked(MetaRM):
    """Correct where the judgment says so."""

    def review(self, pair, judgment):
        future = Future()
        future.set_result(Review(outcome=Outcome.CORRECT if "good" in judgment else Outcome.INCORRECT))
        return future


class Scripted:
    """Samples the given texts in turn."""

    def __init__(self, replicas, texts, cut=()):
        self.replicas, self.texts, self.cut, self.num_calls = replicas, texts, cut, 0

    def generate(self, prompts, *, on_finished, **_):
        self.num_calls += 1
        assert len(prompts) == len(self.texts)
        rollouts = [
            Rollout(
                prompt_index=n,
                response_ids=np.array([*map(ord, text), EOS]),
                logprobs=np.zeros(len(text) + 1, dtype=np.float32),
                finish_reason="length" if n in self.cut else "stop",
                weight_version=0,
            )
            for n, text in enumerate(self.texts)
        ]
        for n, rollout in enumerate(rollouts):
            on_finished(n, rollout)
        return rollouts


@pytest.fixture
def make_genrm(one_rank, tmp_path):
    def make(texts=(), cut=(), **sft):
        run = GenRMRun(out=str(tmp_path), algo=AlgoConfig(num_samples=3), sft=SFTConfig(num_pairs=2, **sft))
        session = SimpleNamespace(
            tokenizer=Tokenizer(),
            generator=Scripted(one_rank, texts, cut),
            cluster=SimpleNamespace(on_first_rank=lambda call: call()),
            progress=SimpleNamespace(say=lambda line: said.append(line)),
            phase=lambda name: nullcontext(),
            begin_generation=lambda: None,
        )
        said: list[str] = []
        return SimpleNamespace(run=run, session=session, metarm=Marked(), form=BOXED, said=said)

    return make


def test_golden_judgments_are_taken_where_their_verdict_is_the_label(make_genrm):
    genrm = make_genrm()
    examples = [
        make_example("right", r"why \boxed{A}"),
        make_example("wrong", r"why \boxed{B}"),
        make_example("none", "why"),
        make_example("long", "w" * 500 + r"\boxed{A}"),
    ]
    found = golden(genrm, examples)
    assert [example.pair.id for example in found.examples] == ["right"]
    assert text_of(found.answers[0]) == r"why \boxed{A}"
    assert found.left_out == {
        "verdict in the form boxed is missing or not the label": 2,
        "over generator.max_new_tokens=128": 1,
    }
    assert "3 of 4 pairs left out" in genrm.said[0]
    with pytest.raises(UserError, match="sft.source=golden: no judgment of 1 pairs can be used"):
        golden(genrm, examples[1:2])


SAMPLED = [
    *(r"bad \boxed{A}", r"good \boxed{A}", r"good too \boxed{A}"),  # of the first pair
    *(r"good \boxed{B}", r"good cut \boxed{A}", r"good \boxed{A} \boxed{B}"),  # of the second: none
]


@pytest.mark.parametrize(("keep", "texts"), [(1, SAMPLED[1:2]), (5, SAMPLED[1:3])])
def test_rejection_keeps_what_is_right_and_correct_and_whole(make_genrm, tmp_path, keep, texts):
    genrm = make_genrm(SAMPLED, cut={4}, keep_per_pair=keep, source="rejection")
    examples = [make_example("one", "g"), make_example("two", "g"), make_example("over num_pairs", "g")]
    found = rejection(genrm, examples, tmp_path / "sft")
    assert [text_of(ids) for ids in found.answers] == texts
    assert {example.pair.id for example in found.examples} == {"one"}
    assert found.left_out == {"none of 3 judgments is right and Correct": 1}
    records = [json.loads(line) for line in (tmp_path / "sft" / "rejection.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == texts
    again = rejection(genrm, examples, tmp_path / "sft")  # a resumed run reads what was kept
    assert genrm.session.generator.num_calls == 1
    assert all((a == b).all() for a, b in zip(again.answers, found.answers, strict=True))


def test_rejection_without_a_good_judgment_ends_the_run(make_genrm, tmp_path):
    genrm = make_genrm([r"bad \boxed{A}"] * 6, source="rejection")
    with pytest.raises(UserError, match="sft.source=rejection: no judgment of 2 pairs"):
        rejection(genrm, [make_example("one", "g"), make_example("two", "g")], tmp_path)
