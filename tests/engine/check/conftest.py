"""Machines that are not there, a model folder without its bytes, and a judge's server in this process."""

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ralign.engine.check.machine import Gpu, Machine, SharedMemory, Torch
from ralign.engine.check.packages import LOCKS, read_lock
from ralign.engine.data.pairs import write_pairs
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.planner.shapes import PUBLISHED

GIB = 2**30
H100_BYTES = 85_029_158_912


def h100() -> Gpu:
    return Gpu(
        name="NVIDIA H100 80GB HBM3", memory_bytes=H100_BYTES, free_bytes=H100_BYTES, capability=(9, 0)
    )


@pytest.fixture
def machine_with():
    """8 x H100 as one would be set up, but for what is given."""

    def make(**changes) -> Machine:
        facts = {
            "torch": Torch(
                version="2.13.0+cu130", cuda="13.0", nccl="2.29.7", num_devices=8, is_available=True
            ),
            "driver": "580.95.05",
            "gpus": (h100(),) * 8,
            "unlinked": (),
            "shared_memory": SharedMemory(total_bytes=1_000 * GIB, free_bytes=1_000 * GIB, is_writable=True),
            "num_cores": 192,
            "host_bytes": 2_000 * GIB,
            "packages": read_lock(LOCKS / "cuda.lock"),
            "c_compiler": "/usr/bin/gcc",
            "cxx_compiler": "/usr/bin/c++",
            "python_header": "/usr/include/python3.11/Python.h",
            "has_python_header": True,
            "env": {},
            "free_disk_bytes": lambda folder: 10**13,
        }
        return Machine(**(facts | changes))

    return make


@pytest.fixture
def old_driver():
    """What changes on a machine whose driver is of the 550 series: NVML counts, CUDA does not start."""
    torch = Torch(
        version="2.13.0+cu130",
        cuda="13.0",
        nccl="2.29.7",
        num_devices=8,
        is_available=False,
        cuda_error="The NVIDIA driver on your system is too old (found version 12040).",
    )
    return {"driver": "550.54.15", "torch": torch}


@pytest.fixture
def no_gpus():
    """What changes on a machine without GPUs."""
    cpu = {name: version for name, version in read_lock(LOCKS / "cpu.lock").items()}
    return {
        "torch": Torch(version="2.13.0+cpu"),
        "driver": None,
        "gpus": (),
        "unlinked": None,
        "packages": cpu,
        "num_cores": 2,
        "host_bytes": 20 * GIB,
    }


def qwen3_tensors(shape) -> dict[str, list[int]]:
    """Hugging Face names and shapes of a Qwen3's tensors."""
    hidden, ffn, head = shape.hidden_size, shape.ffn_hidden_size, shape.head_dim
    heads, groups = shape.num_attention_heads * head, shape.num_query_groups * head
    tensors = {"model.embed_tokens.weight": [shape.vocab_size, hidden], "model.norm.weight": [hidden]}
    tensors["lm_head.weight"] = [shape.vocab_size, hidden]
    for layer in range(shape.num_layers):
        of_layer = {
            "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
            "self_attn.q_proj": [heads, hidden],
            "self_attn.k_proj": [groups, hidden],
            "self_attn.v_proj": [groups, hidden],
            "self_attn.o_proj": [hidden, heads],
            "self_attn.q_norm": [head],
            "self_attn.k_norm": [head],
            "mlp.gate_proj": [ffn, hidden],
            "mlp.up_proj": [ffn, hidden],
            "mlp.down_proj": [hidden, ffn],
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": size for name, size in of_layer.items()}
    return tensors


def write_sparse(file: Path, tensors: dict[str, list[int]]) -> None:
    """A safetensors file of full length that takes no space: its tensors are a hole."""
    header, end = {}, 0
    for name, size in tensors.items():
        num_bytes = 2
        for length in size:
            num_bytes *= length
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.fixture
def qwen3_folder():
    """Makes models/NAME of a published Qwen3, as downloaded, in two files."""

    def make(folder: Path, name: str = "Qwen3-8B", **config) -> Path:
        shape = PUBLISHED[name]
        folder = folder / "models" / name
        folder.mkdir(parents=True)
        settings = {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "num_hidden_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.ffn_hidden_size,
            "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_query_groups,
            "head_dim": shape.head_dim,
            "vocab_size": shape.vocab_size,
            "rope_theta": 1000000,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": shape.tie_embeddings,
            "rms_norm_eps": 1e-6,
        }
        (folder / "config.json").write_text(json.dumps(settings | config))
        (folder / "tokenizer.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
        tensors = list(qwen3_tensors(shape).items())
        half, weight_map = len(tensors) // 2, {}
        for number, part in enumerate((tensors[:half], tensors[half:]), start=1):
            file = f"model-{number:05d}-of-00002.safetensors"
            write_sparse(folder / file, dict(part))
            weight_map |= dict.fromkeys(dict(part), file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    return make


@pytest.fixture
def pairs_file():
    """Writes this many pairs."""

    def make(file: Path, num_pairs: int = 600) -> Path:
        world = build_judgeworld(
            JudgeWorldConfig(num_train=num_pairs, num_warm_start=8, num_dev=8, num_test=8)
        )
        write_pairs(file, world["train"])
        return file

    return make


@dataclass
class JudgeServer:
    """An OpenAI-compatible server with one key and one model; `fault` replaces its answers.

    A refusal repeats the key that it got, as some servers do.
    """

    key: str | None = "sk-right-0123456789"
    models: tuple[str, ...] | None = ("openai/gpt-oss-120b",)
    fault: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # path's end -> status and body
    hangs: tuple[str, ...] = ()
    asked: list[dict] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, path: str, authorization: str, body: bytes) -> tuple[int, bytes]:
        end = path.rsplit("/", 1)[-1]
        if end in self.hangs:
            self.released.wait(30)
        if end in self.fault:
            return self.fault[end]
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, _error(f"Incorrect API key provided: {authorization}")
        if end == "models":
            listed = [{"id": name} for name in self.models or ()]
            return (404, b"") if self.models is None else (200, json.dumps({"data": listed}).encode())
        self.asked.append(json.loads(body))
        choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        return 200, json.dumps({"choices": [choice]}).encode()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


@pytest.fixture
def judge_server():
    """Starts one when called; all end with the test."""
    running = []

    def start(**options) -> JudgeServer:
        judge = JudgeServer(**options)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, content = judge.answer(self.path, self.headers.get("authorization", ""), body)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        judge.url = f"http://127.0.0.1:{server.server_port}/v1"
        running.append((judge, server))
        return judge

    yield start
    for judge, server in running:
        judge.released.set()
        server.shutdown()
        server.server_close()
