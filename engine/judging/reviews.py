"""Reviews of a batch of samples, requested while other samples are still being generated."""

from concurrent.futures import Future

from ralign.engine.data.pairs import Pair
from ralign.engine.data.verdicts import BOXED, VerdictForm, verdict_of
from ralign.engine.generator.replicas import Replicas
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.judging.metarm import MetaRM, Outcome, Review


class Reviews:
    """One batch. One rank of each engine requests the reviews, and all its ranks get the outcomes."""

    def __init__(self, metarm: MetaRM | None, replicas: Replicas, form: VerdictForm = BOXED):
        """Without a MetaRM every outcome is `SKIPPED`. `form`: of the samples' verdicts."""
        self.metarm, self.replicas, self.form = metarm, replicas, form
        self._futures: dict[int, Future[Review]] = {}

    def add(self, index: int, pair: Pair, text: str) -> None:
        """Request the review of sample `index`, if its verdict is the label."""
        if self.metarm is None or not self.replicas.makes_requests:
            return
        if verdict_of(text, self.form) == pair.gt_label:
            self._futures[index] = self.metarm.review(pair, text)

    def outcomes(self, num_samples: int) -> list[Outcome]:
        """One outcome for each sample; waits for all reviews. Collective over the job.

        Raises:
            JudgeStopped: on every rank, if the MetaRM of any rank has stopped.
        """
        metarm = self.metarm
        if metarm is None:
            return [Outcome.SKIPPED] * num_samples
        found = self.replicas.ask_once(lambda: self._wait(metarm))
        return [found.get(index, Outcome.SKIPPED) for index in range(num_samples)]

    def _wait(self, metarm: MetaRM) -> dict[int, Outcome]:
        found = {index: future.result().outcome for index, future in self._futures.items()}
        assert Outcome.SKIPPED not in found.values(), "a MetaRM may fail, but not skip"
        if metarm.stop_reason is not None:
            raise JudgeStopped(metarm.stop_reason)
        return found
