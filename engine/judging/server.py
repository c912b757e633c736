"""One vLLM server for a judge that the job runs itself.

It ends with the job, however that ends (`warden`), and is started once more, at the same address, if it dies.
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
from pathlib import Path

import torch
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.runtime.errors import UserError

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


def death_note(log: Path) -> Path:
    """The file that says why the server with this log is gone for good; there is none while there is hope."""
    return log.with_suffix(".dead")


class Server:
    """One vLLM server under a warden. All methods may be called from any thread of the process that made it."""

    def __init__(self, config: JudgeConfig, log: Path, *, host: str = "127.0.0.1"):
        """`host` is the address under which the ranks reach this machine. Nothing is started yet."""
        self.config, self.log, self.host = config, log, host
        self.death_note = death_note(log)
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
        self.death_note.unlink(missing_ok=True)
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
        warden = [sys.executable, "-m", "ralign.engine.judging.process_guard", str(os.getpid())]
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
                    self._give_up(f"the judge's server died twice: {self._last_words()}")
                    return
                self.num_restarts += 1
                self._spawn()
                try:
                    self._wait_for_health()
                    if self._asleep:
                        self._post(f"/sleep?level={self.config.server.sleep_level}")
                except (UserError, OSError) as error:
                    self._give_up(f"the judge's server, after a restart: {error}")
                    return

    def _give_up(self, reason: str) -> None:
        """Said in a file, too: the other ranks and nodes see that."""
        self.death_note.write_text(reason, encoding="utf-8")
        self.dead = reason

    def sleep(self) -> None:
        """Give the GPU's memory back; nothing may be under way. JudgeStopped if there is no server any more."""
        self._asleep = True
        self._tell(f"/sleep?level={self.config.server.sleep_level}")

    def wake(self) -> None:
        """Be ready to judge again. JudgeStopped if there is no server any more."""
        if not self._asleep:
            return
        self._asleep = False
        if self.config.server.sleep_level == 2:  # the weights were dropped: read them anew
            self._tell("/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache")
        else:
            self._tell("/wake_up")

    def _tell(self, *paths: str) -> None:
        """Posts to these in turn; from the first again to a server that was started in place of a dead one."""
        while True:
            with self._changing:
                if self.dead is not None:
                    raise JudgeStopped(self.dead)
                try:
                    for path in paths:
                        self._post(path, {"method": "reload_weights"} if path == "/collective_rpc" else {})
                    return
                except urllib.error.HTTPError as error:
                    raise JudgeStopped(
                        f"the judge's server answers {path} with status {error.code}: {self._last_words()}"
                    ) from None
                except TimeoutError:  # its engine is gone, or it hangs: it is ended for the watcher to see
                    self._process.terminate()
                except OSError:  # it has just died: the watcher gets its turn
                    pass
            time.sleep(_LOOK_S)

    def _post(self, path: str, body: dict | None = None) -> None:
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
