"""Memory of a judge on the policy's devices.

There are two kinds: a GenRM in the training processes, awake in every phase, and a vLLM server of the job (a MetaRM or
a GenRM), which may sleep while the policy trains. On a GPU, an engine takes a share of the whole device: its weights,
and the rest for the KV cache. On a CPU, the KV cache has a fixed size. If only some devices have a judge, the ledger
describes those, since they are the fullest.
"""

from dataclasses import dataclass
from pathlib import Path

from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import JudgeConfig
from ralign.engine.config.registry import METARMS
from ralign.engine.config.run import GenRMRun, Run

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ResidentJudge:
    """A judge with an engine on the device.

    Attributes:
        weight_bytes: of its Hugging Face folder's tensors, over the ranks of its engine; 0 if there is no folder (yet),
            or a name on the hub.
        kv_bytes: KV cache on a CPU.
        share: of a GPU's memory, including weights.
        setting: its group of settings, metarm or genrm.
        is_server: a server of the job, which can sleep.
        sleep_level: 0: always awake; 1: asleep except during generation, with weights in host memory; 2: likewise, with
            weights discarded.
    """

    weight_bytes: int
    kv_bytes: int
    share: float
    setting: str
    is_server: bool = False
    sleep_level: int = 0

    @classmethod
    def of(cls, run: Run) -> "ResidentJudge | None":
        """The judge that shares devices with the policy of this run; None if there is no such judge."""
        if isinstance(run, GenRMRun):
            is_server = METARMS.load(run.metarm.kind).location == "server"
            return cls._server(run.metarm) if is_server else None
        if not isinstance(run, ActorRun):
            return None
        genrm = run.genrm
        if genrm.kind == "managed":  # its share is known even if its folder is not
            return cls._server(genrm)
        if genrm.model is None or genrm.kind == "endpoint":
            return None
        return cls(
            weight_bytes=folder_bytes(genrm.model),
            kv_bytes=int(genrm.kv_cache_gib * GIB),
            share=genrm.gpu_memory_utilization,
            setting=genrm.SETTING,
        )

    @classmethod
    def _server(cls, judge: JudgeConfig) -> "ResidentJudge | None":
        server = judge.server
        if server.devices is not None:
            return None
        return cls(
            weight_bytes=folder_bytes(judge.model) // server.tensor if judge.model else 0,
            kv_bytes=int(server.kv_cache_gib * GIB),
            share=server.gpu_memory_utilization,
            setting=judge.SETTING,
            is_server=True,
            sleep_level=server.sleep_level,
        )

    def held(self, capacity_bytes: int, *, on_gpu: bool) -> dict[str, int]:
        """Holder -> bytes of the device while the judge is awake."""
        kv = max(int(self.share * capacity_bytes) - self.weight_bytes, 0) if on_gpu else self.kv_bytes
        return {"judge_weights": self.weight_bytes, "judge_kv_cache": kv}

    def needs(self, capacity_bytes: int, *, on_gpu: bool) -> list[str]:
        """The reasons why its engine cannot start, in words with numbers; empty if it can."""
        room = int(self.share * capacity_bytes)
        if not on_gpu or self.weight_bytes < room:
            return []
        group = f"{self.setting}.server" if self.is_server else self.setting
        return [
            f"the judge has {room / GIB:.2f} GiB ({group}.gpu_memory_utilization={self.share:g}), its weights alone "
            f"need {self.weight_bytes / GIB:.2f} GiB"
        ]


def folder_bytes(folder: str) -> int:
    """Bytes of the tensors in a Hugging Face folder."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
