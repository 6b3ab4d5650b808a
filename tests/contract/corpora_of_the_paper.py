"""A small fixture for each corpus of the paper and its neighbours, written in that corpus' own layout.

A function writes into `root` and returns (options, number of clips); field names and quirks are the sets' own.
"""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile


def sound(path: Path, seconds: float = 0.5, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    number = sum(path.as_posix().encode()) % 500
    wave = 0.3 * np.sin(np.arange(int(seconds * rate)) * (200 + number) * 6.28 / rate)
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, wave, rate, **kind)
    return path


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return path


def gigaspeech(root):
    tagged = ("HELLO <COMMA> THERE <PERIOD>", "WHO IS IT <QUESTIONMARK>", "NOT READ <PERIOD>")
    audios = [
        ("POD0000000001", "podcast", "http://feeds.example/1.mp3", [["{XL}", "{L}"], ["{XL}"], ["{OTHER}"]]),
        ("YOU0000000315", "youtube", "https://www.youtube.com/watch?v=-0SdAVK79lg", [["{XL}"], ["{XL}", "{S}"], []]),
        ("YOU1000000001", "youtube", "https://www.youtube.com/watch?v=abcdefghijk", [["{DEV}"], ["{TEST}"], []]),
    ]
    listed = []
    for aid, source, url, subsets in audios:
        path = f"audio/{source}/{'P' + aid[3:7]}/{aid}.opus"
        sound(root / path, 3.0)
        segments = [
            {
                "sid": f"{aid}_S{n:07d}",
                "speaker": "N/A",
                "begin_time": 0.25 + n,
                "end_time": 1.0 + n,
                "text_raw": "",
                "text_tn": text,
                "subsets": of,
            }
            for n, (text, of) in enumerate(zip(tagged, subsets, strict=True))
        ]
        facts = {"title": 'a \\ "title" [with] {braces}', "url": url, "path": path, "aid": aid, "source": source}
        listed.append({**facts, "duration": 3.0, "format": "opus", "sample_rate": 16000, "segments": segments})
    top = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": listed}
    (root / "GigaSpeech.json").write_text(json.dumps(top, indent=2))
    return {"subset": "xl", "splits": ["train", "validation"]}, 5


def peoples_speech(root):
    """`clean` as tars, `dirty_sa` as files."""
    folder = root / "train/clean"
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"clean_00000{shard}.tar", "w") as tar:
            for n in (1, 0):
                info = tarfile.TarInfo(f"./doc{shard}_SLASH_a_DOT_mp3_0000{n}.flac")
                data = sound(root / f".{shard}{n}.flac").read_bytes()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for subset, documents in (("clean", (0, 1)), ("dirty_sa", (2,))):
        write(root / f"train/{subset}.json", *(json.dumps(_document(d)) for d in documents))
    for name in _document(2)["training_data"]["name"]:
        sound(root / "train/dirty_sa" / name)
    return {"subsets": ["clean", "dirty_sa"]}, 6


def _document(number):
    names = [f"doc{number}_SLASH_a_DOT_mp3_0000{n}.flac" for n in range(2)]
    told = {"duration_ms": [500, 500], "label": [f"words {number} {n}" for n in range(2)], "name": names}
    return {"identifier": f"doc{number}", "training_data": told}


def common_voice(root):
    home = root / "cv-corpus-17.0-2024-03-15/en"
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment"
    rows = {
        "train.tsv": [("aa", 1, '"Quoted, he said.'), ("bb", 2, 'An end"')],
        "dev.tsv": [("cc", 3, "Third.")],
        "test.tsv": [("dd", 4, "Fourth.")],
    }
    rows["validated.tsv"] = [row for listed in rows.values() for row in listed] + [("aa", 5, "Fifth.")]
    for name, listed in rows.items():
        lines = [f"{c}\tcommon_voice_en_{n}.mp3\tx\t{s}\t2\t0\t\t\t\ten\t" for c, n, s in listed]
        write(home / name, header, *lines)
    for n in range(1, 6):
        sound(home / f"clips/common_voice_en_{n}.mp3", rate=32_000)
    return {"splits": ["train", "validation", "test"]}, 4


def mls(root):
    for part, speaker in (("train", 4800), ("dev", 12), ("test", 77)):
        keys = [f"{speaker}_10003_00000{n}" for n in range(2)]
        for key in keys:
            sound(root / part / f"audio/{speaker}/10003/{key}.flac")
        write(root / part / "transcripts.txt", *(f"{key}\tthe words of {key}" for key in keys))
        write(root / part / "segments.txt", *(f"{key}\thttp://archive.example/a.mp3\t401.76\t417.57" for key in keys))
    return {"splits": ["train", "validation", "test"]}, 6


