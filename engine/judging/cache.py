"""Answers already paid for, and what was paid, in one SQLite file a host.

Safe against several processes and against a kill at any moment: SQLite's write-ahead log keeps a committed
answer whatever happens to the process, and drops a half-written one. One file a host, since that log does not
work across machines on a network file system.
"""

import fcntl
import hashlib
import json
import socket
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ralign.engine.judging.judge import Reply
from ralign.engine.runtime.errors import UserError

_LOCK_TIMEOUT_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    asker TEXT PRIMARY KEY, num_prompt_tokens INTEGER NOT NULL, num_answer_tokens INTEGER NOT NULL
);
"""


class ReplyCache:
    """Keys to replies, and tokens spent by asker (a name that a restarted process keeps)."""

    def __init__(self, folder: str | Path):
        """Opens or makes the file of this host in `folder`. UserError if that cannot be."""
        path = Path(folder) / f"{socket.gethostname()}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite does not wait for a lock while it turns a new file to the write-ahead log: it fails at once.
            # Processes that open the file in the same moment therefore take turns.
            with open(path.with_suffix(".lock"), "a") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                self._db = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"cannot use the cache {path}: {error}") from error

    def get(self, key: bytes) -> Reply | None:
        """The reply under this key, marked as cached."""
        row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(**(json.loads(row[0]) | {"cached": True})) if row else None

    def put(self, asker: str, replies: Sequence[tuple[bytes, Reply]]) -> None:
        """Keeps replies and adds their tokens to what `asker` spent, in one transaction."""
        num_prompt = sum(reply.num_prompt_tokens for _, reply in replies)
        num_answer = sum(reply.num_answer_tokens for _, reply in replies)
        rows = [(key, json.dumps(asdict(reply))) for key, reply in replies if not reply.problem]
        with self._db:
            self._db.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (asker) DO UPDATE SET"
                " num_prompt_tokens = num_prompt_tokens + excluded.num_prompt_tokens,"
                " num_answer_tokens = num_answer_tokens + excluded.num_answer_tokens",
                (asker, num_prompt, num_answer),
            )

    def spent(self, asker: str) -> tuple[int, int]:
        """Prompt and answer tokens that `asker` spent, over all its lives."""
        row = self._db.execute(
            "SELECT num_prompt_tokens, num_answer_tokens FROM spent WHERE asker = ?", (asker,)
        ).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def close(self) -> None:
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; a power cut may
    db.executescript(_SCHEMA)
    return db


def cache_key(**parts: object) -> bytes:
    """A key of everything that an answer depends on; parts must be JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
