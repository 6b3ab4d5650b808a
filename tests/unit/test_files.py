"""Files are whole or absent; locks name their holder and die with it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aut.errors import Busy, DataError, MissingInput
from aut.files import digest_bytes, digest_tree, locked, no_room, read_json, replacing, write_bytes, write_json


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_parts_are_delimited_in_a_digest(a, b):
    assert (digest_bytes(*a) == digest_bytes(*b)) == (a == b)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(target, b"new")
    assert read_json(target) == {"x": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with replacing(out) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing(out) as draft:
        (draft / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in out.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_named_draft_survives_a_failure(tmp_path):
    draft = tmp_path / "work"
    with pytest.raises(RuntimeError), replacing(tmp_path / "out", draft) as folder:
        (folder / "half").write_text("1")
        raise RuntimeError
    assert (draft / "half").exists()


def test_the_draft_of_a_killed_writer_is_swept_and_a_live_one_s_is_not(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out.k1ll3d__").mkdir()
    (tmp_path / ".out.k1ll3d__" / "gigabytes").write_text("1")
    (tmp_path / ".out.old-12").mkdir()
    (tmp_path / ".outer.k1ll3d__").mkdir()
    with replacing(out) as live:
        (live / "a").write_text("1")
        with replacing(out) as other:
            (other / "b").write_text("2")
        assert (live / "a").exists()
    assert (out / "a").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.old-12", ".outer.k1ll3d__", "out"]


def test_the_digest_of_a_tree_sees_names_and_contents(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_text("1")
    first = digest_tree(tmp_path / "t")
    (tmp_path / "t/a").rename(tmp_path / "t/b")
    assert digest_tree(tmp_path / "t") != first
    with pytest.raises(MissingInput):
        digest_tree(tmp_path / "nowhere")


def test_a_second_holder_is_refused_and_told_the_pid(tmp_path):
    code = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from aut.files import locked
        with locked(Path(sys.argv[1]), "work"):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=str(holder.pid)), locked(tmp_path / "l", "work"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with locked(tmp_path / "l", "work"):
        assert (tmp_path / "l").read_text() == str(os.getpid())


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_what_is_free(tmp_path, error):
    said = no_room(error, [tmp_path / "not/there/yet"])
    assert said is not None
    assert f"no room left to write in {tmp_path}, " in str(said)
    assert "MB are free" in str(said)


def test_the_file_that_an_error_names_tells_the_disk(tmp_path):
    said = no_room(OSError(28, "No space left on device", str(tmp_path / "part.parquet")), [Path("/")])
    assert f"in {tmp_path}," in str(said)
    assert no_room(OSError(13, "Permission denied"), [tmp_path]) is None


def test_every_verb_says_so(tmp_path):
    code = "import aut.cli as c, aut.cli.stages as s\ndef full(*a, **k): raise OSError(28, 'No space left on device')\n"
    code += "s.run_stage = full\nimport sys\nsys.argv = ['aut', 'mixture']\nc.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("aut: no room left to write in ")
    assert "unexpected" not in done.stderr
