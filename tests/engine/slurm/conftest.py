"""A real SLURM on this machine: munge, slurmctld, and two slurmd that play nodes n1 and n2.

Jobs of the partition `urgent` preempt those of `all`, which have a grace of 20 s.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[3] / "recipes" / "slurm" / "train.sbatch"
STAND_IN = Path(__file__).with_name("stand_in.py")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
ReturnToService=2
SlurmdTimeout=6
SlurmctldTimeout=10
MessageTimeout=5
KillWait=3
BatchStartTimeout=20
CompleteWait=0
SchedulerParameters=bf_interval=2,sched_interval=2,default_queue_depth=10
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs={cpus} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2
"""


class SlurmCluster:
    """Daemons in the foreground, so that they are this process's own children."""

    def __init__(self, folder: Path):
        self.folder = folder
        ports = [_free_port() for _ in range(3)]
        names = dict(zip(("port", "port1", "port2"), ports, strict=True))
        (folder / "state").mkdir()
        config = CONFIG.format(folder=folder, host=socket.gethostname(), cpus=os.cpu_count(), **names)
        (folder / "slurm.conf").write_text(config)
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}
        self._start_munge()
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        self.wait_for(lambda: self.states() == {"n1": "idle", "n2": "idle"}, "both nodes idle", 40)

    def _start_munge(self) -> None:
        folder = self.folder
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemon(
            "munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self.wait_for((folder / "munge.socket").exists, "munge", 10)

    def start_node(self, name: str) -> None:
        self._daemon(name, "slurmd", "-D", "-c", "-N", name)

    def _daemon(self, name: str, program: str, *args: str) -> None:
        with (self.folder / f"{name}.out").open("a") as out:
            self.daemons[name] = subprocess.Popen(
                [program, *args], env=self.env, stdout=out, stderr=out, start_new_session=True
            )

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        done = subprocess.run(
            ["sinfo", "-N", "-h", "-o", "%N %T"], env=self.env, capture_output=True, text=True, timeout=30
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def job(self, number: str) -> dict[str, str]:
        """scontrol's fields of a job."""
        text = self.run("scontrol", "show", "job", number)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def kill_node(self, name: str) -> None:
        """As if its power went: its daemon and everything that it started, at once."""
        for process in psutil.process_iter(["environ", "cmdline"]):
            environ, words = process.info["environ"] or {}, process.info["cmdline"] or []
            is_ours = environ.get("SLURM_CONF") == self.env["SLURM_CONF"]
            is_task = environ.get("SLURMD_NODENAME") == name
            if is_ours and is_task and not any("sbatch" in word for word in words[:1]):
                parent = process.parent()
                if parent is not None and parent.name().startswith("slurmstepd"):
                    parent.kill()
                process.kill()
        self.daemons.pop(name).kill()

    def wait_for(self, condition, what: str, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: not in {timeout_s} s\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text()[-2500:]}" for p in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True, timeout=30)
        for daemon in reversed(list(self.daemons.values())):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("SLURM_CONF") == self.env["SLURM_CONF"]:
                process.kill()


class Jobs:
    """What ralign-submit makes of a recipe, in a folder of the test's own."""

    def __init__(self, slurm: SlurmCluster, folder: Path):
        self.slurm, self.folder = slurm, folder

    def submit(self, *words: str, recipe: Path = STAND_IN, nodes: int = 2, folder: Path | None = None) -> str:
        """Options of ralign-submit and settings of the recipe; returns the job's number."""
        command = [
            sys.executable,
            "-m",
            "ralign.engine.slurm.submit",
            str(recipe),
            f"--nodes={nodes}",
            "--gpus=0",
        ]
        done = subprocess.run(
            [*command, f"--logs={self.folder / 'logs'}", f"--script={SCRIPT}", *words],
            env={**self.slurm.env, "OMP_NUM_THREADS": "1"},
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("Submitted batch job ")[1].split()[0]

    def wait_for_step(self, job: str, step: int = 1, name: str = "run", num_ranks: int = 2) -> None:
        """Until every rank of a stand-in has saved this step."""

        def is_saved() -> bool:
            files = list(self.folder.glob(f"{name}_rank*.txt"))
            return len(files) == num_ranks and all(int(f.read_text().split()[0]) >= step for f in files)

        self.slurm.wait_for(is_saved, f"step {step} of job {job}", 60)

    def wait_for_end(self, job: str, timeout_s: float = 60) -> tuple[str, int]:
        """The job's last state, and how often it was started again."""

        def has_ended() -> bool:
            return self.slurm.job(job)["JobState"] in ENDED

        self.slurm.wait_for(has_ended, f"the end of job {job}", timeout_s)
        return self.slurm.job(job)["JobState"], int(self.slurm.job(job)["Restarts"])

    def logs(self, job: str) -> dict[str, list[list[str]]]:
        """The words of the lines of each rank's log."""
        files = sorted((self.folder / "logs" / job).glob("rank*.log"))
        return {file.stem: [line.split() for line in file.read_text().splitlines()] for file in files}

    def script_log(self, job: str) -> str:
        return (self.folder / "logs" / f"{job}.out").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"SLURM is not installed here ({', '.join(missing)}): apt-get install slurm-wlm munge, as root"
        )
    if os.geteuid() != 0:
        pytest.skip("a SLURM of our own needs root: its daemons start jobs as other users")
    cluster = None
    folder = tmp_path_factory.mktemp("slurm")
    try:
        cluster = SlurmCluster(folder)
        yield cluster
    finally:
        if cluster is not None:
            cluster.stop()


@pytest.fixture
def jobs(slurm, tmp_path):
    yield Jobs(slurm, tmp_path)
    slurm.run("scancel", "--user=root")  # what a test that failed left behind
