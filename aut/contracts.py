"""What the parts promise each other: the clip row, the encoder, the tracker.

`B` batch, `T` samples, `F` encoder frames, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from aut.units import Domain


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip as a dataset adapter lists it, before anything is decoded.

    key        stable within the source: `<source>/<key>` becomes the row's `id`
    uri        path of the file, relative to the source's root; for a tar, the tar's path
    offset_b   byte offset and
    size_b     byte length of the tar member's data, None for a plain file
    text       caption or transcript, None where the corpus has none
    text_origin 'human', 'template', 'model:<name>', or 'none'
    label      class for probing, None where there is none
    split      official split or fold ('train', 'validation', 'test', 'fold1' ...), '' where none
    source_id  the recording, speaker or song it was cut from: splits and statistics keep it whole
    start_s    cut from the file; a segmented corpus (GigaSpeech, LibriHeavy) lists parts of one file
    length_s   of the cut, None for the whole file
    extra      other facts from the metadata, kept as strings (known ids for the leakage screen:
               'freesound_id', 'youtube_id'; 'row' of the table, for messages)
    """

    key: str
    uri: str
    text: str | None = None
    text_origin: str = "none"
    label: str | None = None
    split: str = ""
    source_id: str = ""
    licence: str = ""
    offset_b: int | None = None
    size_b: int | None = None
    start_s: float = 0.0
    length_s: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Card:
    """What a corpus is: declared on top of each file in `aut/datasets/`."""

    name: str
    title: str
    licence: str
    citation: str
    domain: Domain | None  # None: the params say (table, folder, tar)
    clips: int | None = None
    hours: float | None = None
    classes: int | None = None
    text_origin: str = "none"
    homepage: str = ""


class Dataset(Protocol):
    """A module in `aut/datasets/`: `CARD`, `clips`, and for generated corpora `prepare`."""

    CARD: Card

    def clips(self, root: Path, **options: Any) -> Iterator[Clip]: ...


INDEX_SCHEMA: dict[str, str] = {
    "id": "str",  # <source>/<key>
    "domain": "str",
    "source": "str",
    "uri": "str",  # relative to the source's root
    "offset_b": "i64",  # null for a plain file
    "size_b": "i64",
    "start_s": "f64",
    "duration_s": "f64",
    "sample_rate_hz": "i32",
    "text": "str",
    "text_origin": "str",
    "label": "str",
    "licence": "str",
    "split": "str",
    "source_id": "str",
    "content_hash": "str",  # blake2b-128 of the decoded 16 kHz mono int16 PCM, hex
    "freesound_id": "str",
    "youtube_id": "str",
}
"""Columns of `data/index/<role>/<source>/part-*.parquet`, in order."""


class Encoder(Protocol):
    """x_BT in [-1, 1] at `rate_hz`, n_B valid samples -> h_BFD float32, f_B valid frames.

    `hop_s` lies between frames. whisper-large-v3: 5 s is 250 frames of 1,280; padded to 30 s it is
    1,500, of which 250 are audio. Frames beyond f_B are zero. `digest` names weights and
    preprocessing together: the cache key of every embedding.
    """

    name: str
    rate_hz: int
    width: int
    hop_s: float
    digest: str

    def encode(
        self, x_BT: NDArray[np.float32], n_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...


class Tracker(Protocol):
    """Where a stage reports what it did. The stage never learns who listens."""

    def params(self, values: Mapping[str, Any]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table to look at beside the run; one of the same name is replaced."""

    def dataset(self, name: str, digest: str, rows: int, path: Path) -> None:
        """A data input: `digest` covers every row (MLflow's own looks at the first 10,000)."""

    def goes_on(self, marker: Path) -> None:
        """This run goes on with the work of the run that the file `marker` names, and is named there from now on."""


class Silent:
    """The tracker that does nothing, so that a stage runs in a test with no server."""

    def params(self, values: Mapping[str, Any]) -> None:
        pass

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        pass

    def tags(self, values: Mapping[str, str]) -> None:
        pass

    def artifact(self, path: Path, folder: str = "") -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def dataset(self, name: str, digest: str, rows: int, path: Path) -> None:
        pass

    def goes_on(self, marker: Path) -> None:
        pass
