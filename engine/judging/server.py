"""One vLLM server for a managed judge.

`process_guard` ends it with the job, however the job ends. If it crashes, it is restarted once at the same address.
Every request needs the server's key (`server_guard`), which reaches the server through a pipe.
"""

import http.client
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.server_address import LOOPBACK, free_port, in_url
from ralign.engine.judging.server_guard import sleep_path, wake_path
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

    def __init__(self, config: JudgeConfig, log: Path, *, host: str = LOOPBACK):
        """`host` is the address of this machine to listen at. Nothing is started yet."""
        self.config, self.log, self.host = config, log, host
        self.failure_file = failure_file(log)
        self.port = free_port(host)
        self.api_key = secrets.token_hex(32)
        self.root = f"http://{in_url(host)}:{self.port}"
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
        env |= {"VLLM_LOGGING_LEVEL": "INFO"}
        if self.config.server.devices is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.config.server.devices
        if not torch.cuda.is_available():
            env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        guard = [sys.executable, "-m", "ralign.engine.judging.process_guard", str(os.getpid())]
        with self.log.open("ab") as log, _pipe_with(f"{self.api_key}\n") as key:
            self._process = subprocess.Popen(
                [*guard, *server_command(self.config, self.host, self.port)],
                env=env,
                stdin=key,
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
        if not self._listens():
            return False
        try:
            with _NO_PROXY.open(self._request("/health"), timeout=5) as reply:
                return reply.status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _listens(self) -> bool:
        """Whether it is a process of this server that listens at its port; no other one is sent the key."""
        try:
            processes = psutil.Process(self._process.pid).children(recursive=True)
            connections = [found for process in processes for found in process.net_connections("tcp")]
        except psutil.Error:  # one has just ended
            return False
        return any(
            found.status == psutil.CONN_LISTEN and found.laddr.port == self.port for found in connections
        )

    def _request(self, path: str, method: str = "GET") -> urllib.request.Request:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return urllib.request.Request(f"{self.root}{path}", method=method, headers=headers)

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
                        self._post(sleep_path(self.config.server.sleep_level))
                except (UserError, OSError, http.client.HTTPException) as error:
                    self._give_up(f"the judge's server failed after a restart: {error}")
                    return

    def _give_up(self, reason: str) -> None:
        """Record the reason, also in a file for the other ranks and nodes."""
        self.failure_file.write_text(reason, encoding="utf-8")
        self.failure = reason

    def sleep(self) -> None:
        """Free the GPU memory; no request may be under way. JudgeStopped if the server is gone for good."""
        self._asleep = True
        self._post_with_retry(sleep_path(self.config.server.sleep_level))

    def wake(self) -> None:
        """Get ready for requests. JudgeStopped if the server is gone for good."""
        if not self._asleep:
            return
        self._asleep = False
        self._post_with_retry(wake_path(self.config.server.sleep_level))

    def _post_with_retry(self, path: str) -> None:
        """Post to a path; again if the server restarts meanwhile."""
        while True:
            with self._transition:
                if self.failure is not None:
                    raise JudgeStopped(self.failure)
                try:
                    self._post(path)
                    return
                except urllib.error.HTTPError as error:
                    raise JudgeStopped(
                        f"the judge's server answers {path} with status {error.code}: {self._log_tail()}"
                    ) from None
                except TimeoutError:  # it hangs: end it, so that `_watch` restarts it
                    self._process.terminate()
                except (OSError, http.client.HTTPException):  # it has just ended: `_watch` restarts it
                    pass
            time.sleep(_POLL_S)

    def _post(self, path: str) -> None:
        with _NO_PROXY.open(self._request(path, "POST"), timeout=_SLEEP_TIMEOUT_S):
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
    """The command line of the server for this judge; it listens at `host` alone."""
    server, on_gpu = config.server, torch.cuda.is_available()
    options: dict[str, object] = {
        "model": config.model,
        "served-model-name": config.model,
        "host": host,
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
    command = [sys.executable, "-m", "ralign.engine.judging.server_entry"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command += ["--enable-sleep-mode"] if on_gpu and server.sleep_level else []
    # With chunked prefill vLLM rewinds a request's own random generator, which torch's CPU generators cannot do.
    command += [] if on_gpu else ["--enforce-eager", "--no-enable-chunked-prefill"]
    return command + shlex.split(server.options or "")


@contextmanager
def _pipe_with(text: str) -> Iterator[int]:
    """The descriptor of a pipe to read `text` from: it fits into the pipe, so that no reader is waited for."""
    reading, writing = os.pipe()
    try:
        with open(writing, "w", encoding="utf-8") as file:
            file.write(text)
        yield reading
    finally:
        os.close(reading)
