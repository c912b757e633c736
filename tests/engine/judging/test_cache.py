import subprocess
import sys
import time

from ralign.engine.judging.cache import ReplyCache

NUM_PROCESSES, NUM_ROUNDS = 6, 10
_ASKER = """
import sys, time
from pathlib import Path
from ralign.engine.judging.cache import ReplyCache
from ralign.engine.judging.judge import Reply
folder, name, start_s, num_rounds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
for n in range(num_rounds):
    time.sleep(max(0, start_s + n / 20 - time.time()))
    cache = ReplyCache(folder / str(n))
    cache.put(name, [(name.encode(), Reply(text="yes", num_prompt_tokens=3, num_answer_tokens=2))])
    cache.close()
"""


def test_processes_that_open_a_new_cache_in_the_same_moment(tmp_path):
    """Ranks of a job do: without turns about one in twenty of such openings found the file locked."""
    names = [f"rank {rank}" for rank in range(NUM_PROCESSES)]
    start_s = time.time() + 1.5  # when all have imported what they need
    askers = [
        subprocess.Popen([sys.executable, "-c", _ASKER, tmp_path, name, str(start_s), str(NUM_ROUNDS)])
        for name in names
    ]
    assert [asker.wait(60) for asker in askers] == [0] * NUM_PROCESSES
    for n in range(NUM_ROUNDS):
        cache = ReplyCache(tmp_path / str(n))
        assert [cache.spent(name) for name in names] == [(3, 2)] * NUM_PROCESSES
        assert all(cache.get(name.encode()).cached for name in names)
        cache.close()
