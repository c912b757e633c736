"""An HTML page for reading judgments: one offline file, fast with thousands of judgments.

`browser.html` has the page's text, style and script. This module packs the judgments into it: an index for the filters
as JSON, and the texts as gzipped JSON in base64, in chunks that the page unpacks on demand. The document contains only
the visible rows.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from ralign.engine.report.summary import baselines_on, display, flip_rows, metric_columns, percent, tests_of
from ralign.engine.report.terminal import count_columns
from ralign.engine.runtime.files import write_text

_TEMPLATE = Path(__file__).with_name("browser.html")
_CHUNK_CHARS = 4_000_000
_TITLE_CHARS = 120
_KINDS = {"Correct": "correct", "Incorrect": "incorrect", "CallFail": "failed", "ParseFail": "failed"}

Records = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by model and test


def write_browser(
    summary: Mapping[str, Any],
    records: Records,
    path: str | Path,
    *,
    title: str = "Right for the right reasons?",
    subset_of=lambda record: "",
    figure: str | Path | None = None,
) -> Path:
    """Writes the page and returns `path`.

    Args:
        records: judged pairs by model and test, with the released evaluator's fields (`evaluation.records`). Texts
            that a record lacks are shown as missing.
        subset_of: record -> the name of its subset.
        figure: a PNG to embed in the summary.
    """
    index, chunks = _pack(records, subset_of)
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    results = [
        (display(test), display(model), result)
        for model, tests in summary["models"].items()
        for test, result in tests.items()
    ]
    text = page.render(
        title=title,
        columns=metric_columns([result for *_, result in results]),
        flips=flip_rows(summary),
        rows=sorted(results, key=lambda row: row[0]),
        rules=[
            (display(test), title, result)
            for test in tests_of(summary)
            for title, result in baselines_on(summary, test).items()
        ],
        notes=summary.get("notes", []),
        percent=percent,
        counts=count_columns([result for *_, result in results]),
        figure=base64.b64encode(Path(figure).read_bytes()).decode() if figure else None,
        chunks=chunks,
        # A <script> is not unescaped, and only "</script" and "<!--" in it have a meaning.
        index=Markup(json.dumps(index, ensure_ascii=False).replace("<", "\\u003c")),
    )
    write_text(path, text)
    return Path(path)


def _pack(records: Records, subset_of) -> tuple[dict[str, Any], list[str]]:
    """The index of all rows for the filters, and the chunks of texts."""
    models = list(records)
    tests = list(dict.fromkeys(test for by_test in records.values() for test in by_test))
    subsets: dict[str, int] = {}
    numbers: dict[tuple[str, str], int] = {}  # test and id -> the pair's number
    rows, ids, titles, rows_of_pair = [], [], [], []
    packer = _Packer()
    for model, by_test in records.items():
        for test, judged in by_test.items():
            for record in judged:
                key = (test, str(record["id"]))
                if key not in numbers:
                    numbers[key] = len(numbers)
                    pair = _pair(record)
                    packer.add("pairs", pair)
                    ids.append(pair["id"])
                    titles.append(_title(pair))
                    rows_of_pair.append([])
                subset = subsets.setdefault(subset_of(record), len(subsets))
                row = [models.index(model), tests.index(test), subset, _kind(record), _disagree(record)]
                rows_of_pair[numbers[key]].append(len(rows))
                rows.append([numbers[key], *row])
                packer.add("rows", _row(record))
    chunks = packer.finish()
    index = {
        "models": [display(model) for model in models],
        "tests": [display(test) for test in tests],
        "subsets": list(subsets),
        "rows": rows,
        "ids": ids,
        "titles": titles,
        "rows_of_pair": {n: found for n, found in enumerate(rows_of_pair) if len(found) > 1},
        "row_chunk": packer.firsts["rows"],
        "pair_chunk": packer.firsts["pairs"],
    }
    return index, chunks


class _Packer:
    """Collects numbered texts in chunks; `firsts` has the first numbers of each chunk."""

    def __init__(self) -> None:
        self.firsts: dict[str, list[int]] = {"pairs": [0], "rows": [0]}
        self._counts = {"pairs": 0, "rows": 0}
        self._parts: dict[str, list[str]] = {"pairs": [], "rows": []}
        self._num_chars = 0
        self._chunks: list[str] = []

    def add(self, kind: str, content: Mapping[str, Any]) -> None:
        text = json.dumps([self._counts[kind], content], ensure_ascii=False)
        if self._num_chars + len(text) > _CHUNK_CHARS and self._num_chars:
            self._cut()
            for name, firsts in self.firsts.items():
                firsts.append(self._counts[name])
        self._counts[kind] += 1
        self._parts[kind].append(text)
        self._num_chars += len(text)

    def finish(self) -> list[str]:
        """All chunks: gzipped JSON objects with `pairs` and `rows`, in base64."""
        self._cut()
        return self._chunks

    def _cut(self) -> None:
        content = ",".join(f'"{kind}":[{",".join(parts)}]' for kind, parts in self._parts.items())
        packed = gzip.compress(f"{{{content}}}".encode("utf-8", "backslashreplace"), compresslevel=6, mtime=0)
        self._chunks.append(base64.b64encode(packed).decode("ascii"))
        self._parts = {"pairs": [], "rows": []}
        self._num_chars = 0


def _pair(record: Mapping[str, Any]) -> dict[str, Any]:
    turns = record.get("conversations") or []
    return {
        "id": str(record["id"]),
        "turns": [[turn["role"], turn["content"]] for turn in turns],
        "a": record.get("response_A") or "",
        "b": record.get("response_B") or "",
        "label": record["gt_label"],
        "golden": record.get("gt_judgment") or "",
    }


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    meta = record.get("meta") or {}
    row = {
        "text": record.get("model_judgment") or "",
        "pred": record["model_pred"],
        "outcome": record["metarm_verdict"],
        "analysis": record.get("metarm_analysis") or "",
        "raw": record.get("metarm_raw") or "",
        "error": meta.get("metarm_error") or "",
        "call_error": f"The call failed: {meta['model_error']}" if meta.get("model_error") else "",
    }
    if "model_pred_swapped" in record:
        row |= {
            "pred_swapped": record["model_pred_swapped"],
            "swapped": record.get("model_judgment_swapped") or "",
        }
    return row


def _kind(record: Mapping[str, Any]) -> str:
    if record["model_pred"] is None:
        return "unread"
    return _KINDS.get(record["metarm_verdict"], "wrong")


def _disagree(record: Mapping[str, Any]) -> int:
    """1 if both orders were judged and the two verdicts do not name the same response."""
    if "model_pred_swapped" not in record:
        return 0
    return int({record["model_pred"], record["model_pred_swapped"]} != {"A", "B"})


def _title(pair: Mapping[str, Any]) -> str:
    prompt = pair["turns"][-1][1] if pair["turns"] else pair["id"]
    return " ".join(prompt[: 2 * _TITLE_CHARS].split())[:_TITLE_CHARS]
