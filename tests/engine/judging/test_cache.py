"""Several processes open the same cache file."""

import fcntl
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from ralign.engine.judging.cache import ReplyCache
from ralign.engine.judging.judge import Reply
from ralign.engine.runtime.errors import UserError

NUM_PROCESSES, NUM_ROUNDS = 6, 20
_PROGRAM = """
import fcntl, sys
from pathlib import Path
from ralign.engine.judging.cache import ReplyCache
from ralign.engine.judging.judge import Reply
folder, name = Path(sys.argv[1]), sys.argv[2]
for n in range(int(sys.argv[3])):
    with open(folder / f"start{n}") as start:
        print("ready", flush=True)
        fcntl.flock(start, fcntl.LOCK_SH)
    cache = ReplyCache(folder / str(n))
    cache.put(name, [(name.encode(), Reply(text="yes", num_prompt_tokens=3, num_answer_tokens=2))])
    cache.close()
"""


def test_processes_may_open_a_new_cache_at_the_same_time(tmp_path):
    """As the ranks of a job do. Without the lock file some of the opens fail. A lock starts each round for all."""
    names = [f"rank {rank}" for rank in range(NUM_PROCESSES)]
    with ExitStack() as stack:
        starts = [stack.enter_context((tmp_path / f"start{n}").open("w")) for n in range(NUM_ROUNDS)]
        for start in starts:
            fcntl.flock(start, fcntl.LOCK_EX)
        programs = []
        for name in names:
            command = [sys.executable, "-c", _PROGRAM, str(tmp_path), name, str(NUM_ROUNDS)]
            programs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(programs[-1].kill)
        for start in starts:
            assert [program.stdout.readline() for program in programs] == ["ready\n"] * NUM_PROCESSES
            fcntl.flock(start, fcntl.LOCK_UN)
        assert [program.wait(60) for program in programs] == [0] * NUM_PROCESSES
    for n in range(NUM_ROUNDS):
        cache = ReplyCache(tmp_path / str(n))
        assert [cache.tokens_used(name) for name in names] == [(3, 2)] * NUM_PROCESSES
        assert all(cache.get(name.encode()).cached for name in names)
        cache.close()


def test_opening_waits_for_the_lock_of_another_process(tmp_path):
    ReplyCache(tmp_path).close()
    (path,) = tmp_path.glob("*.lock")
    opened = []
    thread = threading.Thread(target=lambda: opened.append(ReplyCache(tmp_path)))
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not opened
    thread.join(60)
    opened.pop().close()


@pytest.mark.parametrize(
    "row", ['{"text": "A', "", "5", "[]", "{}", '{"text": 5}', "[" * 100_000, b"\xff\xfe", 7]
)
def test_a_damaged_row_is_a_miss_and_is_replaced(tmp_path, row):
    cache, key = ReplyCache(tmp_path), b"key"
    cache.put("me", [(key, Reply(text="old")), (b"other", Reply(text="other"))])
    with cache._db as db:
        db.execute("UPDATE replies SET reply = ? WHERE key = ?", (row, key))
    assert cache.get(key) is None and cache.get(b"other").text == "other"
    cache.put("me", [(key, Reply(text="new"))])
    assert cache.get(key) == Reply(text="new", cached=True)
    cache.put("me", [(key, Reply(text="newer"))])
    assert cache.get(key).text == "new"  # the first reply stays
    cache.close()


def test_a_row_of_an_earlier_release_is_read(tmp_path):
    cache = ReplyCache(tmp_path)
    with cache._db as db:
        db.execute("INSERT INTO replies VALUES (?, ?)", (b"key", '{"text": "A", "num_answer_tokens": 3}'))
    assert cache.get(b"key") == Reply(text="A", num_answer_tokens=3, cached=True)
    cache.close()


@pytest.mark.parametrize("count", ["many", -1, 1.5, b"\xff"])
def test_damaged_token_counts_are_a_mistake(tmp_path, count):
    cache = ReplyCache(tmp_path)
    cache.put("me", [(b"key", Reply(text="A"))])
    with cache._db as db:
        db.execute("UPDATE spent SET num_prompt_tokens = ?", (count,))
    with pytest.raises(UserError, match="cannot use the cache"):
        cache.tokens_used("me")
    cache.close()