def libriheavy(root):
    for subset, speaker in (("small", "100"), ("dev", "200")):
        recording = f"small/{speaker}/sea_fairies/01_baum_64kb"
        sound(root / f"download/librilight/{recording}.flac", 4.0)
        cuts = [json.dumps(_cut(recording, speaker, n)) for n in range(2)]
        with gzip.open(root / f"libriheavy_cuts_{subset}.jsonl.gz", "wt") as f:
            f.writelines(f"{cut}\n" for cut in cuts)
    return {"subsets": ["small", "dev"]}, 4


def _cut(recording, speaker, number):
    texts = [f'"But why?" she asked {number}.', f"BUT WHY SHE ASKED {number}"]
    spoken = {"id": "x", "start": 0, "duration": 1.25, "speaker": speaker, "custom": {"texts": texts}}
    sources = [{"type": "file", "channels": [0], "source": f"download/librilight/{recording}.flac"}]
    return {
        "id": f"{recording}_{number}",
        "start": 0.5 + number,
        "duration": 1.25,
        "channel": 0,
        "supervisions": [spoken],
        "recording": {"id": recording, "sources": sources, "sampling_rate": 16000},
        "type": "MonoCut",
    }


def audioset(root):
    write(
        root / "class_labels_indices.csv",
        "index,mid,display_name",
        '0,/m/09x0r,"Speech"',
        '1,/m/05zppz,"Male speech, man speaking"',
        "2,/m/04rlf,Music",
    )
    rows = {
        "balanced_train": [
            '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/04rlf"',
            '-0SdAVK79lg, 0.000, 10.000, "/m/05zppz"',
        ],
        "eval": ['zzzzzzzzzz1, 1.500, 11.500, "/m/04rlf"'],
    }
    for subset, lines in rows.items():
        write(
            root / f"{subset}_segments.csv",
            "# Segments csv created Sun Mar  5 10:54:25 2017",
            f"# num_ytids={len(lines)}, num_segs={len(lines)}, num_unique_labels=3, num_positive_labels=4",
            "# YTID, start_seconds, end_seconds, positive_labels",
            *lines,
        )
        for line in lines:
            ytid, start_s = line.split(", ")[:2]
            sound(root / f"audio/{subset}/{ytid}_{int(float(start_s))}.flac")
    return {"subsets": ["balanced_train", "eval"], "files": "audio/{subset}/{ytid}_{start_s}.flac"}, 3


def nsynth(root):
    for folder, number in (("nsynth-train", 33), ("nsynth-valid", 68), ("nsynth-test", 18)):
        notes = {}
        for pitch in (22, 60):
            name = f"guitar_acoustic_{number:03d}-{pitch:03d}-050"
            sound(root / folder / f"audio/{name}.wav")
            notes[name] = {
                "note_str": name,
                "pitch": pitch,
                "velocity": 50,
                "instrument_str": f"guitar_acoustic_{number:03d}",
                "instrument_family_str": "guitar",
                "instrument_source_str": "acoustic",
                "qualities_str": ["dark", "long_release"] if pitch == 22 else [],
            }
        (root / folder / "examples.json").write_text(json.dumps(notes, indent=1))
    return {"splits": ["train", "validation", "test"]}, 6


def musicbench(root):
    def row(location, caption):
        return json.dumps({"dataset": "MusicBench", "location": location, "main_caption": caption, "alt_caption": ""})

    train = ["data/-0SdAVK79lg.wav", "data_aug2/-0SdAVK79lg_1.wav", "data/-0SdAVK79lg.wav"]
    write(root / "MusicBench_train.json", *(row(name, f"caption {n}") for n, name in enumerate(train)))
    write(root / "MusicBench_test_A.json", row("data/abc_DEF-123.wav", "a test"))
    for name in (*train, "data/abc_DEF-123.wav"):
        sound(root / "datashare" / name)
    return {"splits": ["train", "test"]}, 4


def musiccaps(root):
    header = (
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval"
    )
    lines = []
    for ytid, is_eval in (("-0Gj8-vB1q4", True), ("-0SdAVK79lg", False)):
        lines.append(
            f'{ytid},30,40,"/m/0140xf,/m/02cjck","[\'low, quality\']","A soft, slow ballad.",4,False,{is_eval}'
        )
        sound(root / f"audio/[{ytid}]-[30-40].wav")
    write(root / "musiccaps-public.csv", header, *lines)
    return {"splits": ["train", "test"]}, 2


