"""Converts published preference sets from their Hugging Face layouts to pairs, with `datasets`.

    name            dataset                                  label
    helpsteer3      nvidia/HelpSteer3 (preference)           overall_preference: below 0 the first; 0 is left out
    rewardbench2    allenai/reward-bench-2                   chosen against each rejected
    ppe             lmarena-ai/PPE-Human-Preference-V1       winner; ties are left out
    skywork         Skywork/Skywork-Reward-Preference-80K    chosen
    code            Vezora/Code-Preference-Pairs             accepted
    math            xinlai/Math-Step-DPO-10K                 full_chosen, after the steps that both share
    r_align         lyn22333/R-Align-RL-Data and -BMK-Data   the pairs schema itself

If a set gives the two responses an order (helpsteer3, ppe, r_align), it is kept. Otherwise a hash of the pair's id
decides whether the better response is A or B, so the sides are balanced and a conversion is reproducible. Only
R-Align's sets have golden judgments; elsewhere ``gt_judgment`` is "" until `ralign-annotate` writes it. HelpSteer3's
human reasons go to ``meta.reviews`` for the annotator, with the names Response A and Response B.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ralign.engine.data.pairs import SIDES, BadLine, Pair, Side, parse_pair
from ralign.engine.runtime.errors import UserError

Row = Mapping[str, Any]
_AT_SIGN = re.compile(r"@([Rr]esponse) ?([12])\b")
_NUMBERED = re.compile(r"\b([Rr]esponses?) ([12])\b(?:( (?:and|or|&|vs\.?|than) |/)([12])\b)?")
_SIDE_OF = {"1": "A", "2": "B"}


@dataclass(slots=True)
class Conversion:
    """Pairs, and the number of rows without a pair, by reason."""

    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


class _LeftOut(Exception):
    """The reason why a row has no pair."""


def load_rows(source: str, *, config: str | None = None, split: str | None = None) -> Iterable[Row]:
    """Rows of a dataset on the hub, of a folder that `datasets` reads, or of a JSON(L), Parquet or CSV file.

    Raises:
        UserError: `source` cannot be loaded, or a split must be chosen.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    kinds = {".jsonl": "json", ".json": "json", ".gz": "json", ".parquet": "parquet", ".csv": "csv"}
    path = Path(source)
    try:
        if path.is_file():
            if path.suffix not in kinds:
                raise UserError(f"{source}: expected a {', '.join(kinds)} file")
            loaded = datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train")
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(source)
            loaded = loaded[split] if split and isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            loaded = datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, KeyError, DatasetGenerationError) as error:
        raise UserError(f"cannot load {source}: {' '.join(str(error).split())[:300]}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) > 1:
            raise UserError(f"{source} has the splits {', '.join(map(str, loaded))}: choose one with --split")
        (loaded,) = loaded.values()
    return cast(Iterable[Row], loaded)


def convert(layout: str, rows: Iterable[Row]) -> Conversion:
    """The pairs of a dataset in the layout of this name (a key of `LAYOUTS`).

    Rows without a pair (a tie, an empty response, two equal responses) are counted by reason.

    Raises:
        UserError: the layout is unknown, or a row lacks one of its columns or has values of another shape.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    result = Conversion()
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        try:
            for pair in LAYOUTS[layout](row, number):
                result.pairs.append(_with_own_id(_checked(pair), seen))
        except _LeftOut as reason:
            result.leave_out(str(reason))
        except KeyError as error:
            raise UserError(
                f"row {number} has no column {error.args[0]!r}: this is not the layout {layout}"
                f" (columns: {', '.join(row)})"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # a value of another shape
            raise UserError(f"row {number} does not fit the layout {layout}: {error}") from error
    return result


def _checked(pair: Pair) -> Pair:
    if not pair.response_A.strip() or not pair.response_B.strip():
        raise _LeftOut("empty response")
    if pair.response_A.strip() == pair.response_B.strip():
        raise _LeftOut("equal responses")
    if not pair.conversations or not pair.conversations[-1]["content"].strip():
        raise _LeftOut("empty prompt")
    return pair


def _with_own_id(pair: Pair, seen: dict[str, int]) -> Pair:
    """Make the id unique, as a pairs file requires: a set may repeat its ids, and have ids such as `p#2` too."""
    id, count = pair.id, seen.get(pair.id, 0)
    while id in seen:
        count += 1
        id = f"{pair.id}#{count}"
    seen[pair.id] = max(count, 1)
    seen.setdefault(id, 1)
    return replace(pair, id=id)


def _turns(value: Any) -> list[dict[str, str]]:
    """Turns of a dialogue, from a prompt or a list of turns."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [{"role": str(turn["role"]), "content": str(turn["content"] or "")} for turn in value]


def _ordered(id: str, better: str, worse: str) -> tuple[str, str, Side]:
    """(response_A, response_B, label), by a hash of the id."""
    label: Side = SIDES[hashlib.sha256(id.encode()).digest()[0] % 2]
    return (better, worse, label) if label == "A" else (worse, better, label)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


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
    responses = (_text(row["response1"]), _text(row["response2"]), "A" if preference < 0 else "B")
    if preference == 0:
        raise _LeftOut("tie")
    reviews = [
        _sides(text)
        for each in row.get("individual_preference") or []
        if (text := each.get("reasoning")) and _agrees(each.get("score"), preference)
    ]
    yield _pair(
        f"helpsteer3-{number:06d}",
        "helpsteer3",
        row["domain"],
        _turns(row["context"]),
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
    if not row["chosen"] or not row["rejected"]:
        raise _LeftOut("no chosen or no rejected response")
    turns = _turns(row["prompt"])
    for index, rejected in enumerate(row["rejected"]):
        id = f"rewardbench2-{row['id']}-{index}"
        responses = _ordered(id, _text(row["chosen"][0]), _text(rejected))
        yield _pair(id, "rewardbench2", row["subset"], turns, responses, prompt_id=str(row["id"]))


def _ppe(row: Row, number: int) -> Iterator[Pair]:
    labels: dict[str, Side] = {"model_a": "A", "model_b": "B"}
    responses = (_text(row["response_1"]), _text(row["response_2"]), labels.get(row["winner"], "A"))
    if row["winner"] not in labels:
        raise _LeftOut("tie")
    yield _pair(
        f"ppe-{row['question_id']}",
        "ppe",
        row.get("language"),
        _turns(row["prompt"]),
        responses,
        model_A=row.get("model_a"),
        model_B=row.get("model_b"),
    )


def _skywork(row: Row, number: int) -> Iterator[Pair]:
    chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
    if chosen[:-1] != rejected[:-1]:
        raise _LeftOut("chosen and rejected answer different prompts")
    id = f"skywork-{number:06d}"
    responses = _ordered(id, chosen[-1]["content"], rejected[-1]["content"])
    yield _pair(id, "skywork", row.get("source"), chosen[:-1], responses)


def _code(row: Row, number: int) -> Iterator[Pair]:
    id = f"code-{number:06d}"
    responses = _ordered(id, _text(row["accepted"]), _text(row["rejected"]))
    yield _pair(id, "code", None, _turns(_text(row["input"])), responses)


def _math(row: Row, number: int) -> Iterator[Pair]:
    id = f"math-{number:06d}"
    # full_chosen and full_rejected continue the shared steps, which end in the middle of a line ("Step 3:").
    shared, better, worse = (
        _text(row[name]) for name in ("initial_reason_steps", "full_chosen", "full_rejected")
    )
    if not better.strip() or not worse.strip():
        raise _LeftOut("empty response")
    responses = _ordered(id, shared + better, shared + worse)
    turns = _turns(_text(row["prompt"]))
    yield _pair(id, "math", row.get("dataset"), turns, responses, answer=row.get("answer"))


def _r_align(row: Row, number: int) -> Iterator[Pair]:
    needed = ("conversations", "response_A", "response_B", "gt_label", "gt_judgment")
    fields = {name: row[name] for name in needed}
    source = row.get("source") or "r-align"
    if isinstance(source, Mapping):  # Arrow sets the keys that a row's object lacks to null
        source = {name: value for name, value in source.items() if value is not None}
    record = {
        **fields,
        "id": _text(row.get("id")) or f"r-align-{number:06d}",
        "source": source,
        "conversations": _turns(row["conversations"]),
        "meta": dict(row.get("meta") or {}),
    }
    try:
        yield parse_pair(record, need_golden=False)
    except BadLine as bad:
        raise _LeftOut(str(bad)) from bad


LAYOUTS: dict[str, Callable[[Row, int], Iterator[Pair]]] = {
    "helpsteer3": _helpsteer3,
    "rewardbench2": _rewardbench2,
    "ppe": _ppe,
    "skywork": _skywork,
    "code": _code,
    "math": _math,
    "r_align": _r_align,
}
