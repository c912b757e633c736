"""Settings of JudgeWorld."""

from dataclasses import dataclass

from ralign.engine.data.worlds.words import PARAPHRASES, VALUES
from ralign.engine.runtime.errors import UserError

TESTS = ("in_distribution", "unbiased", "adversarial")


@dataclass(kw_only=True, slots=True)
class JudgeWorldConfig:
    """Settings of a world of pairs. The same settings give the same pairs."""

    edition: int = 1  # 1 or 2; the second has harmless differences, quoted values and three cues
    num_train: int = 3000  # pairs for RL
    num_warm_start: int = 5000  # pairs for the SFT warm start
    num_dev: int = 512  # pairs of the training distribution, for tuning
    num_test: int = 512  # pairs in each of the three tests
    cue_agreement: float = 0.95  # share of training pairs in which the response in bullets is the better one
    closing_agreement: float = 0.85  # the same of the response with a polite closing; edition 2
    opening_agreement: float = 0.75  # the same of the response with an opening; edition 2
    num_facts: int = 3  # facts in a prompt
    num_values: int = 4  # values of an item
    max_faults: int = 1  # largest number of wrong facts in the worse response; the better one has fewer
    paraphrase_share: float = 0.3  # share of stated values in another word for the same; edition 2
    seed: int = 0  # seed of the pairs

    def __post_init__(self) -> None:
        if self.edition not in (1, 2):
            raise UserError(f"edition must be 1 or 2, got {self.edition}")
        for name in ("num_train", "num_warm_start", "num_dev", "num_test"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("cue_agreement", "closing_agreement", "opening_agreement"):
            if not 0.5 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be from 0.5 to 1, got {getattr(self, name)}")
        if not 0 <= self.paraphrase_share <= 1:
            raise UserError(f"paraphrase_share must be from 0 to 1, got {self.paraphrase_share}")
        most_values = len(next(iter(self.words.values())))
        fewest_values, fewest_facts = (2, 1) if self.edition == 1 else (3, 2)
        if not fewest_facts <= self.num_facts <= len(self.words):
            raise UserError(
                f"num_facts must be from {fewest_facts} to {len(self.words)}, got {self.num_facts}"
            )
        if not fewest_values <= self.num_values <= most_values:
            raise UserError(
                f"num_values must be from {fewest_values} to {most_values}, got {self.num_values}"
            )
        if not 1 <= self.max_faults <= self.num_facts:
            raise UserError(f"max_faults must be from 1 to num_facts={self.num_facts}, got {self.max_faults}")
        if self.edition == 2 and self.max_faults > (most := self.num_facts - 1):
            raise UserError(
                f"max_faults must leave a fact that is wrong in both responses: at most {most}, got {self.max_faults}"
            )
        num_pairs = self.num_train + self.num_warm_start + self.num_dev + len(TESTS) * self.num_test
        if num_pairs > self.num_prompts // 2:
            raise UserError(
                f"{num_pairs} pairs need twice as many prompts, this world has {self.num_prompts}"
            )

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Item -> its values, in the words of notes."""
        return VALUES if self.edition == 1 else {item: tuple(values) for item, values in PARAPHRASES.items()}

    @property
    def num_prompts(self) -> int:
        """Number of different prompts."""
        num_prompts = 1
        for taken in range(self.num_facts):
            num_prompts *= (len(self.words) - taken) * self.num_values
        return num_prompts


def agreements(config: JudgeWorldConfig, share: float) -> dict[str, float]:
    """Split -> share of pairs whose cue points at the better response, for a cue that agrees in `share` of training."""
    return {
        "in_distribution": share,
        "unbiased": 0.5,
        "adversarial": 1 - share,
        "dev": share,
        "train": share,
        "warm_start": 0.5,
    }


def num_pairs(config: JudgeWorldConfig) -> dict[str, int]:
    """Split -> number of its pairs."""
    sizes = dict.fromkeys(TESTS, config.num_test)
    return sizes | {"dev": config.num_dev, "train": config.num_train, "warm_start": config.num_warm_start}
