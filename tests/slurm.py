"""A real Slurm on this machine for a test: one controller and one node, under a folder of its own, without root.

Debian's `slurm-wlm` has all of it. `auth/none` and `linuxproc` take the place of munge and cgroups, which need a system;
the node says that it has more cores than it has, so that an array runs at once.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ReturnToService=2
KillWait=30
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("slurmctld", "slurmd", "sbatch")


def is_installed() -> bool:
    """All programs are there."""
    return all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in PROGRAMS)


class Slurm:
    """Its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {"SLURM_CONF": str(root / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """Run a command and return what it says."""
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def states(self, job: str) -> set[str]:
        """States of a job's tasks; empty when Slurm has forgotten it."""
        return set(self.ask("squeue", "--noheader", "--states=all", "--format=%T", f"--job={job}").split())

    def wait(self, job: str, states: set[str], seconds: float = 240) -> None:
        """Wait until all tasks of a job are in one of these states."""
        end = time.monotonic() + seconds
        while not (now := self.states(job)) <= states:
            assert time.monotonic() < end, f"job {job} is {now} after {seconds} s"
            time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has; they are free again until they are used."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def slurm(root: Path) -> Iterator[Slurm]:
    """A Slurm that takes jobs; they and it end with the block."""
    for folder in ("state", "spool"):
        (root / folder).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    (root / "slurm.conf").write_text(CONF.format(host=host, user=getpass.getuser(), root=root, ports=free_ports(2)))
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    daemons = [
        subprocess.Popen(
            [name, "-D", "-f", str(root / "slurm.conf")], env=os.environ | path, stderr=subprocess.DEVNULL
        )
        for name in PROGRAMS[:2]
    ]
    cluster = Slurm(root)
    try:
        end = time.monotonic() + 30
        while "idle" not in (
            state := subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=os.environ | cluster.env, capture_output=True, text=True
            ).stdout
        ):
            assert time.monotonic() < end, f"no Slurm after 30 s: {state} {(root / 'slurmctld.log').read_text()}"
            time.sleep(0.2)
        yield cluster
    finally:
        subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=os.environ | cluster.env, timeout=30)
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}"],
            env=os.environ | cluster.env,
            timeout=30,
        )
        for daemon in daemons[::-1]:
            daemon.terminate()
            daemon.wait(30)
