import multiprocessing

from ralign.engine.judging.cache import ReplyCache
from ralign.engine.judging.judge import Reply


def _open_and_spend(folder, together, name):
    together.wait()
    cache = ReplyCache(folder)
    cache.put(name, [(name.encode(), Reply(text="yes", num_prompt_tokens=3, num_answer_tokens=2))])
    cache.close()


def test_processes_that_open_a_new_cache_in_the_same_moment(tmp_path):
    """Ranks of a job do: without turns about one in twenty of such openings found the file locked."""
    spawn = multiprocessing.get_context("spawn")
    num, num_rounds = 6, 10
    togethers = [spawn.Barrier(num) for _ in range(num_rounds)]
    askers = [
        spawn.Process(target=_open_all, args=(tmp_path, togethers, f"rank {rank}")) for rank in range(num)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)
    assert [asker.exitcode for asker in askers] == [0] * num
    for n in range(num_rounds):
        cache = ReplyCache(tmp_path / str(n))
        assert [cache.spent(f"rank {rank}") for rank in range(num)] == [(3, 2)] * num
        assert all(cache.get(f"rank {rank}".encode()).cached for rank in range(num))
        cache.close()


def _open_all(folder, togethers, name):
    for n, together in enumerate(togethers):
        _open_and_spend(folder / str(n), together, name)
