"""The People's Speech: 30,000 h of English from archive.org, aligned with the transcripts found beside it.

In    {train,validation,test}/<subset>.json (JSON lines: a document with `training_data`, three lists of equal length:
      duration_ms, label, name) and <subset>/ beside it, with the FLAC files `name`, or the tars (uncompressed) that
      hold them, as huggingface.co/datasets/MLCommons/peoples_speech first published them and lhotse's recipe reads
      them. A document's id is called `identifier` or `audio_document_id`, a name may start with "./".
Why   that repository now offers Parquet with the audio inside, compressed, where no clip is one read: `unpack` writes
      tars and manifests from it, without decoding. Tars are not in the manifest's order: a table from the hash of a
      member's name to its place is held, 24 bytes a clip, 140 MB for the 5.5M of `dirty`.
Run   python -m aut.datasets.peoples_speech PARQUET_FOLDER OUT     (once; the audio is copied)
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from aut.contracts import Card, Clip
from aut.datasets import columns_of, refused
from aut.datasets._checked import Bad, each, numbered
from aut.datasets._columns import Columns
from aut.datasets._metadata import json_lines, several
from aut.datasets._tars import Damaged, members
from aut.errors import DataError
from aut.files import write_bytes
from aut.progress import progress

CARD = Card(
    name="peoples_speech",
    title="The People's Speech",
    licence="CC BY and CC BY-SA, by subset",
    citation="D. Galvez et al. The People's Speech: A Large-Scale Diverse English Speech Recognition Dataset for "
    "Commercial Usage. NeurIPS Datasets and Benchmarks 2021. arXiv:2111.09344",
    domain="speech",
    hours=30_000,
    text_origin="human",
    homepage="https://huggingface.co/datasets/MLCommons/peoples_speech",
)
SUBSETS = {
    "clean": "train", "clean_sa": "train", "dirty": "train", "dirty_sa": "train",
    "validation": "validation", "test": "test",
}  # fmt: skip


def matches(root: Path) -> bool:
    return any((root / split / f"{subset}.json").is_file() for subset, split in SUBSETS.items())


def clips(root: Path, subsets: Sequence[str] = ("clean", "clean_sa", "dirty", "dirty_sa")) -> Iterator[Clip]:
    """Utterances by subset, in the order of its manifest.

    subsets   of clean, clean_sa, dirty, dirty_sa, validation, test
    """
    for subset in several("subsets", subsets, SUBSETS):
        folder = root / SUBSETS[subset] / subset
        table = folder.with_suffix(".json")
        if not table.is_file() and any(root.glob(f"{subset}/*.parquet")):
            raise DataError(f"{root} holds Parquet", "run python -m aut.datasets.peoples_speech PARQUET_FOLDER OUT")
        places, columns = _Members(root, folder), Columns(table, ("label", "name"))
        documents = json_lines(table, "People's Speech download", ("training_data",))
        yield from each(table.name, numbered(documents, 1), partial(_document, table, places, columns))
        columns.settle()


def _document(table: Path, places: _Members, columns: Columns, row: tuple[int, Mapping[str, Any]]) -> Iterator[Clip]:
    number, document = row
    source = document.get("identifier") or document.get("audio_document_id")
    told = columns.of(document["training_data"], f"training_data of {source}")
    if isinstance(told, Bad):
        raise told
    if not source or len(told["label"]) != len(told["name"]):
        raise ValueError("a document without identifier, or with fewer labels than names")
    pairs = zip(told["label"], told["name"], strict=True)
    yield from each(table.name, pairs, partial(_clip, table.stem, source, places), f"{number}.")


def _clip(subset: str, source: str, places: _Members, row: tuple[str, str]) -> Iterator[Clip]:
    text, name = row[0], row[1].removeprefix("./")
    key = f"{subset}/{name.removesuffix('.flac')}"
    place = places.find(name)
    if place is None:
        yield refused(key, "", "missing", "; ".join([f"{name} is in none of the tars", *places.damage[:1]]))
        return
    yield Clip(
        key=key,
        uri=place[0],
        text=text,
        text_origin="human",
        split=SUBSETS[subset],
        source_id=source,
        licence="CC BY-SA" if subset.endswith("_sa") else "CC BY",
        offset_b=place[1],
        size_b=place[2],
    )


class _Members:
    """Where the file of a name lies: in the folder, or in one of its tars."""

    def __init__(self, root: Path, folder: Path) -> None:
        import numpy as np

        self._uri = folder.relative_to(root).as_posix()
        self._tars = [p.relative_to(root).as_posix() for p in sorted(folder.glob("*.tar"))]
        kind = np.dtype([("name", "u8"), ("offset", "i8"), ("size", "u4"), ("tar", "u4")])
        self.damage: list[str] = []
        found = ((i, member) for i, tar in enumerate(self._tars) for member in self._headers(root, tar))
        places = np.fromiter(((_hash(m.name), m.offset_data, m.size, i) for i, m in found), dtype=kind)
        self._places = places[np.argsort(places["name"])]

    def _headers(self, root: Path, tar: str) -> Iterator[tarfile.TarInfo]:
        """Files of a tar, up to where it may be cut or damaged: names that lie beyond are missing, and told why."""
        try:
            yield from (member for _, member in members(root / tar, tar) if member.isreg())
        except Damaged as error:
            self.damage.append(error.detail)

    def find(self, name: str) -> tuple[str, int | None, int | None] | None:
        """(uri, offset_b, size_b)."""
        if not self._tars:
            return f"{self._uri}/{name}", None, None
        at = self._places["name"].searchsorted(hashed := _hash(name))
        if at == len(self._places) or self._places["name"][at] != hashed:
            return None
        place = self._places[at]
        return self._tars[place["tar"]], int(place["offset"]), int(place["size"])


def _hash(name: str) -> Any:
    import numpy as np

    raw = name.removeprefix("./").encode("utf-8", "surrogatepass")  # a member's name need not be UTF-8
    return np.uint64(int.from_bytes(blake2b(raw, digest_size=8).digest(), "little"))


def unpack(parquet: Path, out: Path) -> None:
    """Writes a tar for each <subset>/*.parquet (rows of id, audio {bytes}, duration_ms, text), then the manifests.

    A tar whose list lies beside it is whole and left alone, so an interrupted call goes on.
    """
    files = [(s, p) for s, split in SUBSETS.items() for p in sorted(parquet.glob(f"{s}/{split}-*.parquet"))]
    if not files:
        raise DataError(f"{parquet} holds no <subset>/*.parquet", "give the folder that the download made")
    with progress("unpack", len(files)) as advance:
        for subset, path in files:
            tar = out / SUBSETS[subset] / subset / f"{path.stem}.tar"
            if not tar.with_suffix(".jsonl").exists():
                write_bytes(tar.with_suffix(".jsonl"), _unpack_one(path, tar).encode())
            advance(1)
    for subset in dict.fromkeys(s for s, _ in files):
        folder = out / SUBSETS[subset] / subset
        write_bytes(folder.with_suffix(".json"), b"".join(p.read_bytes() for p in sorted(folder.glob("*.jsonl"))))


def _unpack_one(path: Path, out: Path) -> str:
    """Writes the tar of a Parquet file; its lines of the manifest. A document is an id without its number."""
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with pq.ParquetFile(path) as table, tarfile.open(out, "w") as tar:
        columns_of(path, table.schema_arrow.names, ("id", "audio", "text"))
        for row in (row for batch in table.iter_batches(64) for row in batch.to_pylist()):
            info = tarfile.TarInfo(row["id"])
            info.size = len(row["audio"]["bytes"])
            tar.addfile(info, io.BytesIO(row["audio"]["bytes"]))
            told = {"duration_ms": [row.get("duration_ms")], "label": [row["text"]], "name": [row["id"]]}
            document = row["id"].rpartition("_")[0] or row["id"]
            lines.append(json.dumps({"identifier": document, "training_data": told}) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
