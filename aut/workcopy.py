"""Working copies: a clone of the checkout per profile, so that profiles never mix their data.

In    a checkout (may be read-only, may have uncommitted edits)
Out   $AUT_WORK/copies/<name>: the same files in a git clone of its own, params.yaml composed for the profile,
      DVC pointed at the shared remote and cache
Why   DVC needs a `.git` and owns `dvc.lock` and the outputs; a run must not disturb the files a person edits.
      Outputs of a copy survive from run to run, so a second run starts where the first one ended.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aut.config import Params, compose
from aut.errors import AutError, ConfigError
from aut.files import digest_bytes, locked
from aut.layout import Layout

GENERATED = {"params.yaml", "dvc.lock"}


def command(args: Sequence[str | Path], cwd: Path) -> str:
    """Standard output of a git or dvc command; AutError with its last line when it fails."""
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=tool_env(), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise AutError(f"`{' '.join(map(str, args))}` failed in {cwd}: {last[0]}")
    return done.stdout


def tool_env() -> dict[str, str]:
    """Environment for git, dvc and stages: this Python's tools first, no analytics, no prompts."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env |= {"DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0", "PYTHONUNBUFFERED": "1"}
    env.pop("GIT_DIR", None)
    env.pop("GIT_WORK_TREE", None)
    return env


def checkout_root() -> Path:
    """AUT_CHECKOUT, else the checkout that holds the current folder, else the one `aut` was installed from."""
    named = os.environ.get("AUT_CHECKOUT")
    if named:
        return Path(named).resolve()
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]):
        if (folder / "dvc.yaml").exists() and (folder / "conf").is_dir() and (folder / ".git").exists():
            return folder
    raise ConfigError("no checkout of aut here or above", "cd into the clone (it holds dvc.yaml, conf/ and .git)")


def revision(checkout: Path) -> str:
    """HEAD's hash; with uncommitted edits `<hash>-dirty-<digest of the edits>`."""
    head = _head(checkout)
    edits = command(["git", "-c", f"safe.directory={checkout}", "diff", "HEAD", "--", ".", ":!params.yaml"], checkout)
    return f"{head}-dirty-{digest_bytes(edits.encode())[:8]}" if edits.strip() else head


def _head(checkout: Path) -> str:
    return command(["git", "-c", f"safe.directory={checkout}", "rev-parse", "HEAD"], checkout).strip()


@contextmanager
def working_copy(checkout: Path, name: str, profile: str, overrides: Sequence[str]) -> Iterator[tuple[Layout, Params]]:
    """The copy `name`, held by a lock, brought up to date with the checkout and composed for the profile."""
    work = Layout(checkout).work
    os.environ["AUT_WORK"] = str(work)  # the copy and its stages share it, wherever they run
    root = work / "copies" / name
    with locked(work / "copies" / f"{name}.lock", f"a run of '{name}'"):
        _clone(checkout, root, _head(checkout))
        _overlay(checkout, root)
        point_dvc(root, work)
        params = compose(profile, overrides, root / "conf", root / "params.yaml")
        _drop_unnamed(Layout(root), params)
        yield Layout(root), params


def _drop_unnamed(layout: Layout, params: Params) -> None:
    """Removes what `index` made of sources that params no longer name: DVC knows no such stage, so it would leave it.

    `data/index` as a whole is a dep. The folder of a role stays though empty, for it is one too.
    """
    named = {p for n, s in params.sources.items() for p in (layout.index(s.role, n), layout.fingerprints(s.role, n))}
    for kind in ("index", "fingerprints"):
        for folder in (layout.root / "data" / kind).glob("*/*"):
            if folder not in named and not folder.name.startswith("."):
                shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink()
    for source in {p.stem.removeprefix("index@") for p in layout.run_record("index", "x").parent.glob("index@*.json")}:
        if source not in params.sources:
            layout.run_record("index", source).unlink(missing_ok=True)
            layout.metrics("index", source).unlink(missing_ok=True)


def clone_at(checkout: Path, root: Path, commit: str) -> None:
    """A clone of the checkout at `root` with the files of `commit`, made or moved there; outputs stay."""
    _clone(checkout, root, commit)
    command(["git", "checkout", "-q", "-f", "--detach", commit], root)


def _clone(checkout: Path, root: Path, commit: str) -> None:
    git = ["git", "-c", f"safe.directory={checkout}", "-c", f"safe.directory={checkout}/.git"]
    if not (root / ".git").exists():
        draft = root.with_name(f".{root.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        command([*git, "clone", "-q", "--no-hardlinks", "--no-checkout", checkout, draft], root.parent)
        draft.rename(root)
    command([*git, "fetch", "-q", checkout, commit], root)
    command(["git", "update-ref", "--no-deref", "HEAD", commit], root)
    command(["git", "read-tree", commit], root)


def _overlay(checkout: Path, root: Path) -> None:
    """Makes the copy's files those of the checkout's working tree, edits and new files included."""
    listed = ["git", "-c", f"safe.directory={checkout}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    wanted = {f for f in command(listed, checkout).split("\0") if f and (checkout / f).is_file()} - GENERATED
    present = {f for f in command(["git", "ls-files", "-z"], root).split("\0") if f} - GENERATED
    for name in wanted:
        source, target = checkout / name, root / name
        if not target.exists() or source.read_bytes() != target.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for name in present - wanted:
        (root / name).unlink(missing_ok=True)


def remote_url(work: Path) -> str:
    """The DVC remote of every working copy: AUT_DVC_REMOTE (anything DVC takes), else a folder of AUT_WORK."""
    return os.environ.get("AUT_DVC_REMOTE") or str(work / "remote")


def point_dvc(root: Path, work: Path) -> None:
    """Remote and cache are shared by all copies of this machine.

    A remote folder that its group may write to is one that several users share: what DVC makes in it stays so.
    """
    remote = remote_url(work)
    settings = f"[cache]\n    dir = {work / 'dvc-cache'}\n['remote \"store\"']\n    url = {remote}\n"
    if os.path.isdir(remote) and os.stat(remote).st_mode & stat.S_IWGRP:
        settings += "    shared = group\n"
    target = root / ".dvc/config.local"
    target.parent.mkdir(exist_ok=True)
    if not target.exists() or target.read_text() != settings:
        target.write_text(settings)
