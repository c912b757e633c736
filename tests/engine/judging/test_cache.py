"""Several processes open the same cache file."""

import subprocess
import sys

from ralign.engine.judging.cache import ReplyCache

NUM_PROCESSES, NUM_ROUNDS = 6, 10
_PROGRAM = """
import sys
from pathlib import Path
from ralign.engine.judging.cache import ReplyCache
from ralign.engine.judging.judge import Reply
folder, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
for line in sys.stdin:
    cache = ReplyCache(folder / line.strip())
    cache.put(name, [(name.encode(), Reply(text="yes", num_prompt_tokens=3, num_answer_tokens=2))])
    cache.close()
    print("done", flush=True)
"""


def test_processes_may_open_a_new_cache_at_the_same_time(tmp_path):
    """As the ranks of a job do. Without the lock file about one in twenty opens fails."""
    names = [f"rank {rank}" for rank in range(NUM_PROCESSES)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    programs = [
        subprocess.Popen([sys.executable, "-c", _PROGRAM, str(tmp_path), name], **pipes) for name in names
    ]
    try:
        assert [program.stdout.readline() for program in programs] == ["ready\n"] * NUM_PROCESSES
        for n in range(NUM_ROUNDS):
            for program in programs:
                program.stdin.write(f"{n}\n")
                program.stdin.flush()
            assert [program.stdout.readline() for program in programs] == ["done\n"] * NUM_PROCESSES
            cache = ReplyCache(tmp_path / str(n))
            assert [cache.tokens_used(name) for name in names] == [(3, 2)] * NUM_PROCESSES
            assert all(cache.get(name.encode()).cached for name in names)
            cache.close()
    finally:
        for program in programs:
            program.kill()
            program.communicate()
