"""Versions for the server: which one an alias names now, and its folder on this machine.

In    'models:/whisper-aut@champion' or 'models:/whisper-aut/3'; an MLflow store
Out   `Registry`, what aut/serving/watcher.py calls a source; folders below ~/.cache/aut/versions (XDG_CACHE_HOME)
Why   the copy of the version fetched last is remembered with the address, so that a server starts without its registry
Price the whole package of a version is kept: encoder, heads, evidence
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aut.edges.loading import _download, _facts, _parse, cache_folder
from aut.edges.store import away, client, mlflow_module, plain
from aut.errors import DataError, MissingInput, TrackingError
from aut.files import digest_json, digest_tree, read_json, replacing, write_bytes, write_json
from aut.serving.engine import Passing
from aut.serving.versions import EXAMPLE, Pointer

PACKAGE = ("encoder", "heads", "neighbours", "evidence.json", "report.html")
CONTENTS = "contents.json"
TIMEOUT_S = "15"  # of a request to the registry, MLflow waits 120: a server that stops waits for its downloads
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what stores answer for an alias that names nothing


class Registry:
    """A model's versions in one MLflow store. `prepare` runs once before the first question (a fresh database)."""

    command = "aut run --profile demo"

    def __init__(self, uri: str, address: str, prepare: Callable[[], None] = lambda: None) -> None:
        self.uri, self.address, self._prepare = uri, address, prepare
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_S)
        self.name, self.alias, self.number = _parse(address)
        self._ready = False
        self._found: dict[str, tuple[str, str]] = {}  # version -> where its files are, what it is
        key = digest_json([plain(uri), address])
        self._record = cache_folder().with_name("versions") / f"{key}.json"

    def current(self) -> Pointer | None:
        """The version meant now, None where the alias names none. TrackingError while the store does not answer."""
        if not self._ready:
            self._prepare()
            self._ready = True
        mlflow = mlflow_module()
        try:
            store = client(self.uri)
            if self.alias:
                found = store.get_model_version_by_alias(self.name, self.alias)
            else:
                found = store.get_model_version(self.name, self.number)
            number = str(found.version)
            source = str(store.get_model_version_download_uri(self.name, number)).rstrip("/")
        except mlflow.MlflowException as error:
            if error.error_code in ABSENT or self._unknown(error):
                return None
            raise away(self.uri, error) from None
        # A store that was deleted and made anew counts versions from 1 again: the time tells them apart.
        self._found[number] = (
            source,
            digest_json([plain(self.uri), self.name, number, source, found.creation_timestamp]),
        )
        return Pointer(self.name, number, found.run_id or "", self.alias)

    def _unknown(self, error: Any) -> bool:
        """A server with a login refuses who only reads a model that does not exist, as if it were secret."""
        if error.error_code != "PERMISSION_DENIED":
            return False
        try:
            return not client(self.uri).search_registered_models(f"name = '{self.name}'", max_results=1)
        except mlflow_module().MlflowException:
            return False

    def fetch(self, pointer: Pointer) -> Path:
        """The version's folder, downloaded when this machine lacks it. Passing: not what was registered,
        as after a download that was cut.

        Its files were checked against the registered digest when they came, and are against that digest now.
        """
        source, key = self._found[pointer.number]
        folder = self._record.parent / key
        if folder.exists() and not _whole(folder):
            shutil.rmtree(folder)  # damaged on disk: fetched anew
        if not folder.exists():
            tree = _facts(self.uri, source, pointer.address)["tree"]
            with replacing(folder) as draft:
                self._fill(draft, source, pointer)
                if (found := digest_tree(draft / "encoder")) != tree:  # the draft goes: a next try downloads anew
                    raise Passing(f"the encoder of {pointer.address} has digest {found}, registered was {tree}")
                parts = {name: digest_tree(draft / name) for name in PACKAGE if (draft / name).exists()}
                write_json(draft / CONTENTS, parts)
        self._remember(pointer, folder)
        return folder

    def local(self) -> tuple[Pointer, Path] | None:
        """The version fetched last for this address."""
        if not self._record.is_file():
            return None
        kept = read_json(self._record)
        folder = self._record.parent / kept.pop("folder")
        return (Pointer(**kept), folder) if folder.is_dir() else None

    def _fill(self, draft: Path, source: str, pointer: Pointer) -> None:
        with tempfile.TemporaryDirectory(dir=draft.parent) as scratch:
            got = _download(self.uri, f"{source}/artifacts", Path(scratch), pointer.address)
            for name in PACKAGE:
                if (got / name).exists():
                    os.replace(got / name, draft / name)
            example = _example(self.uri, source, Path(scratch), pointer.address)
        if example:
            write_bytes(draft / EXAMPLE, example)

    def _remember(self, pointer: Pointer, folder: Path) -> None:
        kept: dict[str, Any] = {"model": pointer.model, "number": pointer.number, "run_id": pointer.run_id}
        kept |= {"alias": pointer.alias, "folder": folder.name}
        if not self._record.is_file() or read_json(self._record) != kept:
            write_json(self._record, kept)


def _whole(folder: Path) -> bool:
    """Whether the files are those that were fetched."""
    try:
        parts: dict[str, str] = read_json(folder / CONTENTS)
        return all(digest_tree(folder / name) == digest for name, digest in parts.items())
    except (MissingInput, DataError):
        return False


def _example(uri: str, source: str, scratch: Path, address: str) -> bytes | None:
    """The input example that was registered with the version; None where it has none."""
    try:
        path = _download(uri, f"{source}/serving_input_example.json", scratch, address)
    except TrackingError:
        return None
    try:
        table = json.loads(path.read_text())["dataframe_split"]
        return base64.b64decode(table["data"][0][table["columns"].index("audio")])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"the input example of {address} cannot be read: {error}", "register it again") from None
