"""A judge that the job runs itself: a vLLM server, started by the first rank and shared by all.

The server ends with the job, however that ends (`warden`), and is started once more, at the same address, if it
dies: requests wait for it meanwhile. Where it shares GPUs with the policy it sleeps while the policy trains.
"""

import json
import os
import random
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.cluster import Cluster
from ralign.engine.errors import UserError
from ralign.engine.judging.config import JudgeConfig
from ralign.engine.judging.endpoint import Endpoint
from ralign.engine.judging.lm_metarm import LanguageMetaRM, load_metarm_template

_LOOK_S = 0.5
_SLEEP_TIMEOUT_S = 300.0
_END_S = 30.0
_DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # no proxy on the way to our own server
# What torchrun and the training processes set for themselves must not reach the server.
_OURS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
)
_OURS += ("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING")


class Server:
    """One vLLM server under a warden. All methods may be called from any thread of the process that made it."""

    def __init__(self, config: JudgeConfig, log: Path, *, host: str = "127.0.0.1"):
        """`host` is the address under which the ranks reach this machine. Nothing is started yet."""
        self.config, self.log, self.host = config, log, host
        self.port = _free_port()
        self.api_key = secrets.token_hex(16)
        self.root = f"http://{host}:{self.port}"
        self.num_restarts = 0
        self.dead: str | None = None  # why there is no server any more
        self._asleep = False
        self._closing = False
        self._changing = threading.RLock()  # held while the server starts, sleeps or wakes
        self._process: subprocess.Popen | None = None

    def start(self) -> str:
        """Start, wait for health, watch; returns the base URL. UserError with the log's end if it fails."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._spawn()
        self._wait_for_health()
        threading.Thread(target=self._watch, name="judge-server", daemon=True).start()
        return f"{self.root}/v1"

    def _spawn(self) -> None:
        env = {name: value for name, value in os.environ.items() if name not in _OURS}
        env = {name: value for name, value in env.items() if not name.startswith("TORCHELASTIC_")}
        env |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": self.api_key, "VLLM_LOGGING_LEVEL": "INFO"}
        if self.config.server.devices is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.config.server.devices
        if not torch.cuda.is_available():
            env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        warden = [sys.executable, "-m", "ralign.engine.judging.warden", str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*warden, *server_command(self.config, self.host, self.port)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for_health(self) -> None:
        until_s = time.monotonic() + self.config.server.start_timeout_s
        while not self._healthy():
            if self._process.poll() is not None:
                raise UserError(f"the judge's server ended while starting: {self._last_words()}")
            if time.monotonic() > until_s:
                self._stop()
                raise UserError(
                    "the judge's server did not come up within judge.server.start_timeout_s="
                    f"{self.config.server.start_timeout_s:g}: {self._last_words()}"
                )
            time.sleep(_LOOK_S)

    def _healthy(self) -> bool:
        try:
            with _DIRECT.open(f"{self.root}/health", timeout=5) as reply:
                return reply.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def _last_words(self, num_chars: int = 600) -> str:
        """The last error in the log, or its end."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return f"{' | '.join(errors[-1:] or lines[-3:])[-num_chars:]} (log: {self.log})"

    def _watch(self) -> None:
        """Runs as long as the server should: starts it once more when it ends by itself."""
        while True:
            self._process.wait()
            with self._changing:
                if self._closing:
                    return
                if self.num_restarts:
                    self.dead = f"the judge's server died twice: {self._last_words()}"
                    return
                self.num_restarts += 1
                self._spawn()
                try:
                    self._wait_for_health()
                except UserError as error:
                    self.dead = f"after a restart {error}"
                    return
                if self._asleep:
                    self._post(f"/sleep?level={self.config.server.sleep_level}")

    def sleep(self) -> None:
        """Give the GPU's memory back; nothing may be under way."""
        with self._changing:
            self._asleep = True
            self._post(f"/sleep?level={self.config.server.sleep_level}")

    def wake(self) -> None:
        """Be ready to judge again."""
        with self._changing:
            if not self._asleep:
                return
            self._asleep = False
            if self.config.server.sleep_level == 2:  # the weights were dropped: read them anew
                self._post("/wake_up?tags=weights")
                self._post("/collective_rpc", {"method": "reload_weights"})
                self._post("/wake_up?tags=kv_cache")
            else:
                self._post("/wake_up")

    def _post(self, path: str, body: dict | None = None) -> None:
        if self.dead is not None:
            raise UserError(self.dead)
        request = urllib.request.Request(
            f"{self.root}{path}",
            method="POST",
            data=json.dumps(body or {}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"},
        )
        with _DIRECT.open(request, timeout=_SLEEP_TIMEOUT_S):
            pass

    def close(self) -> None:
        """End the server and all its processes."""
        self._closing = True
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def server_command(config: JudgeConfig, host: str, port: int) -> list[str]:
    """The command line of vLLM's server for this judge on this machine."""
    server, on_gpu = config.server, torch.cuda.is_available()
    options: dict[str, object] = {
        "model": config.model,
        "served-model-name": config.model,
        "host": "127.0.0.1" if host == "127.0.0.1" else "0.0.0.0",
        "port": port,
        "tensor-parallel-size": server.tensor,
        "data-parallel-size": server.data,
        "max-num-seqs": server.max_num_seqs,
    }
    if server.max_model_len is not None:
        options["max-model-len"] = server.max_model_len
    if on_gpu:
        options["gpu-memory-utilization"] = server.gpu_memory_utilization
    else:
        options |= {"kv-cache-memory-bytes": int(server.kv_cache_gib * 2**30), "block-size": 32}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += ["--enable-sleep-mode"] if on_gpu and server.sleep_level else []
    # A prompt in chunks makes vLLM take back draws of a request's own generator, which torch's CPU generators cannot.
    command += [] if on_gpu else ["--enforce-eager", "--no-enable-chunked-prefill"]
    return command + shlex.split(server.options or "")


class ManagedMetaRM(LanguageMetaRM):
    """A `LanguageMetaRM` on the job's own server; construction, `awake` and `close` are collective."""

    def __init__(self, config: JudgeConfig, cluster: Cluster, folder: Path, num_askers: int = 1):
        """Start the server on the first rank (its log goes to `folder`) and wait for it on all."""
        self.cluster, self.sleeps = cluster, config.server.sleep_level > 0
        self.server: Server | None = None
        if cluster.is_first_rank:
            self.server = Server(config, folder / "judge_server.log", host=_address(cluster))
        url = cluster.on_first_rank(lambda: self.server.start())
        api_key = cluster.on_first_rank(lambda: self.server.api_key)
        endpoint = Endpoint(
            config,
            base_url=url,
            api_key=api_key,
            model_key=fingerprint(Path(config.model)),
            asker=f"rank{cluster.rank}",
            num_askers=num_askers,
            patience_s=config.server.start_timeout_s,
            use_proxy=False,
        )
        super().__init__(
            endpoint,
            load_metarm_template(config.template, graded=config.graded),
            graded=config.graded,
            threshold=config.graded_threshold,
            num_tries=config.num_tries,
        )
        if self.sleeps:
            cluster.on_first_rank(self.server.sleep if self.server else None)

    @property
    def stop_reason(self) -> str | None:
        return (self.server.dead if self.server else None) or super().stop_reason

    @contextmanager
    def awake(self) -> Iterator[None]:
        if self.sleeps:
            self.cluster.on_first_rank(lambda: self.server.wake())
        yield
        if self.sleeps:
            dist.barrier()  # nobody has a question left
            self.cluster.on_first_rank(lambda: self.server.sleep())

    def close(self) -> None:
        super().close()
        dist.barrier()
        if self.server is not None:
            self.server.close()


def fingerprint(folder: Path) -> str:
    """Tells a model folder from another and from itself after a change, for the cache."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return json.dumps([str(folder), [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]])


def _address(cluster: Cluster) -> str:
    """Where the other ranks find this machine."""
    one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == cluster.world_size
    return "127.0.0.1" if one_machine else socket.gethostname()


def _free_port() -> int:
    """A port for a server that binds it a minute from now: below those that systems give out for connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
