"""One row that is no clip, among good ones: they are indexed, it is in the quarantine with its reason and its place."""

import gzip
import json
import os
from types import SimpleNamespace

import polars as pl
import pytest

from aut.config import Index, Source
from aut.contracts import Silent
from aut.datasets._captions import with_article
from aut.errors import DataError
from aut.layout import Layout
from aut.sources import check, scan
from aut.stages import index as stage
from tests.contract.test_datasets import FIXTURES, tar, tone

LIMITS = {"min_s": 0.05, "max_s": 20.0, "max_text_tokens": 99, "tokenizer": "utf8", "captions_per_label": 4}


def more(name, line):
    """A line more at the end of a file."""

    def spoil(root):
        with next(root.rglob(name)).open("ab") as f:
            f.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    return spoil


def inside(name, change):
    """A change to the value that a JSON file is."""

    def spoil(root):
        path = next(root.rglob(name))
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return spoil


def clip_of(**fields):
    return lambda value: value["data"].append({"id": "1", "caption": "x"} | fields)


def segment_of(**fields):
    return lambda value: value["audios"][0]["segments"].append(
        {"sid": "new", "begin_time": 0, "end_time": 1, "text_tn": "X", "subsets": ["{XL}"]} | fields
    )


def clip_of_without(key):
    def change(value):
        clip_of()(value)
        del value["data"][-1][key]

    return change


def segment_without(value):
    segment_of()(value)
    del value["audios"][0]["segments"][-1]["end_time"]


def audio_without_segments(value):
    value["audios"].append(value["audios"][0] | {"segments": 3})


def note_of(**fields):
    return lambda value: value.update(new=next(iter(value.values())) | fields)


def cut_of(without="", **fields):
    def spoil(root):
        path = root / "libriheavy_cuts_small.jsonl.gz"
        lines = gzip.decompress(path.read_bytes()).splitlines()
        cut = json.loads(lines[0]) | {"id": "new"} | fields
        lines.insert(1, json.dumps({k: v for k, v in cut.items() if k != without}).encode())
        path.write_bytes(gzip.compress(b"\n".join(lines)))

    return spoil


