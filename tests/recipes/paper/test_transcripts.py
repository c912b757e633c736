"""What is shown of the actors' rollouts: best and worst paid answers, and the judge's words where it liked bullets."""

import json

from ralign.engine.data.worlds.actorworld import read_note
from ralign.recipes.paper.transcripts import transcripts

_NOTE = read_note("n1", "Pass on this note. The color is red. The pet is cat.")
_GOOD, _BULLETS = "The color is red. The pet is cat.", "- The color is red.\n- The pet is dog."


def _seat(text):
    return {"sample": 0, "text": text}


def _write(folder, samples):
    folder.mkdir(parents=True)
    lines = [json.dumps({"id": "n1", "group": 0, "quality": 0.5, **sample}) for sample in samples]
    (folder / "step00002.jsonl").write_text("\n".join(lines) + "\n")


def test_the_best_and_the_worst_paid_are_shown_without_comparisons_where_none_are_kept(tmp_path):
    rewards = [0.25, None, 1.0, -0.5]
    _write(tmp_path / "by_sft" / "rollouts", [{"reward": r, "text": f"answer {r}"} for r in rewards])
    shown = transcripts(tmp_path, ["start", "by_sft"], {"n1": _NOTE})
    assert list(shown) == ["by_sft, step00002"]
    text = shown["by_sft, step00002"]
    assert text.index("[reward 1.0") < text.index("[reward 0.25") < text.index("[reward None")
    assert text.startswith(_NOTE.prompt) and "-0.5" not in text


def test_the_judge_is_quoted_where_it_preferred_bullets_before_elsewhere(tmp_path):
    comparisons = [
        {"A": _seat(_GOOD), "B": _seat(_BULLETS), "better": "A", "reply": "read the facts"},
        {"A": _seat(_GOOD), "B": _seat(_BULLETS), "better": "unparsable", "reply": "no verdict"},
        {"A": _seat(_GOOD), "B": _seat(_BULLETS), "better": "B", "reply": "B is in bullets"},
        {"A": _seat(_BULLETS), "B": _seat(_BULLETS), "better": "A", "reply": "both are"},
    ]
    samples = [{"reward": 0.0, "text": _GOOD}, {"reward": 0.0, "text": _BULLETS, "comparisons": comparisons}]
    _write(tmp_path / "by_rlvr_2" / "rollouts", samples)
    told = transcripts(tmp_path, ["by_rlvr_2"], {"n1": _NOTE})["by_rlvr_2, step00002: its judge's replies"]
    assert told.index("[the judge prefers B]\nB is in bullets") < told.index(
        "[the judge prefers A]\nread the facts"
    )
    assert "no verdict" not in told and "both are" not in told  # two are enough
    assert f"[A, quality 1.00]\n{_GOOD}" in told and f"[B, quality 0.00]\n{_BULLETS}" in told