def wavcaps(root):
    listed = {
        "FreeSound/fsd_final.json": ["180913", "100032"],
        "BBC_Sound_Effects/bbc_final.json": ["NHU05041149"],
        "SoundBible/sb_final.json": ["2219"],
        "AudioSet_SL/as_final.json": ["Yb0RFKhbpFJA.wav"],
    }
    for table, ids in listed.items():
        data = [{"id": i, "caption": f"Sound {i} is heard.", "duration": 0.5, "download_link": "x"} for i in ids]
        write(root / "json_files" / table, json.dumps({"num_captions_per_audio": 1, "data": data}))
        for name in ids:
            sound(root / table.split("/")[0] / f"{name.removesuffix('.wav')}.flac", rate=32_000)
    dropped = {"FreeSound": ["100032"], "AudioSet": []}
    write(root / "json_files/blacklist/blacklist_exclude_ub8k_esc50_vggsound.json", json.dumps(dropped))
    return {"blacklist": "json_files/blacklist/blacklist_exclude_ub8k_esc50_vggsound.json"}, 4


def fsd50k(root):
    truth, metadata = root / "FSD50K.ground_truth", root / "FSD50K.metadata"
    guitar = '"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music"'
    write(
        truth / "dev.csv",
        "fname,labels,mids,split",
        f'64760,{guitar},"/m/02sgy,/m/0342h",train',
        '16399,"Purr,Cat","/m/02yds9,/m/01yrx",val',
    )
    write(truth / "eval.csv", "fname,labels,mids", '37199,"Rain,Thunder","/m/06mb1,/m/0ngt1"')
    write(metadata / "collection/collection_dev.csv", "fname,labels,mids", "64760,Electric_guitar,/m/02sgy")
    licences = {"64760": "licenses/by-nc/3.0/", "16399": "publicdomain/zero/1.0/", "37199": "licenses/sampling+/1.0/"}
    for part, names in (("dev", ("64760", "16399")), ("eval", ("37199",))):
        infos = {
            n: {"title": n, "license": f"http://creativecommons.org/{licences[n]}", "uploader": "u"} for n in names
        }
        write(metadata / f"{part}_clips_info_FSD50K.json", json.dumps(infos))
        for name in names:
            sound(root / f"FSD50K.{part}_audio/{name}.wav", rate=44_100)
    return {"splits": ["train", "validation", "test"]}, 3


def clotho(root):
    columns = ",".join(f"caption_{n}" for n in range(1, 6))
    for n, part in enumerate(("development", "validation", "evaluation")):
        names = {"Distant (1).wav": str(120_000 + n), f"Caf\u00e9 {n}.wav": "Not found"}
        captions = [f"{name},{','.join(f'caption {c} of it' for c in range(1, 6))}" for name in names]
        write(root / f"clotho_captions_{part}.csv", f"file_name,{columns}", *captions)
        licence = "http://creativecommons.org/licenses/by/3.0/"
        write(
            root / f"clotho_metadata_{part}.csv",
            "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license",
            *(f'{name},a;b,{i},x,"[0, 22050]",Andr\u00e9,{licence}' for name, i in names.items()),
            encoding="iso-8859-1",
        )
        for name in names:
            sound(root / "clotho_audio_files" / part / name, rate=44_100)
    return {"splits": ["train", "validation", "test"], "audio": "clotho_audio_files"}, 6


def fma(root):
    columns = ["album.title", "artist.bio", "artist.id", "set.split", "set.subset", "track.genre_top", "track.genres"]
    columns.append("track.license")
    rows = [
        (2, 'An "album"', "two\nlines", 1, "training", "medium", "Hip-Hop", "[21]", "Attribution"),
        (5, "B", "", 2, "validation", "small", "Rock", "[12]", "http://creativecommons.org/licenses/by-nc/3.0/"),
        (140, "C", "", 3, "test", "small", "Rock", "[12]", "Attribution"),
        (155, "D", "", 4, "training", "large", "", "[21, 12]", "Attribution"),
    ]
    lines = [",".join(("", *(c.split(".")[0] for c in columns))), ",".join(("", *(c.split(".")[1] for c in columns)))]
    lines.append("track_id" + "," * len(columns))
    lines += [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
    write(root / "fma_metadata/tracks.csv", *lines)
    write(
        root / "fma_metadata/genres.csv",
        "genre_id,#tracks,parent,title,top_level",
        "12,1,0,Rock,12",
        "21,1,0,Hip-Hop,21",
    )
    for row in rows:
        sound(root / f"fma_large/000/{row[0]:06d}.mp3", rate=44_100)
    return {"size": "large", "splits": ["train", "validation", "test"]}, 4


FIXTURES = {
    f.__name__: f
    for f in (
        gigaspeech, peoples_speech, common_voice, mls, libriheavy, audioset, nsynth, musicbench, musiccaps, wavcaps,
        fsd50k, clotho, fma,
    )
}  # fmt: skip
SPLITS_KEEP_SOURCES = set(FIXTURES) - {"peoples_speech", "wavcaps"}  # those two have but one split in their fixture
RECOGNISED = sorted(set(FIXTURES) - {"common_voice"})  # its release's folders are still around it