PARTS = {"label": ["w"], "name": ["n.flac"]}
SPOILT = [
    ("esc50", more("esc50.csv", b"short.wav\n"), "esc50.csv, row 5: line 6 has no 'fold'"),
    ("musiccaps", more("musiccaps-public.csv", b"short,1\n"), "line 4 has no 'end_s'"),
    ("common_voice", more("train.tsv", b"speaker\tname\n"), "has no 'sentence'"),
    ("audioset", more("balanced_train_segments.csv", b"abcdefghijk, 0.0, 10.0\n"), "line 6 has not 4 cells"),
    ("audioset", more("balanced_train_segments.csv", b'abcdefghijk, 0, 9, "/m/new"\n'), "has no class /m/new"),
    ("audioset", more("class_labels_indices.csv", b"4\n"), "class_labels_indices.csv, row 4: line 5 has no 'mid'"),
    ("clotho", more("clotho_metadata_development.csv", b"a.wav\n"), "clotho_metadata_development.csv, row "),
    ("fma", more("tracks.csv", b"2999,t\n"), "tracks.csv, row 5: line "),
    ("fma", more("genres.csv", b"12\n"), "genres.csv, row "),
    ("fsd50k", inside("dev_clips_info_FSD50K.json", lambda v: v.update(new={})), "'new' has no 'license'"),
    ("mls", more("transcripts.txt", b"no tab here\n"), "/transcripts.txt, row 3: no utterance id"),
    ("table", more("rows.csv", b"audio/a.ogg\n"), "rows.csv, row 5: line 6 has no "),
    ("table", more("rows.csv", b"a" + b",x" * 6 + b"\n"), "rows.csv, row 5: line 6 has more cells than there are"),
    ("wavcaps", inside("bbc_final.json", clip_of_without("caption")), "an element of 'data' has no 'caption'"),
    ("wavcaps", inside("bbc_final.json", lambda v: v["data"].append(3)), "is a int where an object should be"),
    ("gigaspeech", inside("GigaSpeech.json", lambda v: v["audios"].append({"aid": "x"})), "has no 'path'"),
    ("gigaspeech", inside("GigaSpeech.json", segment_without), "row 1.4: a segment of POD0000000001 has no 'end_time'"),
    ("nsynth", inside("examples.json", lambda v: v.update(new={"pitch": 60})), "'new' has no 'instrument_str'"),
    ("peoples_speech", more("clean.json", {"identifier": "d"}), "clean.json, row 3: line 3 has no 'training_data'"),
    ("peoples_speech", more("clean.json", {"training_data": {"name": []}}), "training_data of None has no 'label'"),
    ("musicbench", more("MusicBench_train.json", {"location": "x.wav"}), "row 4: line 4 has no 'main_caption'"),
    ("musicbench", more("MusicBench_train.json", b'{"location": \n'), "row 4: line 4, character 14: Expecting value"),
    ("libriheavy", cut_of(without="duration"), "row 2: line 2 has no 'duration'"),
    ("esc50", more("esc50.csv", b"x.wav,1,0,_,True,1,A\n"), "esc50.csv, row 5: label '_' holds no word"),
    ("wavcaps", inside("bbc_final.json", clip_of(id=12)), "bbc_final.json, row 2: "),
    ("wavcaps", inside("bbc_final.json", clip_of(caption=[])), "bbc_final.json, row 2: "),
    ("wavcaps", inside("bbc_final.json", clip_of(caption=7)), "row 2: text is 7, no text"),
    ("audioset", more("balanced_train_segments.csv", b'abcdefghijk, x, 10.0, "/m/09x0r"\n'), "row 3: could not"),
    ("gigaspeech", inside("GigaSpeech.json", segment_of(begin_time=None)), "GigaSpeech.json, row 1.4: "),
    ("gigaspeech", inside("GigaSpeech.json", segment_of(end_time="nan")), "row 1.4: length_s is nan, no time"),
    ("gigaspeech", inside("GigaSpeech.json", segment_of(text_tn="half \ud800 a pair")), "row 1.4: text 'half "),
    ("gigaspeech", inside("GigaSpeech.json", audio_without_segments), "row 4: "),
    ("fma", more("tracks.csv", b"2999,t,b,1,training,small,,[1;,x\n"), "tracks.csv, row 5: "),
    ("nsynth", inside("examples.json", note_of(pitch="C4")), "examples.json, row 3: invalid literal"),
    ("peoples_speech", more("clean.json", {"identifier": "d", "training_data": PARTS | {"name": [3]}}), "row 3.1: "),
    ("peoples_speech", more("clean.json", {"identifier": "d", "training_data": PARTS | {"name": []}}), "row 3: a doc"),
    ("musicbench", more("MusicBench_train.json", {"location": 5, "main_caption": "x"}), "row 4: "),
    ("libriheavy", cut_of(supervisions=[{"speaker": 3, "text": "x"}]), "row 2: source_id is 3, no text"),
    ("libriheavy", cut_of(start="soon"), "row 2: could not convert"),
    ("fsd50k", inside("dev_clips_info_FSD50K.json", lambda v: v["64760"].update(license=None)), "dev.csv, row 1: "),
    ("mls", more("transcripts.txt", b"1_2_3\tcaf\xe9\n"), "text 'caf\\udce9' is no valid UTF-8"),
    ("librispeech", lambda root: chapter(root), "text 'caf\\udce9' is no valid UTF-8"),
    ("table", more("rows.csv", b"audio/caf\xe9.ogg,piano,1,x,a caption,t0\n"), "rows.csv, row 5: key 'audio/caf"),
    ("folder", lambda root: os.rename(tone(root / "dog/a.wav"), os.fsencode(root / "dog") + b"/\xff.wav"), "no valid"),
    ("folder", lambda root: tone(root / "_/a.wav"), "label '_' holds no word"),
    ("tar", lambda root: shard(root, {"text": "half \ud800 a pair"}), "text 'half "),
    ("tar", lambda root: shard(root, ["no object"]), "s/0001.json is no JSON object"),
]  # fmt: skip


