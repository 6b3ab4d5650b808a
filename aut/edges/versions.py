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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aut.edges.loading import _download, _facts, _parse, cache_folder
from aut.edges.registry import PACKAGE_DIGEST
from aut.edges.store import away, client, mlflow_module, plain
from aut.errors import AutError, DataError, TrackingError
from aut.files import digest_json, digest_tree, read_json, replacing, write_bytes, write_json
from aut.serving.engine import Passing
from aut.serving.versions import EXAMPLE, Pointer
from aut.stages.register import SERVED, served_digests

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
        self._found: dict[str, _Found] = {}  # by version
        key = digest_json([plain(uri), address])
        self._record = cache_folder().with_name("versions") / f"{key}.json"

    def warm(self) -> None:
        """Imports MLflow: seconds in which no registry is asked."""
        mlflow_module()

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
        key = digest_json([plain(self.uri), self.name, number, source, found.creation_timestamp])
        self._found[number] = _Found(source, key, found.tags.get(PACKAGE_DIGEST))
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

        Its files were checked against the registered digests when they came (of versions registered by an older `aut`,
        the encoder's alone), and are against those of what came now.
        """
        found = self._found[pointer.number]
        folder = self._record.parent / found.key
        if folder.exists() and not _whole(folder):
            shutil.rmtree(folder)  # damaged on disk: fetched anew
        if not folder.exists():
            tree = _facts(self.uri, found.source, pointer.address)["tree"]
            with replacing(folder) as draft:  # on failure the draft goes: a next try downloads anew
                self._fill(draft, found.source, pointer)
                _check(f"the encoder of {pointer.address}", digest_tree(draft / "encoder"), tree)
                parts = served_digests(draft)
                if found.package:
                    _check(f"the package of {pointer.address}", digest_json(parts), found.package)
                write_json(draft / CONTENTS, parts)
        self._remember(pointer, folder)
        return folder

    def local(self) -> tuple[Pointer, Path] | None:
        """The version fetched last for this address, if its files are still those that came."""
        kept = self._remembered()
        try:
            folder = self._record.parent / kept.pop("folder")
            pointer = Pointer(**kept)
        except (KeyError, TypeError):
            return None
        return (pointer, folder) if _whole(folder) else None

    def _fill(self, draft: Path, source: str, pointer: Pointer) -> None:
        with tempfile.TemporaryDirectory(dir=draft.parent) as scratch:
            got = _download(self.uri, f"{source}/artifacts", Path(scratch), pointer.address)
            for name in SERVED:
                if (got / name).exists():
                    os.replace(got / name, draft / name)
            example = _example(self.uri, source, Path(scratch), pointer.address)
        if example:
            write_bytes(draft / EXAMPLE, example)

    def _remember(self, pointer: Pointer, folder: Path) -> None:
        kept: dict[str, Any] = {"model": pointer.model, "number": pointer.number, "run_id": pointer.run_id}
        kept |= {"alias": pointer.alias, "folder": folder.name}
        if self._remembered() != kept:
            write_json(self._record, kept)

    def _remembered(self) -> dict[str, Any]:
        """Empty where nothing is, or what is cannot be read."""
        try:
            return dict(read_json(self._record))
        except (AutError, OSError, ValueError, TypeError):
            return {}


@dataclass(frozen=True)
class _Found:
    """Where a version's files are, what it is, and the digest of its package, where it was registered with one."""

    source: str
    key: str
    package: str | None


def _check(what: str, found: str, registered: str) -> None:
    if found != registered:
        raise Passing(f"{what} has digest {found}, registered was {registered}")


def _whole(folder: Path) -> bool:
    """Whether the files are those that were fetched."""
    try:
        return bool(read_json(folder / CONTENTS) == served_digests(folder))
    except (AutError, OSError, ValueError):
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
