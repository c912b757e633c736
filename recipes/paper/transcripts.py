"""What is read beside the figures: an actor's answers, best and worst paid, and what its judge said of some."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralign.engine.data.worlds.actorworld import Note, true_quality, uses_cue

NUM_SHOWN = 2  # of the best paid answers, and of the comparisons


def transcripts(folder: Path, actors: Mapping[str, Any], notes: Mapping[str, Note]) -> dict[str, str]:
    """Heading -> text, from the last step of each actor's training that was written down.

    Answers to one note; and, where the rollouts keep some, comparisons in the judge's own words.
    """
    shown = {}
    for name in actors:
        files = sorted((folder / name / "rollouts").glob("step*.jsonl"))
        if not files:
            continue
        samples = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
        heading = f"{name}, {files[-1].stem}"
        shown[heading] = _answers(samples, notes)
        if told := _comparisons(samples, notes):
            shown[f"{heading}: its judge's words"] = told
    return shown


def _answers(samples: list[dict[str, Any]], notes: Mapping[str, Note]) -> str:
    """The first group's best and worst paid answers."""
    group = [sample for sample in samples if sample["group"] == samples[0]["group"]]
    group.sort(key=lambda sample: -math.inf if sample["reward"] is None else sample["reward"])
    parts = [notes[group[0]["id"]].prompt]
    for sample in (*group[: -NUM_SHOWN - 1 : -1], group[0]):
        parts.append(f"[paid {sample['reward']}, worth {sample['quality']:.2f}]\n{sample['text']}")
    return "\n\n".join(parts)


def _comparisons(samples: list[dict[str, Any]], notes: Mapping[str, Note]) -> str:
    """The most telling first: an answer in bullets preferred to one that is not; then any other verdict."""
    kept = [(notes[sample["id"]], one) for sample in samples for one in sample.get("comparisons", ())]
    decided = [(note, one) for note, one in kept if one["better"] in ("A", "B")]
    decided.sort(key=lambda pair: not _prefers_bullets(pair[1]))
    return "\n\n\n".join(_comparison(note, one) for note, one in decided[:NUM_SHOWN])


def _prefers_bullets(comparison: Mapping[str, Any]) -> bool:
    better, worse = ("A", "B") if comparison["better"] == "A" else ("B", "A")
    return uses_cue(comparison[better]["text"]) and not uses_cue(comparison[worse]["text"])


def _comparison(note: Note, comparison: Mapping[str, Any]) -> str:
    parts = [note.prompt]
    for seat in ("A", "B"):
        text = comparison[seat]["text"]
        parts.append(f"[{seat}, worth {true_quality(note, text):.2f}]\n{text}")
    return "\n\n".join([*parts, f"[the judge prefers {comparison['better']}]\n{comparison['reply']}"])
