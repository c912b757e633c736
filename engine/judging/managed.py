"""A judge on a vLLM server that the job starts: the first rank runs the server, all ranks send requests to it.

Requests wait while the server restarts after a crash. A server that shares its GPUs with the policy sleeps while the
policy trains.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.judge import ClientContext, Judge, Reply, Request, Usage
from ralign.engine.judging.server import Server, failure_file
from ralign.engine.judging.server_address import LOOPBACK, server_address
from ralign.engine.runtime.cluster import Cluster

T = TypeVar("T")


class ManagedJudge(Judge):
    """A `Judge` on a server of its own.

    With a cluster in the context, construction, `awake` and `close` are collective over its ranks; without one the
    judge belongs to this process.
    """

    def __init__(self, config: JudgeConfig, context: ClientContext):
        """Start the server, and wait until it is healthy. UserError if it does not start."""
        assert config.model is not None, "the settings' check refuses it"
        self.cluster, self.sleeps = context.cluster, config.server.sleep_level > 0
        log = context.server_log
        self._server: Server | None = None
        address = _address(self.cluster)
        if self.cluster is None or self.cluster.is_first_rank:
            self._server = Server(config, log, host=address)
        url = self._on_first_rank(lambda server: server.start())
        self.endpoint = Endpoint(
            config,
            context,
            base_url=url,
            api_key=self._on_first_rank(lambda server: server.api_key),
            model_key=fingerprint(Path(config.model)),
            patience_s=config.server.start_timeout_s,
            use_proxy=False,
            failure=lambda: _read_if_exists(failure_file(log)),
        )
        if self.sleeps:
            self._on_first_rank(lambda server: server.sleep())

    def _on_first_rank(self, action: Callable[[Server], T]) -> T:
        """The result of `action` on the rank that runs the server, on every rank."""
        if self.cluster is None:
            return action(self.server)
        return self.cluster.on_first_rank(lambda: action(self.server))

    @property
    def server(self) -> Server:
        """The server, on the rank that runs it."""
        assert self._server is not None, "only the first rank runs the server"
        return self._server

    @property
    def usage(self) -> Usage:
        return self.endpoint.usage

    @property
    def stop_reason(self) -> str | None:
        return (self._server.failure if self._server else None) or self.endpoint.stop_reason

    @property
    def tokens_used(self) -> tuple[int, int]:
        return self.endpoint.tokens_used

    def restore_tokens_used(self, tokens: tuple[int, int]) -> None:
        self.endpoint.restore_tokens_used(tokens)

    def submit(self, request: Request) -> Future[Reply]:
        return self.endpoint.submit(request)

    @contextmanager
    def awake(self) -> Iterator[None]:
        if self.sleeps:
            self._on_first_rank(lambda server: server.wake())
        yield
        if self.sleeps:
            self._barrier()  # no rank has a request under way
            self._on_first_rank(lambda server: server.sleep())

    def close(self) -> None:
        self.endpoint.close()
        self._barrier()
        if self._server is not None:
            self._server.close()

    def _barrier(self) -> None:
        if self.cluster is not None:
            dist.barrier()


def fingerprint(folder: Path) -> str:
    """A cache key for a model folder that changes with its files; for a name on the hub the name itself."""
    if not folder.is_dir():
        return str(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return json.dumps([str(folder), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]])


def _address(cluster: Cluster | None) -> str:
    """The address at which the first rank's server listens. Collective."""
    if cluster is None:
        return LOOPBACK

    def gather(value: object) -> list:
        values: list = [None] * cluster.world_size
        dist.all_gather_object(values, value)
        return values

    return server_address(cluster.world_size, cluster.is_first_rank, gather)


def _read_if_exists(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None
