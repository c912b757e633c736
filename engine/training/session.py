"""What every stage of a run works on: the job, the models, the engine, and the memory that they share.

One process holds one policy and one vLLM engine for a whole run. A stage that starts from a checkpoint loads it into
the policy's memory, which the engine reads, too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import torch.distributed as dist
from ralign.engine.checkpoint.settings import has_progress, mark_finished, open_folder
from ralign.engine.config.run import Run
from ralign.engine.data.tokenizer import build_tokenizer, load_tokenizer
from ralign.engine.generator.generator import Generator
from ralign.engine.planner.memory import Ledger
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.fresh import create_model_folder
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.policy.policy import Policy
from ralign.engine.report.progress import Progress
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.runtime import output
from ralign.engine.runtime.clock import Clock
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.folder_lock import FolderLock
from ralign.engine.runtime.signals import Stopped, StopSignal
from ralign.engine.runtime.watchdog import Watchdog
from ralign.engine.training.memory import Memory, plan_memory


class Session:
    """A job with its models; every method is collective over all ranks.

    Attributes:
        critic: PPO's, or None.
        stop: whether the job was asked to stop.
    """

    cluster: Cluster
    progress: Progress
    watchdog: Watchdog
    stop: StopSignal
    tokenizer: Any
    policy: Policy
    critic: Critic | None
    generator: Generator
    memory: Memory

    def __init__(self, run: Run):
        """Join the job and open `run.folder`; `build` makes the models."""
        self.cluster = cluster_module.start(
            tensor=run.parallel.tensor,
            pipeline=run.parallel.pipeline,
            context=run.parallel.context,
            # The watchdog must be first: it writes every rank's stack.
            timeout_s=run.faults.stall_s + 120,
            generation_timeout_s=run.faults.generation_stall_s + 120,
            deterministic=run.deterministic,
        )
        self.progress = Progress(enabled=self.cluster.is_first_rank)
        self._lock: FolderLock | None = None  # of rank 0, for the run's folder
        if message := self.cluster.on_first_rank(lambda: self._open(run)):
            self.progress.say(message)
        output.move_log(run.folder / "log" / f"rank{self.cluster.rank:05d}.txt")
        long_phases: dict[str, float] = dict.fromkeys(
            ("generate", "judge", "evaluate"), run.faults.generation_stall_s
        )
        self.watchdog = Watchdog(
            run.folder / "heartbeat",
            self.cluster.rank,
            stall_s=run.faults.stall_s,
            phase_stall_s=long_phases,
            job=self.cluster.on_first_rank(lambda: uuid4().hex[:8]),
        )
        self._closers = ExitStack()

    def _open(self, run: Run) -> str | None:
        self._lock = FolderLock(run.folder)
        return open_folder(run)

    def build(self, run: Run, texts: Sequence[str], *, vocab_size: int) -> None:
        """Make the models, the engine and the memory plan, and prove that the engine computes as the policy does.

        Args:
            texts: training data of the tokenizer, where `run.model.hf_path` names no model to start from.
            vocab_size: of that tokenizer.
        """
        with self.progress.stage("start", "Model and engine"):
            folder = Path(run.model.hf_path) if run.model.hf_path else self._new_model(run, texts, vocab_size)
            self.tokenizer, end_token_ids = load_tokenizer(folder)
            plan = plan_memory(run, self.cluster, folder)
            self.policy = Policy(
                folder, self.cluster, temperature=run.generator.temperature, **_model_options(run)
            )
            self._share_memory(run, plan)
            self.memory.offload()  # before the engine, whose KV cache takes the gradients' place
            longest_answer = max(run.generator.max_new_tokens, run.eval.max_new_tokens)
            self.generator = Generator(
                self.policy,
                self.cluster,
                run.generator,
                max_model_len=run.data.max_prompt_tokens + longest_answer,
                eos_token_id=end_token_ids,
                kv_bytes=plan.kv_bytes,
                bucket_bytes=run.memory.bucket_mib << 20,
                can_sleep=plan.kv_sleep,
            )
            self.generator.on_progress = self.watchdog.moves
            self.generator.verify()
            self.generator.prove()
            self.memory.measure("start")
        self.stop = StopSignal()  # after the engine, which may install signal handlers, too

    def _new_model(self, run: Run, texts: Sequence[str], vocab_size: int) -> Path:
        folder = run.folder / "model"
        # A resumed run keeps its tokenizer, whatever a newer version of the library would make.
        if self.cluster.is_first_rank and not (
            has_progress(run.folder) and (folder / "config.json").exists()
        ):
            tokenizer = build_tokenizer(texts, folder, vocab_size)
            create_model_folder(folder, run.model, tokenizer, run.seed)
        dist.barrier()
        return folder

    def _share_memory(self, run: Run, plan: Ledger) -> None:
        """The critic of these settings, and the memory plan of both models."""
        self.critic = None
        if run.has_critic:
            folder = run.critic.hf_path or self.policy.folder
            self.critic = Critic(folder, self.cluster, **_model_options(run))
            _check_vocabulary(self.policy, self.critic)
        models: list[MegatronModel] = [self.policy, *([self.critic] if self.critic else [])]
        for model in models:
            model.on_progress = self.watchdog.moves
        self.memory = Memory(plan, models, lambda: self.generator.held_bytes())

    def adopt(self, run: Run, plan: Ledger) -> None:
        """Go over to the critic and the memory plan of another run on the same policy and engine."""
        self.begin_training()
        self._share_memory(run, plan)

    @contextmanager
    def phase(self, name: str, clock: Clock | None = None) -> Iterator[None]:
        """A phase of a step: the watchdog gets its name, the clock its time, the memory report its size."""
        self.watchdog.phase(name)
        with clock.stage(name) if clock else ExitStack():
            yield
        self.memory.measure(name)

    def begin_generation(self) -> None:
        """Training state leaves the device; the engine gets the newest weights and its KV cache."""
        self.memory.offload()
        self.generator.wake()

    def begin_training(self) -> None:
        """The KV cache leaves the device, and all training state is back on it: to set up a stage, or to save one."""
        self.generator.sleep()
        self.memory.onload()
        self.memory.wait()

    def load(self, folder: Path) -> None:
        """Read a checkpoint into the policy and, being the same memory, the engine, and prove it."""
        if not self.policy.has_weights_of(folder):  # a run's start was read when the model was made
            self.policy.load(folder)
        self.generator.weights_updated()
        self.generator.verify()

    def export(self, folder: Path) -> Path:
        """Write the policy as a Hugging Face folder; returns it."""
        self.watchdog.phase("export")
        self.policy.export(folder)
        return folder

    def at_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the job ends, before the engine does."""
        self._closers.callback(callback)

    def stop_early(self, message: str) -> NoReturn:
        """End an unfinished run in order, with a line that says why."""
        self.progress.say(message)
        self._shut_down()
        raise Stopped

    def close(self, *runs: Run) -> None:
        """End the job when every rank is done; `runs` are complete."""
        for run in runs:
            self.cluster.on_first_rank(lambda run=run: mark_finished(run))
        self._shut_down()

    def _shut_down(self) -> None:
        self.watchdog.close()
        dist.barrier()
        self._closers.close()
        self.memory.close()
        self.generator.close()
        if self._lock is not None:
            self._lock.release()
        cluster_module.stop()


def _model_options(run: Run) -> dict[str, Any]:
    return {
        "dtype": run.parallel.dtype,
        "sequence_parallel": run.parallel.sequence,
        "recompute": run.parallel.recompute,
        "kernels": run.kernels,
    }


def _check_vocabulary(policy: Policy, critic: Critic) -> None:
    """Raises UserError for a critic whose embedding lacks tokens of the policy."""
    critic_size, policy_size = critic.hf_config.vocab_size, policy.hf_config.vocab_size
    if critic_size < policy_size:
        raise UserError(f"{critic.folder}: the critic has {critic_size} tokens, the policy {policy_size}")