def chapter(root):
    path = next(root.rglob("19-198.trans.txt"))
    path.write_bytes(path.read_bytes() + b"19-198-0009 caf\xe9\n")
    tone(path.parent / "19-198-0009.flac")


def shard(root, facts):
    (root / "more").mkdir()
    tar(root / "more")
    (root / "more/shard-000.tar").rename(root / "shard-001.tar")
    data = (root / "shard-001.tar").read_bytes()
    text = json.dumps(facts).encode()
    at = data.index(b"s/0001.json")
    header = bytearray(data[at : at + 512])
    header[124:136] = b"%011o\0" % len(text)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    changed = data[:at] + header + text.ljust(512, b"\0") + data[at + 1024 :]
    (root / "shard-001.tar").write_bytes(changed)


@pytest.mark.parametrize(("name", "spoil", "told"), SPOILT, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(SPOILT)])
def test_a_row_that_is_no_clip_is_quarantined_and_the_others_are_indexed(name, spoil, told, tmp_path, monkeypatch):
    monkeypatch.setenv("AUT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    root = tmp_path / "data/mine"
    root.mkdir(parents=True)
    options, _ = FIXTURES[name](root)
    before = check(root, name, options).rows
    spoil(root)
    found = check(root, name, options)
    assert found.refused["bad_metadata"] == 1
    assert told in found.refused_examples[0][2]
    assert found.rows >= before - (name == "fsd50k")  # there a good row is spoilt
    source = Source(dataset=name, role="environment", domain="environment", path="mine", options=options)
    params = SimpleNamespace(sources={"mine": source}, index=Index(quarantine_max_fraction=0.9, **LIMITS))
    layout = Layout(tmp_path / "clone")
    scan(params, layout, "mine")
    report = stage.index(params, layout, Silent(), "mine")
    assert report["clips"] == found.rows
    assert {r: report.get(f"quarantined_{r}") for r in found.refused} == found.refused
    [(where, detail)] = pl.read_parquet(layout.index("environment", "mine") / "quarantine.parquet").filter(
        pl.col("reason") == "bad_metadata"
    ).select("id", "detail").iter_rows()  # fmt: skip
    assert (where, detail) == (f"mine/{found.refused_examples[0][0]}", found.refused_examples[0][2])


def test_a_label_without_a_word_has_no_article():
    assert with_article("_") == ""


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("r.parquet", b"PAR1 and nothing else"),
        ("r.csv", "file,label\na.wav,dog\n".encode("utf-16")),
        ("r.jsonl", b"[" * 100_000),
        ("r.jsonl", b"9" * 10_000),
    ],
)
def test_a_table_that_cannot_be_read_is_named(file, data, tmp_path):
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=file):
        check(tmp_path, "table", {"file": file})


@pytest.mark.parametrize("data", [b'{"audios": ' + b"[" * 100_000, b'{"audios": [{"aid": ' + b"9" * 10_000 + b"}]}"])
def test_json_that_no_one_can_read_is_named(data, tmp_path):
    (tmp_path / "GigaSpeech.json").write_bytes(data)
    with pytest.raises(DataError, match=r"GigaSpeech\.json"):
        check(tmp_path, "gigaspeech", {})


def test_a_gzip_that_is_garbled_is_named(tmp_path):
    packed = bytearray(gzip.compress(os.urandom(5000)))
    packed[40:60] = b"\xff" * 20
    (tmp_path / "libriheavy_cuts_small.jsonl.gz").write_bytes(packed[:-1000])
    with pytest.raises(DataError, match=r"cuts_small\.jsonl\.gz"):
        check(tmp_path, "libriheavy", {"subsets": ["small"]})
