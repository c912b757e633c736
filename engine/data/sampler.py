"""Samples the prompts of each step: shuffled epochs that continue exactly after a restart."""

import random
from typing import Any

from ralign.engine.runtime.errors import UserError


class PromptSampler:
    """Batches of indices into `num_items` prompts; every epoch is a new permutation, drawn from `seed`.

    A batch may cross the end of an epoch, so no item is dropped. The order of epoch e depends only on (seed, e), so the
    state is two numbers.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        if num_items < 1:
            raise UserError(f"there must be at least one prompt to sample, got {num_items}")
        if batch_size < 1:
            raise UserError(f"the batch must hold at least one prompt, got {batch_size}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = 0
        self._position = 0  # number of items of this epoch already used
        self._order = self._permutation()

    def next_batch(self) -> list[int]:
        """The next `batch_size` indices."""
        batch: list[int] = []
        while len(batch) < self.batch_size:
            if self._position == self.num_items:
                self._epoch += 1
                self._position = 0
                self._order = self._permutation()
            taken = self._order[self._position : self._position + self.batch_size - len(batch)]
            self._position += len(taken)
            batch += taken
        return batch

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable state; see `load_state_dict`."""
        return {
            "num_items": self.num_items,
            "seed": self.seed,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state. The batch size may differ; the data and the seed may not (UserError)."""
        for name in ("num_items", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the saved sampler has {name} {state[name]}, this run has {getattr(self, name)}:"
                    " it cannot continue in the same order"
                )
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        order = list(range(self.num_items))
        random.Random(f"{self.seed}/{self._epoch}").shuffle(order)
        return order
