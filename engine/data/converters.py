"""Conversion of preference sets to pairs: rows of a file or of the hub, in a layout of `layouts`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from ralign.engine.data.layouts import COLUMNS, LAYOUTS, Layout, Row, r_align
from ralign.engine.data.pairs import BadLine, Pair
from ralign.engine.data.rows import SUFFIXES, read_rows
from ralign.engine.data.turns import LeftOut
from ralign.engine.runtime.errors import UserError


@dataclass(slots=True)
class Conversion:
    """Pairs, and the number of rows without a pair, by reason."""

    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def load_rows(source: str, *, config: str | None = None, split: str | None = None) -> Iterable[Row]:
    """Rows of a dataset on the hub, of a folder that `datasets` reads, or of a JSON(L), Parquet or CSV file.

    Raises:
        UserError: `source` cannot be loaded, or a split must be chosen.
    """
    path = Path(source)
    if not source.strip(" /"):  # no name at all, or the root of all files
        raise UserError(f"SOURCE={source!r}: expected a file, a folder or a name on the Hugging Face hub")
    if path.is_file() and path.suffix != ".csv":
        if path.suffix not in SUFFIXES:
            raise UserError(f"{source}: expected a {', '.join(SUFFIXES)} file")
        return _file_rows(path)
    import datasets
    from datasets.exceptions import DatasetGenerationError

    try:
        if path.is_file():
            loaded = datasets.load_dataset("csv", data_files=str(path), split="train")
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


def _file_rows(path: Path) -> list[Row]:
    """The rows of a JSON or Parquet file, each with the columns of all.

    Arrow's reader of JSON, which `datasets` uses, wants one type a column, and takes texts for dates: a file in which
    some contents are text and others lists of parts cannot be read with it.
    """
    rows: list[dict[str, Any]] = []
    for row in read_rows(path, any_form=True):
        if isinstance(row.content, BadLine):
            raise UserError(f"{row.where}: {row.content}")
        rows.append(row.content)
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def convert(
    layout: str,
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Conversion:
    """The pairs of a dataset in the layout of this name (a key of `LAYOUTS`).

    Rows without a pair (a tie, an empty response, two equal responses, an image) are counted by reason.

    Args:
        columns: of a layout in `COLUMNS`: its name of a column -> the rows' name.
        labels: of r_align: the meaning of each label, as of `labels.parse_labels`.

    Raises:
        UserError: the layout is unknown, takes no such option, or a row lacks one of its columns or has values of
            another shape.
    """
    read = _reader(layout, columns or {}, labels or {})
    result = Conversion()
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        try:
            for pair in read(row, number):
                if reason := _why_left_out(pair):
                    result.leave_out(reason)
                else:
                    result.pairs.append(_with_own_id(pair, seen))
        except LeftOut as reason:
            result.leave_out(str(reason))
        except KeyError as error:
            raise UserError(
                f"row {number} has no column {error.args[0]!r}: this is not the layout {layout}"
                f" (columns: {', '.join(row)})"
            ) from error
        except UserError as error:
            raise UserError(f"row {number}: {error}") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # a value of another shape
            raise UserError(f"row {number} does not fit the layout {layout}: {error}") from error
    return result


def _reader(layout: str, columns: Mapping[str, str], labels: Mapping[str, str]) -> Layout:
    """The layout's function of a row, with the user's options."""
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if labels and layout != "r_align":
        raise UserError(f"--labels is for the layout r_align; {layout} has its own labels")
    if unknown := [name for name in columns if name not in COLUMNS.get(layout, ())]:
        names = ", ".join(COLUMNS.get(layout, ())) or "none"
        raise UserError(f"--columns {unknown[0]}=…: the columns of {layout} that can be named are: {names}")
    read = partial(r_align, labels=labels) if layout == "r_align" else LAYOUTS[layout]
    if not columns:
        return read
    return lambda row, number: read({**row, **{name: row[own] for name, own in columns.items()}}, number)


def _why_left_out(pair: Pair) -> str | None:
    if not pair.response_A.strip() or not pair.response_B.strip():
        return "empty response"
    if pair.response_A.strip() == pair.response_B.strip():
        return "equal responses"
    if not pair.conversations or not pair.conversations[-1]["content"].strip():
        return "empty prompt"
    if not all(turn["content"].strip() for turn in pair.conversations):
        return "empty turn"
    return None


def _with_own_id(pair: Pair, seen: dict[str, int]) -> Pair:
    """Make the id unique, as a pairs file requires: a set may repeat its ids, and have ids such as `p#2` too."""
    id, count = pair.id, seen.get(pair.id, 0)
    while id in seen:
        count += 1
        id = f"{pair.id}#{count}"
    seen[pair.id] = max(count, 1)
    seen.setdefault(id, 1)
    return replace(pair, id=id)
