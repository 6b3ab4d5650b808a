"""Loading: an encoder in one line, from the registry, a run, or a folder.

In    'models:/whisper-aut@champion', 'models:/whisper-aut/3', 'runs:/<run id>/<model>', or a local folder
Out   an AudioEncoder; a download lies in ~/.cache/aut/encoders/<digest> (XDG_CACHE_HOME), whole or absent
Why   the digest written into the model when it was registered is checked whenever its files are opened
Price reading the weights once more to check them: about 1 s a GB
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.edges.store import away, client, mlflow_module, plain, resolve_uri
from aut.errors import DataError, MissingInput, TrackingError
from aut.files import digest_tree, replacing

if TYPE_CHECKING:
    from aut.encoders import AudioEncoder

SCHEMES = ("models:/", "runs:/")
PLACES = ("", "encoder", "artifacts/encoder")  # an encoder folder, a package, an MLflow model


def load_encoder(uri_or_folder: str | Path, device: str = "cpu") -> AudioEncoder:
    """The encoder behind an address or in a folder.

    With an address, MLFLOW_TRACKING_URI or `aut use` says which registry. `.version` and `.run_id` are set on
    what comes from a registry, else None. Raises TrackingError (no address, no such version, mlflow not installed),
    MissingInput (no encoder in the folder) or DataError (files that differ from what was registered).
    """
    text = str(uri_or_folder)
    if text.startswith(SCHEMES):
        folder, number, run_id = fetch(resolve_uri(), text)
    else:
        folder, number, run_id = encoder_folder(Path(text).expanduser()), None, None
    from aut.encoders import AudioEncoder, open_encoder

    return AudioEncoder(open_encoder(folder, device), version=number, run_id=run_id)


def encoder_folder(folder: Path) -> Path:
    """The folder with encoder.json: this one, or the one inside a package or an MLflow model."""
    for place in PLACES:
        if (folder / place / "encoder.json").is_file():
            return folder / place
    raise MissingInput(f"{folder} holds no encoder (no encoder.json)", "give the folder that `aut export` wrote")


def fetch(uri: str, address: str) -> tuple[Path, str | None, str | None]:
    """Folder, version number and run id of a registered encoder, downloaded when the cache lacks it."""
    source, number, run_id = locate(uri, address)
    facts = _facts(uri, source, address)
    target = cache_folder() / facts["tree"]
    if target.exists() and digest_tree(target) != facts["tree"]:
        shutil.rmtree(target)  # damaged on disk: fetched anew
    if not target.exists():
        with replacing(target) as draft:
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                got = _download(uri, f"{source}/artifacts/encoder", Path(scratch), address)
                shutil.copytree(got, draft, dirs_exist_ok=True, copy_function=os.replace)
            if (found := digest_tree(draft)) != facts["tree"]:
                raise DataError(
                    f"the files of {address} have digest {found}, registered was {facts['tree']}",
                    "its artifacts were changed after it was registered: register it again",
                )
    return target, number, run_id


def locate(uri: str, address: str) -> tuple[str, str | None, str | None]:
    """Artifact address, version number and run id. TrackingError names what does not exist."""
    mlflow = mlflow_module()
    try:
        return _of_run(uri, address) if address.startswith("runs:/") else _of_version(uri, *_parse(address))
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise TrackingError(f"{plain(uri)} has no {address}", "`aut status` names candidate and champion") from None
        raise away(uri, error) from None


def _of_version(uri: str, name: str, alias: str, number: str) -> tuple[str, str | None, str | None]:
    store = client(uri)
    found = store.get_model_version_by_alias(name, alias) if alias else store.get_model_version(name, number)
    source = str(store.get_model_version_download_uri(name, found.version))
    return source.rstrip("/"), str(found.version), found.run_id or None


def _of_run(uri: str, address: str) -> tuple[str, str | None, str | None]:
    """A model that a run made, or a folder among its artifacts. MLflow's own resolver would ask the default store."""
    run_id, _, path = address.removeprefix("runs:/").strip("/").partition("/")
    store = client(uri)
    run = store.get_run(run_id)
    made = store.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    for model in made:
        if model.name == path or not path:
            return str(model.artifact_location).rstrip("/"), None, run_id
    return f"{run.info.artifact_uri}/{path}".rstrip("/"), None, run_id


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aut/encoders"


def _parse(address: str) -> tuple[str, str, str]:
    """Name, alias, number of 'models:/name@alias' or 'models:/name/number'; one of the last two is ''."""
    rest = address.removeprefix("models:/")
    name, at, alias = rest.partition("@")
    if at and name and alias:
        return name, alias, ""
    name, _, number = rest.partition("/")
    if name and number.isdigit():
        return name, "", number
    raise TrackingError(f"'{address}' names no version", "write models:/NAME@ALIAS or models:/NAME/NUMBER")


def _facts(uri: str, source: str, address: str) -> dict[str, str]:
    """What `aut` wrote into the model's MLmodel file."""
    import yaml

    with tempfile.TemporaryDirectory() as scratch:
        path = _download(uri, f"{source}/MLmodel", Path(scratch), address)
        metadata = (yaml.safe_load(path.read_text()).get("metadata") or {}).get("aut")
    if not metadata:
        raise TrackingError(f"{address} is no encoder that `aut register` made", "name another model")
    return dict(metadata)


def _download(uri: str, artifact: str, into: Path, address: str) -> Path:
    mlflow: Any = mlflow_module()
    try:
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=artifact, dst_path=str(into), tracking_uri=uri, registry_uri=uri
            )
        )
    except Exception as error:  # each kind of artifact store has its own
        raise TrackingError(f"the files of {address} cannot be fetched: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
