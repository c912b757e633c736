"""Checkpoints of a stage: saving, retention and resuming.

A checkpoint has the complete training state: for each trained model the fp32 weights, Adam's moments and step, and the
schedule; the random states of every rank; and the stage's own state (sampler position, weight version, reference,
judge). A save copies the state to host memory and returns. Threads write it, and a rename makes it a checkpoint at the
end of the first step after every rank has written its part.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from ralign.engine.checkpoint import folders, safe_load, writer
from ralign.engine.checkpoint.rng import rng_state, set_rng_state
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from torch.distributed.checkpoint.metadata import Metadata


class Checkpoints:
    """The checkpoints of one stage; every method is collective over all ranks."""

    def __init__(
        self,
        folder: str | Path,
        cluster: Cluster,
        models: Mapping[str, MegatronModel],
        *,
        keep_last: int = 2,
        keep_best: int = 0,
    ):
        """Open or create `folder`, which must be visible to all ranks, and remove leftovers of an interrupted save.

        models: by name: `policy`, and `critic` if there is one.
        """
        assert keep_last >= 1
        self.folder = Path(folder)
        self.cluster, self.models = cluster, models
        self.keep_last, self.keep_best = keep_last, keep_best
        self._pending: tuple[int, float | None, writer.Save] | None = None
        self._staging: dict = {}
        cluster.on_first_rank(lambda: folders.remove_stale(self.folder))

    def save(self, step: int, state: dict, *, score: float | None = None) -> None:
        """Begin a checkpoint of the current state, after completing the previous save.

        Args:
            step: number of steps done.
            state: the stage's plain values, equal on every rank.
            score: value of the watched metric, higher is better; ranks checkpoints for `keep_best`.

        Raises:
            UserError: the files cannot be written. Complete checkpoints are not changed.
        """
        self.wait()
        if self.cluster.on_first_rank(folders.path_of(self.folder, step).exists):
            return  # it has the same state
        draft = folders.draft_of(self.folder, step)
        training = {name: model.training_state() for name, model in self.models.items()}
        common = {"step": step, "stage": state, **training}
        try:
            self.cluster.on_first_rank(lambda: folders.begin(draft))
            save = writer.begin(draft, self._pieces(), self._rng(), common, self._staging)
        except (OSError, UserError) as error:
            raise self._not_written(step, str(error)) from error
        self._pending = step, score, save

    @property
    def last_step(self) -> int:
        """Steps done at the newest complete checkpoint; 0 without one."""
        found = folders.complete(self.folder)
        return folders.step_of(found[-1]) if found else 0

    @property
    def is_written(self) -> bool:
        """Whether this rank has nothing left to write. If this holds on all ranks, `wait` does not block."""
        return self._pending is None or self._pending[2].is_written

    def wait(self) -> None:
        """Complete the current save, if there is one, and remove expired checkpoints."""
        if self._pending is None:
            return
        (step, score, save), self._pending = self._pending, None
        failure = None
        try:
            save.finish()
        except OSError as error:  # on every rank, or only on rank 0, which writes the metadata
            failure = str(error)
        parts: list = [None] * self.cluster.world_size
        dist.all_gather_object(parts, (save.checksums, failure))
        if failures := [failure for _, failure in parts if failure]:
            raise self._not_written(step, failures[0])
        known = {name: crc for checksums, _ in parts for name, crc in checksums.items()}
        self.cluster.on_first_rank(lambda: self._publish(step, score, save.draft, known))

    def restore(self) -> dict | None:
        """Load the newest complete checkpoint into the models, and return the `state` of its `save`; None without one.

        The layout may differ from that of the save. Random states are restored only in the same layout; a step does
        not use them.

        Raises:
            UserError: the checkpoint is damaged or of another model. It is not changed, and no older one is loaded
                instead.
        """
        path = self.cluster.on_first_rank(lambda: (folders.complete(self.folder) or [None])[-1])
        if path is None:
            return None
        manifest = self.cluster.on_first_rank(lambda: folders.check(path))
        self._check_contents(path, manifest)
        metadata, common = self.cluster.on_first_rank(lambda: self._read(path, manifest))
        same_world = manifest.layout == self._layout()
        try:
            rng = writer.load(path, metadata, self._pieces(), self._rng() if same_world else None)
        except (OSError, CheckpointingException, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise folders.unreadable(path, " ".join(str(error).split())) from error
        for name, model in self.models.items():
            model.resume_training(common[name])
        if rng is not None:
            set_rng_state(rng)
        return common["stage"]

    def _read(self, path: Path, manifest: folders.Manifest) -> tuple[Metadata, dict]:
        """The places of tensors, and the plain values; UserError if a file has what no save writes."""
        try:
            metadata = safe_load.read_metadata(path, manifest.sizes)
            common = safe_load.read_common(path)
        except safe_load.Refused as error:
            raise folders.unreadable(path, str(error)) from error
        for name in ("stage", *self.models):
            if name not in common:
                raise folders.unreadable(path, f"{safe_load.COMMON} has no state of the {name}")
        return metadata, common

    def _publish(self, step: int, score: float | None, draft: Path, known: dict[str, int]) -> None:
        files = folders.files_of(draft, known)
        if unseen := known.keys() - files.keys():
            raise UserError(
                f"{draft}: {min(unseen)} is not visible on rank 0; the run's folder must be shared by all nodes"
            )
        manifest = folders.Manifest(step=step, score=score, layout=self._layout(), files=files)
        folders.publish(draft, manifest)
        for path in folders.expired(self.folder, keep_last=self.keep_last, keep_best=self.keep_best):
            folders.remove(path)

    def _pieces(self) -> writer.Pieces:
        """Weights and moments of all models. Names of models other than the policy have the model's name as prefix."""
        prefixes = {name: "" if name == "policy" else f"{name}/" for name in self.models}
        return {
            key: pieces
            for name, model in self.models.items()
            for key, pieces in model.sharded_state(prefixes[name]).items()
        }

    def _rng(self) -> ShardedObject:
        return ShardedObject("rng", rng_state(), (self.cluster.world_size,), (self.cluster.rank,))

    def _layout(self) -> dict[str, int]:
        cluster = self.cluster
        return {
            "tensor": cluster.tp_size,
            "context": cluster.cp_size,
            "pipeline": cluster.pp_size,
            "data": cluster.dp_size,
        }

    def _check_contents(self, path: Path, manifest: folders.Manifest) -> None:
        """Raises UserError on every rank if the checksum of a file does not match."""
        world_size = self.cluster.world_size
        faults: list = [None] * world_size
        mine = folders.find_fault(path, manifest, rank=self.cluster.rank, world_size=world_size)
        dist.all_gather_object(faults, mine)
        if any(faults):
            raise folders.unreadable(path, next(filter(None, faults)))

    def _not_written(self, step: int, reason: str) -> UserError:
        """The error to raise. The draft is removed, since the disk may be full."""
        if self.cluster.is_first_rank:
            shutil.rmtree(folders.draft_of(self.folder, step), ignore_errors=True)
        complete = folders.complete(self.folder)
        last = f"the last complete one is {complete[-1].name}" if complete else "there is no complete one"
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.folder}: {reason}; {last}"
        )
