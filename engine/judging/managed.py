"""A judge that the job runs itself: a vLLM server, started by the first rank and shared by all.

Requests wait while the server is being started again. Where it shares GPUs with the policy it sleeps while the policy
trains.
"""

import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import Reply, Request, Usage
from ralign.engine.judging.server import Server, death_note
from ralign.engine.runtime.cluster import Cluster


class ManagedJudge:
    """A `Judge` on the job's own server; construction, `awake` and `close` are collective."""

    def __init__(self, config: JudgeConfig, cluster: Cluster, folder: Path, num_askers: int = 1):
        """Start the server on the first rank (its log goes to `folder`, which every rank sees) and wait for it."""
        self.cluster, self.sleeps = cluster, config.server.sleep_level > 0
        self.server: Server | None = None
        log = folder / "judge_server.log"
        if cluster.is_first_rank:
            self.server = Server(config, log, host=_address(cluster))
        url = cluster.on_first_rank(lambda: self.server.start())
        self.endpoint = Endpoint(
            config,
            base_url=url,
            api_key=cluster.on_first_rank(lambda: self.server.api_key),
            model_key=fingerprint(Path(config.model)),
            asker=f"{folder} rank{cluster.rank}",
            num_askers=num_askers,
            patience_s=config.server.start_timeout_s,
            use_proxy=False,
            lost=lambda: _read_if_there(death_note(log)),
        )
        if self.sleeps:
            cluster.on_first_rank(lambda: self.server.sleep())

    @property
    def usage(self) -> Usage:
        return self.endpoint.usage

    @property
    def stop_reason(self) -> str | None:
        return (self.server.dead if self.server else None) or self.endpoint.stop_reason

    @property
    def spent(self) -> tuple[int, int]:
        return self.endpoint.spent

    @spent.setter
    def spent(self, tokens: tuple[int, int]) -> None:
        self.endpoint.spent = tokens

    def submit(self, request: Request) -> Future[Reply]:
        return self.endpoint.submit(request)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """To be held open while the judge is asked. JudgeStopped, on every rank, if its server is gone for good."""
        if self.sleeps:
            self.cluster.on_first_rank(lambda: self.server.wake())
        yield
        if self.sleeps:
            dist.barrier()  # nobody has a question left
            self.cluster.on_first_rank(lambda: self.server.sleep())

    def close(self) -> None:
        self.endpoint.close()
        dist.barrier()
        if self.server is not None:
            self.server.close()


def fingerprint(folder: Path) -> str:
    """Tells a model folder from another and from itself after a change, for the cache; a hub's name is its own."""
    if not folder.is_dir():
        return str(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return json.dumps([str(folder), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]])


def _address(cluster: Cluster) -> str:
    """Where the other ranks find this machine."""
    one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == cluster.world_size
    return "127.0.0.1" if one_machine else socket.gethostname()


def _read_if_there(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
