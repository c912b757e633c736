"""A real SLURM on this machine: munge, slurmctld, and two slurmd that play nodes n1 and n2."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

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
KillWait=5
BatchStartTimeout=20
CompleteWait=0
SchedulerParameters=bf_interval=2,sched_interval=2,default_queue_depth=10
MailProg=/bin/true
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
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
