"""What a failed stage had made before is there again, under DVC's own command line and under the flow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aut.layout import Layout
from aut.outs import put_back
from benchmarks import _pool as pool
from flows.reproduce import StageFailed, reproduce_stage

ROOT = Path(__file__).parents[2]
ROWS = {"speech": 24_000, "environment": 3_000, "music": 3_000}
LEFT = 200_000  # bytes that stay free: DVC itself must be able to write its lock
ONCE = f'head -c "$(( $(df --output=avail -B1 . | tail -1) - {LEFT} ))" /dev/zero > filler'
ALWAYS = 'python eat.py & trap "kill $!" EXIT; sleep 1'
EATER = f"""
import os, time
f = os.open("filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    disk = os.statvfs(".")
    os.write(f, bytes(max(0, disk.f_bavail * disk.f_bsize - {LEFT})))
    time.sleep(0.001)
"""
FILL = """
set -e
mount -t tmpfs -o size=40m none "$1" && cd "$1" && cp -a "$2"/. .
dvc repro -q mixture
md5sum $(find data/mixture data/runs reports -type f | sort) > before
sed -i 's/rows: 10000/rows: 30000/' params.yaml
{fill}
! dvc repro mixture > "$3" 2>&1
md5sum -c --quiet before
stat -c "%h names" data/mixture/speech/speech/part-00000.parquet
cat "$3"
"""


def env(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site"), "AUT_WORK": str(folder / "work")}
    return os.environ | own | {"PATH": path, "PYTHONPATH": str(ROOT), "AUT_TRACK": "off"} | more


def dvc(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    args = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(args, cwd=root, env=env(root.parent), capture_output=True, text=True, check=False)


def project(root: Path, stages: dict[str, object]) -> Path:
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    assert dvc(root, "init", "-q", "--no-scm").returncode == 0
    return root


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A stage that copies `input` to `out/file`, has run, and is killed -9 half-way from now on."""
    cmd = "cat input > file && mkdir out && cp file out/ && if grep -q kill input; then kill -9 $PPID $$; fi"
    root = project(tmp_path / "copy", {"make": {"cmd": cmd, "deps": ["input"], "outs": ["file", "out"]}})
    (root / "input").write_text("first")
    done = dvc(root, "repro", "-q")
    assert done.returncode == 0, done.stderr
    (root / "input").write_text("kill me")
    return root


@pytest.mark.slow
def test_the_flow_puts_back_the_outs_of_a_stage_that_was_killed_with_its_dvc(made: Path) -> None:
    with pytest.raises(StageFailed):
        reproduce_stage(made, "make", env(made.parent), made.parent / "log", print)
    assert (made / "file").read_text() == (made / "out/file").read_text() == "first"
    assert os.access(made / "out/file", os.W_OK)


@pytest.mark.slow
def test_after_a_kill_dvc_itself_brings_them_back_at_its_next_start(made: Path) -> None:
    assert dvc(made, "repro", "make").returncode
    (made / "input").write_text("first")
    assert "Running stage" not in dvc(made, "repro", "make").stdout
    assert (made / "out/file").read_text() == "first"


@pytest.mark.slow
def test_what_the_cache_lost_is_told_and_the_first_failure_leaves_nothing(made: Path) -> None:
    shutil.rmtree(made / ".dvc/cache/files")
    done = subprocess.run(
        [sys.executable, "-m", "aut.outs", "make"], cwd=made, env=env(made.parent), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "run `dvc checkout`" in done.stderr
    (made / "dvc.lock").unlink()
    assert put_back(made, "make") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("fill", "names"), [(ONCE, 1), (ALWAYS, 2)], ids=["copies", "hard links"])
def test_a_disk_that_fills_during_mixture_leaves_the_old_one_whole(tmp_path: Path, fill: str, names: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    private = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no process mount a file system of its own")
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["mixture"]
    stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("aut/")]
    root = project(tmp_path / "copy", {"mixture": stage})
    layout, sources = Layout(root), {d: [d] for d in ROWS}
    for domain, rows in ROWS.items():
        pool.source(layout, domain, domain, rows)
    pool.block(layout, [])
    params = pool.params(sources, rows=10_000, window=100, parts=4)
    layout.params.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    (root / "eat.py").write_text(EATER)
    said = tmp_path / "said"
    script = ["bash", "-c", FILL.replace("{fill}", fill), "-", disk, root, said]
    done = subprocess.run([*private, *script], env=env(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + said.read_text()
    assert f"{names} names" in done.stdout
    assert "aut: no room left to write in" in done.stdout
    assert "mixture: its outs are again those of its last run" in done.stdout
