"""Layouts of published preference sets, and of a user's own: the pairs of a row.

    name            dataset                                  label
    helpsteer3      nvidia/HelpSteer3 (preference)           overall_preference: below 0 the first; 0 is left out
    rewardbench2    allenai/reward-bench-2                   chosen against each rejected
    ppe             lmarena-ai/PPE-Human-Preference-V1       winner; ties are left out
    skywork         Skywork/Skywork-Reward-Preference-80K    chosen
    code            Vezora/Code-Preference-Pairs             accepted
    math            xinlai/Math-Step-DPO-10K                 full_chosen, after the steps that both share
    r_align         lyn22333/R-Align-RL-Data and -BMK-Data   the pairs schema itself: A, B, a, b, or by `labels`
    chosen_rejected any set with such columns                chosen

If a set gives the two responses an order (helpsteer3, ppe, r_align), it is kept. Otherwise a hash of the pair's id
decides whether the better response is A or B, so the sides are balanced and a conversion is reproducible. Only
R-Align's sets have golden judgments; elsewhere ``gt_judgment`` is "" until `ralign-annotate` writes it. HelpSteer3's
human reasons go to ``meta.reviews`` for the annotator, with the names Response A and Response B.

RewardBench 2's Ties subset has several right answers to a prompt: each is paired with each wrong one, up to
`MAX_TIES_PAIRS` pairs a prompt, spread evenly over the answers. ``meta.prompt_id`` tells which pairs belong together.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ralign.engine.data.labels import side_of_label
from ralign.engine.data.pairs import SIDES, BadLine, Pair, Side, parse_pair
from ralign.engine.data.turns import LeftOut, is_dialogue, text_of, turns_of

Row = Mapping[str, Any]
Layout = Callable[[Row, int], Iterator[Pair]]
MAX_TIES_PAIRS = 64  # of one prompt of RewardBench 2's Ties subset
_AT_SIGN = re.compile(r"@([Rr]esponse) ?([12])\b")
_NUMBERED = re.compile(r"\b([Rr]esponses?) ([12])\b(?:( (?:and|or|&|vs\.?|than) |/)([12])\b)?")
_SIDE_OF = {"1": "A", "2": "B"}
_NO_MEANINGS: Mapping[str, str] = MappingProxyType({})


def _ordered(id: str, better: str, worse: str) -> tuple[str, str, Side]:
    """(response_A, response_B, label), by a hash of the id."""
    label: Side = SIDES[hashlib.sha256(id.encode()).digest()[0] % 2]
    return (better, worse, label) if label == "A" else (worse, better, label)


def _pair(id: str, dataset: str, subset: str | None, turns, responses, **meta: Any) -> Pair:
    response_a, response_b, label = responses
    source = {"dataset": dataset} | ({"subset": str(subset)} if subset else {})
    return Pair(
        id=id,
        source=source,
        conversations=turns,
        response_A=response_a,
        response_B=response_b,
        gt_label=label,
        gt_judgment="",
        meta={name: value for name, value in meta.items() if value is not None},
    )


def _helpsteer3(row: Row, number: int) -> Iterator[Pair]:
    preference = int(row["overall_preference"])
    responses = (text_of(row["response1"]), text_of(row["response2"]), "A" if preference < 0 else "B")
    if preference == 0:
        raise LeftOut("tie")
    reviews = [
        _sides(text)
        for each in row.get("individual_preference") or []
        if (text := each.get("reasoning")) and _agrees(each.get("score"), preference)
    ]
    yield _pair(
        f"helpsteer3-{number:06d}",
        "helpsteer3",
        row["domain"],
        turns_of(row["context"]),
        responses,
        language=row.get("language"),
        preference=preference,
        reviews=reviews or None,
    )


def _agrees(score: Any, preference: int) -> bool:
    return score is None or int(score) * preference > 0


def _sides(text: str) -> str:
    """Replaces the names of human reasons (@Response 1, Response 2, responses 1 and 2) by A and B."""

    def lettered(found: re.Match[str]) -> str:
        noun, first, join, second = found.groups()
        return f"{noun} {_SIDE_OF[first]}" + (f"{join}{_SIDE_OF[second]}" if second else "")

    return _NUMBERED.sub(lettered, _AT_SIGN.sub(r"\1 \2", text))


def _rewardbench2(row: Row, number: int) -> Iterator[Pair]:
    chosen, rejected = row["chosen"], row["rejected"]
    if not chosen or not rejected:
        raise LeftOut("no chosen or no rejected response")
    turns = turns_of(row["prompt"])
    is_ties = row["subset"] == "Ties"
    for right, wrong in _ties_pairs(len(chosen), len(rejected)) if is_ties else _first_pairs(len(rejected)):
        id = f"rewardbench2-{row['id']}-{f'{right}-' if is_ties else ''}{wrong}"
        responses = _ordered(id, text_of(chosen[right]), text_of(rejected[wrong]))
        yield _pair(id, "rewardbench2", row["subset"], turns, responses, prompt_id=str(row["id"]))
    if is_ties and len(chosen) * len(rejected) > MAX_TIES_PAIRS:
        raise LeftOut(f"pairs of a Ties prompt beyond {MAX_TIES_PAIRS}")


def _first_pairs(num_rejected: int) -> list[tuple[int, int]]:
    return [(0, wrong) for wrong in range(num_rejected)]


def _ties_pairs(num_chosen: int, num_rejected: int) -> list[tuple[int, int]]:
    """Up to `MAX_TIES_PAIRS` different pairs of a right and a wrong answer.

    Both indices step by one, so that every answer of either kind is in one of the first pairs; after each full cycle
    the second one shifts.
    """
    cycle = math.lcm(num_chosen, num_rejected)
    num_pairs = min(num_chosen * num_rejected, MAX_TIES_PAIRS)
    return [(n % num_chosen, (n + n // cycle) % num_rejected) for n in range(num_pairs)]


def _ppe(row: Row, number: int) -> Iterator[Pair]:
    labels: dict[str, Side] = {"model_a": "A", "model_b": "B"}
    responses = (text_of(row["response_1"]), text_of(row["response_2"]), labels.get(row["winner"], "A"))
    if row["winner"] not in labels:
        raise LeftOut("tie")
    yield _pair(
        f"ppe-{row['question_id']}",
        "ppe",
        row.get("language"),
        turns_of(row["prompt"]),
        responses,
        model_A=row.get("model_a"),
        model_B=row.get("model_b"),
    )


def _skywork(row: Row, number: int) -> Iterator[Pair]:
    chosen, rejected = turns_of(row["chosen"]), turns_of(row["rejected"])
    if chosen[:-1] != rejected[:-1]:
        raise LeftOut("chosen and rejected answer different prompts")
    id = f"skywork-{number:06d}"
    responses = _ordered(id, chosen[-1]["content"], rejected[-1]["content"])
    yield _pair(id, "skywork", row.get("source"), chosen[:-1], responses)


def _code(row: Row, number: int) -> Iterator[Pair]:
    id = f"code-{number:06d}"
    responses = _ordered(id, text_of(row["accepted"]), text_of(row["rejected"]))
    yield _pair(id, "code", None, turns_of(text_of(row["input"])), responses)


def _math(row: Row, number: int) -> Iterator[Pair]:
    id = f"math-{number:06d}"
    # full_chosen and full_rejected continue the shared steps, which end in the middle of a line ("Step 3:").
    shared, better, worse = (
        text_of(row[name]) for name in ("initial_reason_steps", "full_chosen", "full_rejected")
    )
    if not better.strip() or not worse.strip():
        raise LeftOut("empty response")
    responses = _ordered(id, shared + better, shared + worse)
    turns = turns_of(text_of(row["prompt"]))
    yield _pair(id, "math", row.get("dataset"), turns, responses, answer=row.get("answer"))


def r_align(row: Row, number: int, labels: Mapping[str, str] = _NO_MEANINGS) -> Iterator[Pair]:
    source = row.get("source") or "r-align"
    if isinstance(source, Mapping):  # Arrow sets the keys that a row's object lacks to null
        source = {name: value for name, value in source.items() if value is not None}
    record = {
        "id": text_of(row.get("id")) or f"r-align-{number:06d}",
        "source": source,
        "conversations": turns_of(row["conversations"]),
        "response_A": text_of(row["response_A"]),
        "response_B": text_of(row["response_B"]),
        "gt_label": side_of_label(row["gt_label"], labels),
        "gt_judgment": text_of(row.get("gt_judgment")),
        "meta": dict(row.get("meta") or {}),
    }
    try:
        yield parse_pair(record, need_golden=False)
    except BadLine as bad:
        raise LeftOut(str(bad)) from bad


def _chosen_rejected(row: Row, number: int) -> Iterator[Pair]:
    """chosen and rejected are texts, or dialogues that end in the answer; prompt is a text, a dialogue, or absent."""
    id = text_of(row.get("id")) or f"pair-{number:06d}"
    (before, better), (before_worse, worse) = _answered(row["chosen"]), _answered(row["rejected"])
    if before != before_worse:
        raise LeftOut("chosen and rejected answer different prompts")
    prompt = row.get("prompt")
    turns = [] if prompt is None else turns_of(prompt)
    if not before:
        before = turns
    elif before[len(before) - len(turns) :] != turns:
        raise LeftOut("chosen answers another prompt than the prompt column has")
    yield _pair(id, "chosen_rejected", text_of(row.get("source")), before, _ordered(id, better, worse))


def _answered(value: Any) -> tuple[list[dict[str, str]], str]:
    """(turns before the answer, the answer) of a text or a dialogue."""
    if not is_dialogue(value):
        return [], text_of(value)
    *turns, answer = turns_of(value)
    if answer["role"] != "assistant":
        raise LeftOut("dialogue that does not end in an answer")
    return turns, answer["content"]


LAYOUTS: dict[str, Layout] = {
    "helpsteer3": _helpsteer3,
    "rewardbench2": _rewardbench2,
    "ppe": _ppe,
    "skywork": _skywork,
    "code": _code,
    "math": _math,
    "r_align": r_align,
    "chosen_rejected": _chosen_rejected,
}
# Columns that may have other names.
COLUMNS = {
    "r_align": (
        "id",
        "source",
        "conversations",
        "response_A",
        "response_B",
        "gt_label",
        "gt_judgment",
        "meta",
    ),
    "chosen_rejected": ("id", "source", "prompt", "chosen", "rejected"),
}
