"""Transcripts for the report: answers of an actor with the highest and lowest rewards, and judged comparisons."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ralign.engine.data.worlds.actorworld import Note, true_quality, uses_cue

NUM_SHOWN = 2  # answers with the highest rewards, and comparisons


def transcripts(folder: Path, actors: Mapping[str, Any], notes: Mapping[str, Note]) -> dict[str, str]:
    """Heading -> text, from the last step of each actor's training that has rollouts.

    Contains answers to one note, and comparisons with the judge's replies, if the rollouts have some.
    """
    shown = {}
    for name in actors:
        files = sorted((folder / name / "rollouts").glob("step*.jsonl"))
        if not files:
            continue
        samples = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
        heading = f"{name}, {files[-1].stem}"
        shown[heading] = _answers(samples, notes)
        if text := _comparisons(samples, notes):
            shown[f"{heading}: its judge's replies"] = text
    return shown


def _answers(samples: list[dict[str, Any]], notes: Mapping[str, Note]) -> str:
    """The answers of the first group with the highest and the lowest rewards."""
    group = [sample for sample in samples if sample["group"] == samples[0]["group"]]
    group.sort(key=lambda sample: -math.inf if sample["reward"] is None else sample["reward"])
    parts = [notes[group[0]["id"]].prompt]
    for sample in (*group[: -NUM_SHOWN - 1 : -1], group[0]):
        parts.append(f"[reward {sample['reward']}, quality {sample['quality']:.2f}]\n{sample['text']}")
    return "\n\n".join(parts)


def _comparisons(samples: list[dict[str, Any]], notes: Mapping[str, Note]) -> str:
    """Comparisons with a verdict; first those in which an answer in bullets is preferred to one without."""
    kept = [(notes[sample["id"]], one) for sample in samples for one in sample.get("comparisons", ())]
    decided = [(note, one) for note, one in kept if one["better"] in ("A", "B")]
    decided.sort(key=lambda pair: not _prefers_bullets(pair[1]))
    return "\n\n\n".join(_comparison(note, one) for note, one in decided[:NUM_SHOWN])


def _prefers_bullets(comparison: Mapping[str, Any]) -> bool:
    better, worse = ("A", "B") if comparison["better"] == "A" else ("B", "A")
    return uses_cue(comparison[better]["text"]) and not uses_cue(comparison[worse]["text"])


def _comparison(note: Note, comparison: Mapping[str, Any]) -> str:
    parts = [note.prompt]
    for side in ("A", "B"):
        text = comparison[side]["text"]
        parts.append(f"[{side}, quality {true_quality(note, text):.2f}]\n{text}")
    return "\n\n".join([*parts, f"[the judge prefers {comparison['better']}]\n{comparison['reply']}"])
