"""A process whose starter is killed ends, also where a shell stands between them and lives on."""

import subprocess
import sys
import time

import psutil

CHILD = "import time; from aut.guard import end_with_parent; end_with_parent(every_s=0.05); print('up', flush=True); time.sleep(60)"  # fmt: skip  # noqa: E501
STARTER = """
import subprocess, sys
p = subprocess.Popen(["sh", "-c", sys.executable + " -c \\"" + sys.argv[1] + "\\"; true"], stdout=subprocess.PIPE)
p.stdout.readline()
import psutil
child = [c for c in psutil.Process(p.pid).children() if "python" in c.name()][0]
print(child.pid, p.pid, flush=True)
p.wait()
"""


def test_it_ends_when_the_starter_above_the_shell_is_killed():
    starter = subprocess.Popen([sys.executable, "-c", STARTER, CHILD], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child_pid, shell_pid = map(int, starter.stdout.readline().split())
    child = psutil.Process(child_pid)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    end = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    if psutil.pid_exists(shell_pid):
        psutil.wait_procs([psutil.Process(shell_pid)], timeout=5)
