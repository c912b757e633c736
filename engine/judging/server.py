"""One vLLM server for a managed judge.

`process_guard` ends it with the job, however the job ends. If it crashes, it is restarted once at the same address.
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

_POLL_S = 0.5
_SLEEP_TIMEOUT_S = 300.0
_TERMINATE_S = 30.0
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Variables of torchrun and of the training processes, which must not reach the server.
_TORCHRUN_ENV = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "VLLM_ENABLE_V1_MULTIPROCESSING",
)  # fmt: skip


def failure_file(log: Path) -> Path:
    """The file with the reason why the server with this log is gone for good. It does not exist before."""
    return log.with_suffix(".failure")


class Server:
    """One vLLM server. All methods may be called from any thread of the process that made it."""

    def __init__(self, config: JudgeConfig, log: Path, *, host: str = "127.0.0.1"):
        """`host` is the address of this machine for the other ranks. Nothing is started yet."""
        self.config, self.log, self.host = config, log, host
        self.failure_file = failure_file(log)
        self.port = _free_port()
        self.api_key = secrets.token_hex(16)
        self.root = f"http://{host}:{self.port}"
        self.num_restarts = 0
        self.failure: str | None = None  # why the server is gone for good
        self._asleep = False
        self._closing = False
        self._transition = threading.RLock()  # held while the server starts, sleeps or wakes
        self._process: subprocess.Popen[bytes]  # of the guard; there is one after `start`

    def start(self) -> str:
        """Start, wait until healthy, watch; returns the base URL. UserError with the log's end if that fails."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.failure_file.unlink(missing_ok=True)
        self._spawn()
        self._wait_for_health()
        threading.Thread(target=self._watch, name="judge-server", daemon=True).start()
        return f"{self.root}/v1"

    def _spawn(self) -> None:
        env = {name: value for name, value in os.environ.items() if name not in _TORCHRUN_ENV}
        env = {name: value for name, value in env.items() if not name.startswith("TORCHELASTIC_")}
        env |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_API_KEY": self.api_key, "VLLM_LOGGING_LEVEL": "INFO"}
        if self.config.server.devices is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.config.server.devices
        if not torch.cuda.is_available():
            env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        guard = [sys.executable, "-m", "ralign.engine.judging.process_guard", str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, *server_command(self.config, self.host, self.port)],
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
                raise UserError(f"the judge's server ended while starting: {self._log_tail()}")
            if time.monotonic() > until_s:
                self._stop()
                raise UserError(
                    f"the judge's server did not start within {self.config.SETTING}.server.start_timeout_s="
                    f"{self.config.server.start_timeout_s:g}: {self._log_tail()}"
                )
            time.sleep(_POLL_S)

    def _healthy(self) -> bool:
        try:
            with _NO_PROXY.open(f"{self.root}/health", timeout=5) as reply:
                return reply.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def _log_tail(self, num_chars: int = 600) -> str:
        """The last error in the log, or else its last lines."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return f"{' | '.join(errors[-1:] or lines[-3:])[-num_chars:]} (log: {self.log})"

    def _watch(self) -> None:
        """Restart the server once if it ends by itself."""
        while True:
            self._process.wait()
            with self._transition:
                if self._closing:
                    return
                if self.num_restarts:
                    self._give_up(f"the judge's server crashed twice: {self._log_tail()}")
                    return
                self.num_restarts += 1
                self._spawn()
                try:
                    self._wait_for_health()
                    if self._asleep:
                        self._post(f"/sleep?level={self.config.server.sleep_level}")
                except (UserError, OSError) as error:
                    self._give_up(f"the judge's server failed after a restart: {error}")
                    return

    def _give_up(self, reason: str) -> None:
        """Record the reason, also in a file for the other ranks and nodes."""
        self.failure_file.write_text(reason, encoding="utf-8")
        self.failure = reason

    def sleep(self) -> None:
        """Free the GPU memory; no request may be under way. JudgeStopped if the server is gone for good."""
        self._asleep = True
        self._post_with_retry(f"/sleep?level={self.config.server.sleep_level}")

    def wake(self) -> None:
        """Get ready for requests. JudgeStopped if the server is gone for good."""
        if not self._asleep:
            return
        self._asleep = False
        if self.config.server.sleep_level == 2:  # the weights were dropped: load them again
            self._post_with_retry("/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache")
        else:
            self._post_with_retry("/wake_up")

    def _post_with_retry(self, *paths: str) -> None:
        """Post to all paths in turn; start over from the first if the server restarts meanwhile."""
        while True:
            with self._transition:
                if self.failure is not None:
                    raise JudgeStopped(self.failure)
                try:
                    for path in paths:
                        self._post(path, {"method": "reload_weights"} if path == "/collective_rpc" else {})
                    return
                except urllib.error.HTTPError as error:
                    raise JudgeStopped(
                        f"the judge's server answers {path} with status {error.code}: {self._log_tail()}"
                    ) from None
                except TimeoutError:  # it hangs: end it, so that `_watch` restarts it
                    self._process.terminate()
                except OSError:  # it has just ended: `_watch` restarts it
                    pass
            time.sleep(_POLL_S)

    def _post(self, path: str, body: dict | None = None) -> None:
        request = urllib.request.Request(
            f"{self.root}{path}",
            method="POST",
            data=json.dumps(body or {}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}"},
        )
        with _NO_PROXY.open(request, timeout=_SLEEP_TIMEOUT_S):
            pass

    def close(self) -> None:
        """End the server and all its processes."""
        self._closing = True
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_TERMINATE_S)
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
    # With chunked prefill vLLM rewinds a request's own random generator, which torch's CPU generators cannot do.
    command += [] if on_gpu else ["--enforce-eager", "--no-enable-chunked-prefill"]
    return command + shlex.split(server.options or "")


def _free_port() -> int:
    """A free port below the ephemeral range, so that no connection takes it before the server binds it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
