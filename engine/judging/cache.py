"""Replies of earlier requests, and the tokens that they cost, in one SQLite file for each host.

Several processes may share the file, and a kill at any moment leaves it intact: SQLite's write-ahead log keeps every
committed reply and drops a half-written one. Each host has a file of its own, since that log does not work across
machines on a network file system.
"""

import fcntl
import hashlib
import json
import socket
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ralign.engine.judging.judge import Reply
from ralign.engine.runtime.errors import UserError

_LOCK_TIMEOUT_S = 60.0
# Names of table and columns as in the first release, so that caches from then can still be read.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    asker TEXT PRIMARY KEY, num_prompt_tokens INTEGER NOT NULL, num_answer_tokens INTEGER NOT NULL
);
"""


class ReplyCache:
    """Key -> reply, and client id -> tokens used. A restarted process keeps its client id."""

    def __init__(self, folder: str | Path):
        """Open or create this host's file in `folder`. UserError if that fails."""
        path = self._path = Path(folder) / f"{socket.gethostname()}.sqlite"
        self._damaged: set[bytes] = set()  # keys of rows that cannot be read
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite fails at once, without waiting for a lock, while another process switches a new file to the
            # write-ahead log. Processes that open the file at the same time therefore take turns.
            with open(path.with_suffix(".lock"), "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._db = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cannot use the cache {path}: {error}") from error

    def get(self, key: bytes) -> Reply | None:
        """The reply under this key, marked as cached; None without one, or if its row is damaged."""
        row = self._db.execute("SELECT CAST(reply AS BLOB) FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if (reply := _read_reply(row[0])) is None:
            self._damaged.add(key)
        return reply

    def put(self, client_id: str, replies: Sequence[tuple[bytes, Reply]]) -> None:
        """Save replies and add their tokens to the client's count, in one transaction.

        A reply with a problem is not saved, but its tokens count.
        """
        num_prompt = sum(reply.num_prompt_tokens for _, reply in replies)
        num_answer = sum(reply.num_answer_tokens for _, reply in replies)
        rows = [(key, json.dumps(asdict(reply))) for key, reply in replies if not reply.problem]
        replaced = [(key,) for key, _ in rows if key in self._damaged]
        with self._db:
            self._db.executemany("DELETE FROM replies WHERE key = ?", replaced)
            self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (asker) DO UPDATE SET"
                " num_prompt_tokens = num_prompt_tokens + excluded.num_prompt_tokens,"
                " num_answer_tokens = num_answer_tokens + excluded.num_answer_tokens",
                (client_id, num_prompt, num_answer),
            )
        self._damaged.difference_update(key for (key,) in replaced)

    def tokens_used(self, client_id: str) -> tuple[int, int]:
        """Prompt and answer tokens of this client, over all its restarts.

        Raises:
            UserError: they cannot be read, so that a budget could not be kept.
        """
        try:
            row = self._db.execute(
                "SELECT num_prompt_tokens, num_answer_tokens FROM spent WHERE asker = ?", (client_id,)
            ).fetchone()
        except sqlite3.Error as error:
            raise UserError(f"cannot use the cache {self._path}: {error}") from error
        if row is None:
            return 0, 0
        if not all(isinstance(count, int) and count >= 0 for count in row):
            raise UserError(f"cannot use the cache {self._path}: its token counts are damaged, such as {row}")
        return row[0], row[1]

    def close(self) -> None:
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")  # a kill loses nothing; a power failure may lose the last replies
    db.executescript(_SCHEMA)
    return db


_KINDS = {name: type(value) for name, value in asdict(Reply()).items()}


def _read_reply(row: bytes) -> Reply | None:
    """The reply in a row; None if the row is not one that `put` wrote."""
    try:
        values = json.loads(row)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        return None
    if any(type(value) is not _KINDS.get(name) for name, value in values.items()):
        return None
    fields: dict[str, Any] = values | {"cached": True}
    return Reply(**fields)


def cache_key(**parts: object) -> bytes:
    """A key for a reply from everything that it depends on; parts must be JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
