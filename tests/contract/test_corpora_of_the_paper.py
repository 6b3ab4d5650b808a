"""What is particular to one corpus: its tags, licences, known ids, places in tars, and its faults by name."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import yaml

from aut.audio.decode import decode, read_source
from aut.datasets import check_options, list_clips
from aut.datasets._checked import Bad
from aut.datasets._metadata import BLOCK, in_words, json_array, json_members, licence_of, one_of, placed
from aut.datasets.peoples_speech import unpack
from aut.errors import ConfigError, DataError
from aut.sources import check
from tests.contract.corpora_of_the_paper import FIXTURES, sound


@pytest.fixture
def listed(tmp_path):
    def listed(name, **options):
        if not any(tmp_path.iterdir()):
            FIXTURES[name](tmp_path)
        return list(list_clips(name, tmp_path, options))

    return listed


def test_gigaspeech_turns_tags_into_marks_and_lists_cuts(listed):
    clips = listed("gigaspeech")
    assert clips[0].text == "HELLO, THERE."
    assert listed("gigaspeech", lower=True)[0].text == "hello, there."
    assert [(c.start_s, c.length_s) for c in clips[:2]] == [(0.25, 0.75), (1.25, 0.75)]
    assert clips[-1].extra == {"youtube_id": "-0SdAVK79lg"}
    assert [c.key for c in listed("gigaspeech", subset="s")] == ["YOU0000000315_S0000001"]


def test_gigaspeech_refuses_segments_without_speech(listed, tmp_path):
    listed("gigaspeech")
    table = tmp_path / "GigaSpeech.json"
    table.write_text(table.read_text().replace("HELLO <COMMA> THERE <PERIOD>", "<MUSIC>"))
    assert check(tmp_path, "gigaspeech").refused == {"no_speech": 2}


@pytest.mark.parametrize("name", ["musicbench", "audioset"])
def test_a_blank_last_line_is_no_row(name, tmp_path):
    options, count = FIXTURES[name](tmp_path)
    for table in (*tmp_path.rglob("*_segments.csv"), *tmp_path.rglob("*.json")):
        table.write_text(table.read_text() + "\n\n")
    found = check(tmp_path, name, options)
    assert (found.rows, found.refused) == (count, {})


def test_peoples_speech_finds_members_of_tars_in_any_order(listed, tmp_path):
    clips = listed("peoples_speech", subsets=["clean"])
    assert [c.text for c in clips] == ["words 0 0", "words 0 1", "words 1 0", "words 1 1"]
    assert {c.source_id for c in clips} == {"doc0", "doc1"}
    for number, clip in enumerate(clips):
        original = tmp_path / f".{number // 2}{number % 2}.flac"
        assert read_source(tmp_path, clip.uri, clip.offset_b, clip.size_b) == original.read_bytes()
    [first, _] = listed("peoples_speech", subsets=["dirty_sa"])
    assert (first.licence, first.offset_b) == ("CC BY-SA", None)


def test_peoples_speech_says_which_clip_a_cut_tar_lacks(listed, tmp_path):
    listed("peoples_speech", subsets=["clean"])
    tar = tmp_path / "train/clean/clean_000001.tar"
    tar.write_bytes(tar.read_bytes()[:1024])
    found = check(tmp_path, "peoples_speech", {"subsets": ["clean"]})
    assert found.rows == 3
    [(key, reason, detail)] = found.refused_examples
    assert (key, reason) == ("clean/doc1_SLASH_a_DOT_mp3_00000", "missing")
    assert "train/clean/clean_000001.tar" in detail


def test_peoples_speech_unpacks_parquet(tmp_path):
    import polars as pl

    raw = [sound(tmp_path / f"raw/{n}.flac").read_bytes() for n in range(2)]
    rows = [{"id": f"doc_{n:05d}.flac", "audio": {"bytes": b, "path": ""}, "duration_ms": 500, "text": f"words {n}"}
            for n, b in enumerate(raw)]  # fmt: skip
    (tmp_path / "hub/clean").mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(tmp_path / "hub/clean/train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="Parquet"):
        list(list_clips("peoples_speech", tmp_path / "hub", {"subsets": ["clean"]}))
    for _ in range(2):  # a second call changes nothing
        unpack(tmp_path / "hub", tmp_path / "out")
        clips = list(list_clips("peoples_speech", tmp_path / "out", {"subsets": ["clean"]}))
        assert [(c.text, c.source_id) for c in clips] == [("words 0", "doc"), ("words 1", "doc")]
        assert [read_source(tmp_path / "out", c.uri, c.offset_b, c.size_b) for c in clips] == raw


def test_common_voice_takes_quotation_marks_as_they_are(listed):
    assert [c.text for c in listed("common_voice")] == ['"Quoted, he said.', 'An end"']


def test_common_voice_validated_leaves_out_the_held_out_speakers(listed):
    assert [c.text for c in listed("common_voice", validated=True)] == ['"Quoted, he said.', 'An end"', "Fifth."]


def test_libriheavy_takes_the_books_own_words_and_finds_the_audio_elsewhere(listed, tmp_path):
    clips = listed("libriheavy", subsets=["small"])
    assert clips[1].text == '"But why?" she asked 1.'
    assert (clips[1].start_s, clips[1].length_s) == (1.5, 1.25)
    moved = listed("libriheavy", subsets=["small"], audio="librilight")
    assert moved[0].uri == "librilight/small/100/sea_fairies/01_baum_64kb.flac"
    table = tmp_path / "libriheavy_cuts_small.jsonl.gz"
    table.write_bytes(table.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"libriheavy_cuts_small\.jsonl\.gz, line"):
        listed("libriheavy", subsets=["small"])


def test_audioset_gives_a_label_only_where_there_is_one(listed):
    files = "audio/{subset}/{ytid}_{start_s}.flac"
    two, one = listed("audioset", subsets=["balanced_train"], files=files)
    assert two.label is None
    assert "speech and music" in two.text
    assert (one.label, one.extra["youtube_id"]) == ("Male speech", "-0SdAVK79lg")
    with pytest.raises(ConfigError, match="its fields are"):
        listed("audioset", files="{name}.wav", subsets=["eval"])


def test_nsynth_captions_name_instrument_pitch_and_qualities(listed):
    low, middle = listed("nsynth")
    assert "acoustic guitar" in low.text
    assert low.text.endswith("A sharp 0, dark and long release")
    assert middle.text.endswith("C 4")
    assert (low.label, low.text_origin) == ("guitar", "template")


def test_musicbench_keeps_copies_of_a_clip_together(listed):
    clips = listed("musicbench")
    assert {c.source_id for c in clips} == {"-0SdAVK79lg"}
    assert [c.key for c in clips] == ["data/-0SdAVK79lg", "data_aug2/-0SdAVK79lg_1", "data/-0SdAVK79lg#2"]
    assert {c.text_origin for c in clips} == {"model:chatgpt"}


def test_musiccaps_lists_the_training_half_unless_asked(listed):
    [clip] = listed("musiccaps")
    assert (clip.key, clip.text, clip.split) == ("-0SdAVK79lg", "A soft, slow ballad.", "train")


def test_wavcaps_keeps_known_ids_and_drops_the_blacklist(listed):
    extras = [c.extra for c in listed("wavcaps")]
    assert {"freesound_id": "100032"} in extras
    assert {"youtube_id": "b0RFKhbpFJA"} in extras
    kept = listed("wavcaps", blacklist="json_files/blacklist/blacklist_exclude_ub8k_esc50_vggsound.json")
    assert len(kept) == len(extras) - 1


def test_fsd50k_has_licences_by_clip_and_no_ancestors_in_captions(listed):
    train, val, test = listed("fsd50k", splits=["train", "validation", "test"])
    assert [c.licence for c in (train, val, test)] == ["CC BY-NC 3.0", "CC0 1.0", "CC Sampling+ 1.0"]
    assert (train.label, val.label) == ("Electric_guitar", None)
    assert "electric guitar" in train.text
    assert "music" not in train.text


def test_clotho_lists_a_clip_once_or_with_every_caption(listed):
    once = listed("clotho", audio="clotho_audio_files")
    assert [c.extra for c in once] == [{"freesound_id": "120000"}, {}]
    every = listed("clotho", every=True, audio="clotho_audio_files")
    assert len(every) == 10
    assert {c.text for c in every} == {f"caption {n} of it" for n in range(1, 6)}
    assert once[0].text in {c.text for c in every}


def test_fma_names_genres_where_there_is_no_top_genre(listed):
    first, last = listed("fma")
    assert (first.label, first.text) == ("Hip-Hop", None)
    assert last.label is None
    assert "hip-hop and rock" in last.text
    assert [c.key for c in listed("fma", size="small", splits=["test"])] == ["000140"]


MISSING = {
    "gigaspeech": ("GigaSpeech.json", '"text_tn"', '"words"', "text_tn"),
    "peoples_speech": ("train/clean.json", '"label"', '"words"', "label"),
    "common_voice": ("cv-corpus-17.0-2024-03-15/en/train.tsv", "client_id", "speaker", "client_id"),
    "audioset": ("balanced_train_segments.csv", "positive_labels", "labels", "positive_labels"),
    "nsynth": ("nsynth-train/examples.json", "pitch", "note", "pitch"),
    "musicbench": ("MusicBench_train.json", "main_caption", "caption", "main_caption"),
    "musiccaps": ("musiccaps-public.csv", "ytid", "id", "ytid"),
    "wavcaps": ("json_files/FreeSound/fsd_final.json", '"caption"', '"text"', "caption"),
    "fsd50k": ("FSD50K.ground_truth/dev.csv", "split", "part", "split"),
    "clotho": ("clotho_captions_development.csv", "caption_3", "third", "caption_3"),
    "fma": ("fma_metadata/tracks.csv", "genre_top", "genre", "track.genre_top"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_column_is_named_with_its_file(name, tmp_path):
    options, _ = FIXTURES[name](tmp_path)
    file, old, new, column = MISSING[name]
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"{path.name} has no column '{column}'"):
        list(list_clips(name, tmp_path, options))


def test_a_key_that_the_first_hundred_rows_lack_is_a_missing_column(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"b": 1}] * 99 + [{"a": 1}] + [{"b": 1}] * 3
    path.write_text(json.dumps({"audios": rows}))
    assert sum(isinstance(r, Bad) for r in json_array(path, "x", "audios", ("a",))) == 102
    path.write_text(json.dumps({"audios": rows[:99] + rows[:1] + rows[99:]}))
    with pytest.raises(DataError, match=r"a\.json has no column 'a'. its columns are b"):
        list(json_array(path, "x", "audios", ("a",)))


def test_libriheavy_names_what_is_broken(tmp_path):
    with gzip.open(tmp_path / "libriheavy_cuts_small.jsonl.gz", "wt") as f:
        f.write(json.dumps({"id": "a", "start": 0, "duration": 1, "recording": {}, "supervisions": []}))
    found = check(tmp_path, "libriheavy", {"subsets": ["small"]})
    assert found.refused_examples == [
        (
            "libriheavy_cuts_small.jsonl.gz#1",
            "bad_metadata",
            "libriheavy_cuts_small.jsonl.gz, row 1: KeyError: 'sources'",
        )
    ]


@pytest.mark.parametrize("name", sorted(set(FIXTURES) - {"peoples_speech"}))
def test_a_file_that_is_gone_is_listed_and_refused(name, tmp_path):
    options, count = FIXTURES[name](tmp_path)
    gone = next(iter(list_clips(name, tmp_path, options))).uri
    (tmp_path / gone).unlink()
    found = check(tmp_path, name, options)
    assert found.rows + found.refused["missing"] == count
    assert found.refused["missing"] >= 1


def test_the_papers_profile_lowers_the_sets_in_capitals():
    """A decoder would learn to write in them."""
    profile = yaml.safe_load((Path(__file__).parents[2] / "conf/profile/whisper-large-v3.yaml").read_text())
    capitals = [s for s in profile["sources"].values() if s["dataset"] in ("gigaspeech", "librispeech")]
    assert all(s["options"]["lower"] for s in capitals)
    assert capitals


def test_the_papers_profile_names_datasets_and_options_that_exist():
    profile = yaml.safe_load((Path(__file__).parents[2] / "conf/profile/whisper-large-v3.yaml").read_text())
    for source in profile["sources"].values():
        check_options(source["dataset"], source["options"])
    assert {s["dataset"] for s in profile["sources"].values()} >= {"gigaspeech", "audioset", "musiccaps"}


def test_a_split_that_is_none_is_named(tmp_path):
    FIXTURES["nsynth"](tmp_path)
    for splits in (["dev"], [], "train"):
        with pytest.raises(ConfigError, match="splits"):
            list(list_clips("nsynth", tmp_path, {"splits": splits}))


@pytest.mark.parametrize("name", ["gigaspeech", "libriheavy"])
def test_a_cut_is_the_part_of_the_recording(name, tmp_path):
    options, _ = FIXTURES[name](tmp_path)
    clip = list(list_clips(name, tmp_path, options))[1]
    whole = decode(tmp_path / clip.uri).pcm_T
    cut = decode(tmp_path / clip.uri, clip.start_s, clip.length_s).pcm_T
    start = round(clip.start_s * 16_000)
    # Opus decodes a seek from another state: 80 ms later (its pre-roll, RFC 7845) the samples agree.
    assert cut[1600:] == pytest.approx(whole[start + 1600 : start + len(cut)], abs=0.02)


# --- the reader ---------------------------------------------------------------------------------------------------


def test_json_is_read_as_the_library_reads_it_wherever_blocks_end(tmp_path, monkeypatch):
    value = {
        "n": 12345,
        "list": [1.5e3, -7, None],
        "audios": [{"a": 'x"]},\\', "b": [i, {"c": True}]} for i in range(50)],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, indent=2))
    for block in (1, 2, 3, 7, 64, BLOCK):
        monkeypatch.setattr("aut.datasets._metadata.BLOCK", block)
        assert list(json_array(path, "x", "audios", ("a", "b"))) == value["audios"]
    objects = {f"k{i}": {"v": i} for i in range(20)}
    path.write_text(json.dumps(objects))
    monkeypatch.setattr("aut.datasets._metadata.BLOCK", 5)
    assert dict(json_members(path, "x", ("v",))) == objects
    path.write_text("{}")
    assert list(json_members(path, "x", ())) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"audios": [{"a": 1}, {"a": ', "character"),
        ('{"audios": [{"a": 1} {"a": 2}]}', "where , or ] should be"),
        ('{"other": []}', "has no key 'audios'"),
        ('["audios"]', r"\[ where \{ should be"),
        ('{"audios": [3]}', "is a int where an object should be; none of 1 rows can be read"),
        ("", "the end where"),
    ],
)
def test_broken_json_is_told_with_its_place(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(json_array(tmp_path / "a.json", "x", "audios", ("a",)))


def test_memory_stays_that_of_one_element(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as f:
        f.write('{"audios": [')
        f.writelines(f'{"," if n else ""}{{"a": "{"x" * 200}"}}' for n in range(100_000))
        f.write("]}")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    assert sum(1 for _ in json_array(path, "x", "audios", ("a",))) == 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * BLOCK  # a block as bytes and as text, the rest of the last, and what decoding copies


def test_small_helpers():
    assert licence_of("http://creativecommons.org/licenses/by-nc-sa/4.0/") == "CC BY-NC-SA 4.0"
    assert licence_of("Attribution-NonCommercial") == "Attribution-NonCommercial"
    assert in_words(["Dog"]) == "dog"
    assert in_words(["Dog", "Loud_rain", "R&B"]) == "dog, loud rain and R&B"
    assert len({one_of("abcde", str(n)) for n in range(100)}) == 5
    assert placed("files", "{a:02d}/{b}", a=1, b="x") == "01/x"
