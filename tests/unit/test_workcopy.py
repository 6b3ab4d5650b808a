"""A working copy has the checkout's files, edits included, and keeps its own outputs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aut import workcopy
from aut.errors import Busy, ConfigError
from aut.layout import Layout
from aut.workcopy import command, revision, working_copy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "conf/profile").mkdir(parents=True)
    for name in ("dvc.yaml", "conf/config.yaml", "conf/common.yaml", "conf/profile/tiny.yaml", ".gitignore"):
        (root / name).write_text((ROOT / name).read_text())
    for name in ("a.py", "b.py"):
        (root / name).write_text(name)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    subprocess.run([*git, "add", "-A"], cwd=root, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], cwd=root, check=True)
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    return root


def copy(checkout):
    with working_copy(checkout, "tiny", "tiny", []) as (layout, params):
        assert params.profile == "tiny"
        return layout.root


def test_edits_new_files_and_deletions_arrive(checkout):
    root = copy(checkout)
    (checkout / "a.py").write_text("edited")
    (checkout / "new.py").write_text("new")
    (checkout / "b.py").unlink()
    (root / "data").mkdir()
    (root / "data/output").write_text("kept")
    assert copy(checkout) == root
    assert (root / "a.py").read_text() == "edited"
    assert (root / "new.py").read_text() == "new"
    assert not (root / "b.py").exists()
    assert (root / "data/output").read_text() == "kept"
    (checkout / "a.py").write_text("a.py")
    copy(checkout)
    assert (root / "a.py").read_text() == "a.py"


def test_what_index_made_of_a_source_goes_with_it(checkout):
    root = copy(checkout)
    made = [Layout(root).index("music", n) for n in ("toy_tunes", "withdrawn")]
    made += [Layout(root).fingerprints("music", n) for n in ("toy_tunes", "withdrawn")]
    made += [Layout(root).index("speech", "toy_tunes")]  # the role it once had
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "part-00000.parquet").write_text("rows")
    for name in ("toy_tunes", "withdrawn"):
        for file in (Layout(root).run_record("index", name), Layout(root).metrics("index", name)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    copy(checkout)
    assert [p.exists() for p in made] == [True, False, True, False, False]
    assert made[-1].parent.is_dir()  # a dep of `mixture`, though no source has that role now
    assert [p.name for p in (root / "data/runs").iterdir()] == ["index@toy_tunes.json"]
    assert [p.name for p in (root / "reports/metrics").iterdir()] == ["index@toy_tunes.json"]


def test_ignored_files_stay_behind(checkout):
    (checkout / ".env").write_text("SECRET=1")
    assert not (copy(checkout) / ".env").exists()


def test_a_new_commit_is_followed(checkout):
    copy(checkout)
    (checkout / "a.py").write_text("second")
    command(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qam", "second"], checkout)
    root = copy(checkout)
    head = command(["git", "rev-parse", "HEAD"], checkout)
    assert command(["git", "rev-parse", "HEAD"], root) == head
    assert command(["git", "status", "--short", "a.py"], root) == ""


def test_the_revision_tells_edits_apart(checkout):
    clean = revision(checkout)
    (checkout / "a.py").write_text("1")
    one = revision(checkout)
    (checkout / "a.py").write_text("2")
    assert len({clean, one, revision(checkout)}) == 3
    assert one.startswith(f"{clean}-dirty-")


def test_one_run_a_copy(checkout):
    with (
        working_copy(checkout, "tiny", "tiny", []),
        pytest.raises(Busy, match="a run of 'tiny' is already running"),
        working_copy(checkout, "tiny", "tiny", []),
    ):
        pass


def test_dvc_is_pointed_at_the_shared_remote(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("AUT_DVC_REMOTE", "s3://bucket/aut")
    assert "url = s3://bucket/aut" in (copy(checkout) / ".dvc/config.local").read_text()
    monkeypatch.delenv("AUT_DVC_REMOTE")
    assert f"url = {tmp_path / 'work/remote'}" in (copy(checkout) / ".dvc/config.local").read_text()


def test_outside_a_checkout_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workcopy, "__file__", str(tmp_path / "site-packages/aut/workcopy.py"))
    with pytest.raises(ConfigError, match="cd into the clone"):
        workcopy.checkout_root()


def test_corpora_have_a_root_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    monkeypatch.delenv("AUT_DATA", raising=False)
    layout = Layout(tmp_path)
    assert layout.corpus_root("toy", "demo") == tmp_path / "work/corpora/demo"
    with pytest.raises(ConfigError, match="AUT_DATA is not set"):
        layout.corpus_root("esc50", "ESC-50")
    monkeypatch.setenv("AUT_DATA", str(tmp_path))
    assert layout.corpus_root("esc50", "ESC-50") == tmp_path / "ESC-50"


@pytest.mark.parametrize("mode", [0o755, 0o775])
def test_what_dvc_puts_into_a_remote_its_group_may_write_to_its_group_may_write_to(
    checkout, monkeypatch, tmp_path, mode
):
    remote = tmp_path / "shared"
    remote.mkdir()
    remote.chmod(mode)
    monkeypatch.setenv("AUT_DVC_REMOTE", str(remote))
    root = copy(checkout)
    (root / ".dvc/config").write_text("[core]\n    remote = store\n    no_scm = true\n")
    (root / "clip.txt").write_text("a clip")
    before = os.umask(0o022)
    try:
        for words in (["add", "--quiet", "clip.txt"], ["push", "--quiet"]):
            command([sys.executable, "-m", "dvc", *words], root)
    finally:
        os.umask(before)
    made = [p for p in remote.rglob("*") if p.is_dir()]
    assert len(made) >= 3  # files, md5, the first two digits
    assert all(bool(p.stat().st_mode & stat.S_IWGRP) == bool(mode & stat.S_IWGRP) for p in made)
