"""The answers of `ralign-annotate` as they come, one line each, so that a killed run repeats no answered request."""

import json
from pathlib import Path

from ralign.engine.data.pairs import BadLine, Pair, parse_object
from ralign.engine.data.verdicts import visible
from ralign.engine.judging.client_reply import MAX_TOKENS
from ralign.engine.judging.judge import Reply
from ralign.engine.runtime.append_log import LineLog
from ralign.engine.runtime.errors import UserError

_MAX_CHARGED = 1000 * MAX_TOKENS  # of one request with all its tries


class Journal:
    """All answers, one JSON object a line. `add` returns when the line is on disk; a torn last line is dropped.

    A line has the fields of an answer (see `add`), or of a failed call that cost tokens: `id`, `failed` and `tokens`.

    Attributes:
        tries: key -> its answers so far.
        tokens: (prompt, answer) tokens of all answers and failed calls.
    """

    def __init__(self, path: Path):
        """Open the journal for this process only.

        Raises:
            UserError: that fails, another process has it open, or a line is not one of a journal.
        """
        self.tries: dict[str, list[dict]] = {}
        self.tokens = (0, 0)
        self._log = LineLog(path)
        for number, line in enumerate(self._log.lines(), start=1):
            try:
                entry = parse_object(line)
                _check_entry(entry)
            except BadLine as bad:
                self._log.close()
                raise UserError(f"{path}:{number}: not a line of this journal ({bad})") from bad
            self._take(entry)

    def _take(self, entry: dict) -> None:
        if "failed" not in entry:
            self.tries.setdefault(entry["key"], []).append(entry)
        self.tokens = (self.tokens[0] + entry["tokens"][0], self.tokens[1] + entry["tokens"][1])

    def add(self, key: str, pair: Pair, reply: Reply, reason: str | None) -> None:
        """Append an answer. `reason`: why it is rejected; None keeps it. UserError if it cannot be written."""
        tokens = [0, 0] if reply.cached else [reply.num_prompt_tokens, reply.num_answer_tokens]
        judgment = visible(reply.text)
        self._append({"key": key, "id": pair.id, "reason": reason, "judgment": judgment, "tokens": tokens})

    def add_failed(self, pair: Pair, reply: Reply) -> None:
        """Append the tokens of a call without usable text. UserError if it cannot be written."""
        tokens = [reply.num_prompt_tokens, reply.num_answer_tokens]
        self._append({"id": pair.id, "failed": reply.problem, "tokens": tokens})

    def _append(self, entry: dict) -> None:
        self._log.add(json.dumps(entry).encode())
        self._take(entry)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._log.close()


def _check_entry(entry: dict) -> None:
    """Raises BadLine unless the entry has the fields of a line in the journal."""
    texts = ("id", "failed") if "failed" in entry else ("key", "id", "judgment")
    for name in texts:
        if not isinstance(entry.get(name), str):
            raise BadLine(f"{name} must be text")
    if "failed" not in entry and not isinstance(entry.get("reason", 0), str | None):
        raise BadLine("reason must be text or null")
    tokens = entry.get("tokens")
    if not isinstance(tokens, list) or len(tokens) != 2:
        raise BadLine("tokens must be two numbers")
    if any(type(count) is not int or not 0 <= count <= _MAX_CHARGED for count in tokens):
        raise BadLine(f"tokens must be whole numbers from 0 to {_MAX_CHARGED}")
