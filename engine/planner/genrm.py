"""What a GenRM in the training processes takes of a device: awake in every phase, beside whatever else is there.

On a GPU its engine takes a share of the whole device (`actor.gpu_memory_utilization`), of which weights come first and
the KV cache has what is left. On a CPU the KV cache has a size of its own (`actor.kv_cache_gib`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from ralign.engine.config import Run

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class GenRM:
    """A judge with an engine of its own on each rank.

    Attributes:
        weight_bytes: of its Hugging Face folder's tensors; 0 where the folder is not there yet.
        kv_bytes: KV cache on a CPU.
        share: of a GPU's memory, weights and all.
    """

    weight_bytes: int
    kv_bytes: int
    share: float

    @classmethod
    def of(cls, run: "Run") -> Optional["GenRM"]:
        """The GenRM of an actor's run; None where none is in the training processes.

        A server that the job starts on the same GPUs is not here: `memory.reserve_gib` leaves it its room.
        """
        actor = getattr(run, "actor", None)
        if actor is None or actor.genrm is None or actor.judge != "process":
            return None
        return cls(
            weight_bytes=folder_bytes(actor.genrm),
            kv_bytes=int(actor.kv_cache_gib * GIB),
            share=actor.gpu_memory_utilization,
        )

    def held(self, capacity_bytes: int, *, on_gpu: bool) -> dict[str, int]:
        """Holder -> bytes, in every phase."""
        kv = max(int(self.share * capacity_bytes) - self.weight_bytes, 0) if on_gpu else self.kv_bytes
        return {"genrm_weights": self.weight_bytes, "genrm_kv_cache": kv}

    def needs(self, capacity_bytes: int, *, on_gpu: bool) -> list[str]:
        """Why its engine cannot start, in words with numbers; empty when it can."""
        room = int(self.share * capacity_bytes)
        if not on_gpu or self.weight_bytes < room:
            return []
        return [
            f"the GenRM has {room / GIB:.2f} GiB (actor.gpu_memory_utilization={self.share:g}), its weights alone "
            f"need {self.weight_bytes / GIB:.2f} GiB"
        ]


def folder_bytes(folder: str) -> int:
    """Bytes of the tensors in a Hugging Face folder."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
