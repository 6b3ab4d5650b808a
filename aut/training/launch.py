"""Launch: a training's processes, one a GPU, on one host or several; contradictions said before anything loads.

In    a schedule and training params, AUT_PROCS, AUT_HOSTS, AUT_RDZV, AUT_DEVICE, the visible GPUs
Out   None where this process is to train itself; else the exit code of the processes that were started and ended
Why   torch's elastic agent stops all processes when one fails or it is told to stop, and each process watches the
      agent (aut/guard.py), so that none survives. Started again here are those only that had to end together because
      a micro-batch did not fit one of them (aut/training/recall.py): it is smaller each time. All else is the flow's
      to retry, from a checkpoint.
Run   `AUT_PROCS=2 aut finetune adapted 0`

AUT_PROCS   processes on this host (default: the visible GPUs, else 1)
AUT_HOSTS   hosts that take part (default 1); each runs the same command, with AUT_WORK on a shared file system
AUT_DEVICE  cpu: on the CPU, although there are GPUs
AUT_RDZV    host:port where several hosts meet: the first host's address and a free port
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from aut.config import Params, Schedule, Training
from aut.errors import ConfigError
from aut.guard import grace_s
from aut.training import placement
from aut.training.placement import count
from aut.training.recall import RECALLED

MEET_S = 120  # for all hosts to arrive
PAUSE_S = 10.0  # before hosts meet again at a port that the first one must have left
DRIVER = Path("/proc/driver/nvidia/version")
ON_CPU = "set AUT_DEVICE=cpu to train on the CPU"


def launch(stage: str, params: Params, item: str) -> int | None:
    """Starts the processes that `aut <stage> <item>` needs and waits for them; `stage` is base or finetune."""
    placement.check()
    if "RANK" in os.environ:  # one of them
        return None
    if stage == "base" and (item not in params.base.encoders or params.base.encoders[item].kind != "train"):
        return None
    section = params.base if stage == "base" else params.finetune
    here, hosts = processes(), count("AUT_HOSTS") or 1
    check(stage, section.schedule, section.training, here * hosts)
    if here * hosts == 1 and not section.training.deepspeed_stage:
        return None
    return _run([sys.executable, "-m", "aut", *sys.argv[1:]], here, hosts)


def processes() -> int:
    """How many to start on this host. ConfigError where there is or should be a GPU that torch does not see."""
    import torch

    if os.environ.get("AUT_DEVICE") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the processes to come, too
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    seen = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip() not in ("", "-1")]
    if len(named) > seen:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={','.join(named)} names {len(named)} GPUs, torch sees {seen}",
            "name those that `nvidia-smi` lists, or unset it; `aut doctor` says more",
        )
    wanted = count("AUT_PROCS") or max(1, seen)
    if not (seen or hidden) and DRIVER.exists():
        raise ConfigError(
            "this host has NVIDIA's driver, but torch sees no GPU",
            f"install a torch for its CUDA (`nvidia-smi` says which; `aut doctor` says more), or {ON_CPU}",
        )
    if not (seen or hidden) and wanted > (os.cpu_count() or 1):
        raise ConfigError(
            f"AUT_PROCS={wanted}, but no GPU is visible and this host has {os.cpu_count()} cores",
            f"lower AUT_PROCS, start it beside the GPUs, or {ON_CPU}",
        )
    if seen and wanted > seen:
        raise ConfigError(f"AUT_PROCS={wanted}, but {seen} GPUs are visible", "one process a GPU: lower AUT_PROCS")
    return wanted


def check(stage: str, schedule: Schedule, training: Training, world: int) -> None:
    """ConfigError with every contradiction between the params of `stage` and this machine; params.yaml has none."""
    short = [name for name in ("accelerate", "deepspeed") if find_spec(name) is None]
    wrong = {
        f"{world} processes share steps of schedule.batch={schedule.batch} clips": world > schedule.batch,
        f"training.deepspeed_stage={training.deepspeed_stage} needs {' and '.join(short)}, not installed here": bool(
            training.deepspeed_stage and short
        ),
        f"{world} processes need accelerate, not installed here": world > 1 and "accelerate" in short,
    }
    if found := [what for what, holds in wrong.items() if holds]:
        raise ConfigError(f"{stage}: {'; '.join(found)}", f"mend these in params ({stage}.*) or start otherwise")


def check_share(stage: str, name: str, clips: int, steps: int, world: int) -> None:
    """ConfigError where a step has fewer clips than processes: the control takes as many as its audio needs."""
    if clips // steps < world:
        raise ConfigError(
            f"{stage} {name}: {world} processes share steps of {clips // steps} clips ({clips} in {steps} steps)",
            f"start fewer processes, or raise {stage}.schedule.batch",
        )


def _run(command: list[str], here: int, hosts: int) -> int:
    """Exit code of the processes, started as often as they ask for it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = f"{grace_s():.0f}"  # its own 30 s may cut a checkpoint short
    with tempfile.TemporaryDirectory() as folder:
        start = 0
        while True:
            recalled = Path(folder) / str(start)
            os.environ[RECALLED] = str(recalled)
            try:
                code = _started(command, here, hosts, start)
            except ConfigError:  # the first host went with the store at which they met
                if not recalled.exists():
                    raise
            if not recalled.exists():
                return code
            print("the processes are started again, from the last checkpoint", file=sys.stderr, flush=True)  # noqa: T201
            time.sleep(PAUSE_S if hosts > 1 else 0.0)
            start += 1


def _started(command: list[str], here: int, hosts: int, start: int) -> int:
    """Exit code of the processes. SystemExit where this one is told to stop."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    address = _address(hosts)
    config = LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=here,
        run_id=f"aut-{start}",
        rdzv_backend="c10d",
        rdzv_endpoint=address,
        rdzv_configs={"join_timeout": MEET_S, "read_timeout": MEET_S // 4},
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        raise SystemExit(128 + int(error.sigval)) from None
    except (RendezvousError, ConnectionError, RuntimeError, OSError, ValueError) as error:
        if not _meeting(error):
            raise
        raise ConfigError(
            f"the processes cannot meet at {address} ({' '.join(str(error).split())[:200]})",
            "is the port taken, or a host missing? set AUT_RDZV to a free host:port of the first host",
        ) from None
    return 0


def _meeting(error: BaseException) -> bool:
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    return isinstance(error, RendezvousError | ConnectionError) or "address" in str(error).lower()


def _address(hosts: int) -> str:
    address = os.environ.get("AUT_RDZV", "")
    if not address:
        if hosts > 1:
            raise ConfigError(f"AUT_HOSTS={hosts} without AUT_RDZV", "set AUT_RDZV to host:port of the first host")
        return "localhost:0"  # a free port, known to this host only
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"AUT_RDZV={address} is no host:port", "write it like AUT_RDZV=10.0.0.1:29400")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, int(port)))
        except OSError as error:  # another host's address cannot be bound either, and need not be
            if error.errno == errno.EADDRINUSE and not (hosts > 1 and _ours(int(port))):
                raise ConfigError(
                    f"the port of AUT_RDZV={address} is taken by another program", "name a free port, on every host"
                ) from None
    return address


def _ours(port: int) -> bool:
    """Whether another `aut` of this machine listens there: the meeting itself, opened by a start before this one."""
    import psutil

    for found in psutil.net_connections("tcp"):
        if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
            with suppress(psutil.Error):  # it has just ended, or is not ours to look at
                if "aut" in (os.path.basename(word) for word in psutil.Process(found.pid).cmdline()[:3]):
                    return True
    return False
