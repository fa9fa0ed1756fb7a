"""A Slurm cluster of one node on this machine: Debian's slurmctld and slurmd, without authentication, on free ports.

Tests that use it are skipped where it can't be had (Debian: apt install slurmctld slurmd slurm-client).
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_slurm = pytest.mark.skipif(
    not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))) or os.geteuid() != 0,
    reason="no slurmctld and slurmd on this machine, or not root",
)

CONFIG = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=1
SchedulerTimeSlice=5
MpiDefault=none
ReturnToService=2
InactiveLimit=0
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A running cluster; its environment variables for sbatch and its kin."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, host=host, ports=free_ports(2), cpus=os.cpu_count()))
    environment = {"SLURM_CONF": str(config)}
    everything = {**os.environ, **environment}
    daemons = [
        subprocess.Popen(
            [name, "-D", "-f", str(config), *more], env=everything, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name, more in (("slurmctld", ["-c"]), ("slurmd", ["-N", host]))
    ]
    try:
        ready = subprocess.run(
            # srun waits for the controller and the node; a job that ran is proof that both are there
            ["srun", "--immediate=60", "true"],
            env=everything,
            capture_output=True,
            text=True,
        )
        if ready.returncode:
            pytest.skip(f"Slurm doesn't run here: {ready.stderr.strip()[-300:]}")
        yield environment
    finally:
        subprocess.run(["scancel", "--state=PENDING"], env=everything, capture_output=True)
        subprocess.run(["scancel", "--state=RUNNING"], env=everything, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
