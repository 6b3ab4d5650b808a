"""Registry: the register stage's MLflow side. A version carries its weights, its evidence and its verdicts.

In    the package that aut/stages/register.py fills, the gates' verdicts in it
Out   a version of the registered model; alias `candidate` on the newest, `champion` moved only when the gates pass
      reports/register/registered.json
Why   the same weights with the same evidence are the same version; a forced promotion says why, for ever
Price the weights are uploaded once a version (through the server's proxy where there is one)
Run   aut register [--force --reason "..."]
"""

from __future__ import annotations

import getpass
import os
import shutil
import warnings
import wave
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from aut.config import Params
from aut.edges.loading import load_encoder
from aut.edges.store import client, embedded_uri, experiment_id, mlflow_module, plain, pyfunc_module, ready, resolve_uri
from aut.errors import TrackingError
from aut.files import digest_json, locked, replacing, write_json
from aut.gates import allowed
from aut.layout import Layout
from aut.stages.register import Package, pack, served_digests

__all__ = ["VersionFacts", "alias_version", "load_encoder", "publish", "register", "version_facts"]

MODEL = "whisper-aut"
PACKAGE_DIGEST = "aut.digest.package"
"""Tag of a version: digest of all that a server takes of it, kept apart from the files."""
NEEDED = ("mlflow", "numpy", "pandas", "pydantic", "pyyaml", "safetensors", "soundfile", "soxr", "torch")
"""Packages that inference imports, pinned to the versions here. `aut` itself travels as code with the model."""


class RunTracker(Protocol):
    """What `register` needs of the stage's tracker."""

    def run_id(self) -> str | None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...


@dataclass(frozen=True)
class VersionFacts:
    """What brings a version back."""

    name: str
    version: str
    profile: str
    revision: str
    params_digest: str
    parent_run: str
    run_id: str


def register(params: Params, layout: Layout, track: RunTracker) -> dict[str, str | int]:
    """Registers the champion encoder with its evidence. AUT_FORCE_REASON moves `champion` past a failed gate.

    Raises MissingInput for an absent artefact, TrackingError when the registry cannot be used.
    """
    uri = resolve_uri(embedded_uri(layout))
    ready(uri, layout)
    with locked(layout.work / "locks/register.lock", "registering a version", wait=True):
        scratch = layout.work / "register" / params.champion_encoder
        try:
            package = pack(params, layout, scratch / "package")
            run_id = track.run_id()
            tags = _version_tags(uri, params, layout, package, run_id)
            reason = os.environ.get("AUT_FORCE_REASON", "").strip()
            result = publish(uri, layout, package, tags, run_id, reason)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    track.tags({"aut.model_version": f"models:/{result['name']}/{result['version']}"})
    for name in ("report.html", "evidence.json"):
        track.artifact(layout.evidence / name)
    with replacing(layout.registered) as folder:
        write_json(folder / "registered.json", result)
    return {"version": int(result["version"]), "champion": int("champion" in result["aliases"])}


def publish(
    uri: str, layout: Layout, package: Package, tags: Mapping[str, str], run_id: str | None, reason: str = ""
) -> dict[str, Any]:
    """Makes (or finds) the version and moves the aliases. Returns what registered.json holds."""
    store = client(uri)
    with suppress(mlflow_module().MlflowException):  # it exists
        store.create_registered_model(package.name, description="Audio encoders adapted from Whisper.")
    found = _same(uri, package)
    number = found or _create(uri, layout, package, tags, run_id)
    if number == max(_versions(uri, package.name), key=int):
        store.set_registered_model_alias(package.name, "candidate", number)
    passed = allowed(package.verdicts)
    if passed or reason:
        before = alias_version(uri, package.name, "champion")
        if not passed:
            _keep_reason(uri, package, number, reason)
        if before != number:
            store.set_model_version_tag(package.name, number, "aut.champion_before", before or "none")
            store.set_registered_model_alias(package.name, "champion", number)
    return {
        "name": package.name,
        "version": number,
        "aliases": aliases(uri, package.name, number),
        "created": found is None,
        "forced": reason if reason and not passed else None,
        "verdicts": [v.as_json() for v in package.verdicts],
        "weights": package.weights,
        "run_id": store.get_model_version(package.name, number).run_id or None,
    }


def alias_version(uri: str, name: str, alias: str) -> str | None:
    """The version an alias names, None where it names none."""
    with suppress(mlflow_module().MlflowException):
        return str(client(uri).get_model_version_by_alias(name, alias).version)
    return None


def aliases(uri: str, name: str, number: str) -> list[str]:
    return sorted(a for a in ("candidate", "champion") if alias_version(uri, name, a) == number)


def version_facts(uri: str, number: str, name: str = MODEL) -> VersionFacts:
    """Facts of a version, given by number or alias; TrackingError where there is none."""
    try:
        store = client(uri)
        found = (
            store.get_model_version(name, number)
            if number.isdigit()
            else store.get_model_version_by_alias(name, number)
        )
    except mlflow_module().MlflowException:
        raise TrackingError(
            f"{plain(uri)} has no version '{number}' of {name}", "`aut status` names the versions with an alias"
        ) from None
    tags = found.tags
    fields = {k: tags.get(f"aut.{k}", "") for k in ("profile", "revision", "params_digest", "parent_run")}
    return VersionFacts(name=name, version=str(found.version), run_id=found.run_id or "", **fields)


def _create(uri: str, layout: Layout, package: Package, tags: Mapping[str, str], run_id: str | None) -> str:
    """Uploads the model, then makes the version: a version without its files never exists."""
    store = client(uri)
    model = store.create_logged_model(
        experiment_id(uri, layout), name=package.encoder, source_run_id=run_id, model_type="encoder"
    )
    try:
        folder = save_model(package, package.folder.parent / "model", model.model_id, run_id)
        store.log_model_artifacts(model.model_id, str(folder))
        store.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):
            store.finalize_logged_model(model.model_id, "FAILED")
        raise
    made = store.create_model_version(
        package.name,
        # Not models:/<id>, and no model_id without a run: the SQL store would look both up in the default store.
        source=model.artifact_location,
        run_id=run_id,
        model_id=model.model_id if run_id else None,
        tags={**tags, PACKAGE_DIGEST: digest_json(served_digests(package.folder))},
        description=package.card,
    )
    return str(made.version)


def save_model(package: Package, folder: Path, model_id: str, run_id: str | None) -> Path:
    """An MLflow model (models from code) in `folder`: code, safetensors, signature, example, pinned requirements."""
    mlflow = pyfunc_module()
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    import aut

    shutil.rmtree(folder, ignore_errors=True)
    code = package.folder.parent / "code" / "aut"
    shutil.copytree(Path(aut.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    contents = sorted(p for p in package.folder.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls pandas in ways that pandas 4 deprecates
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={p.stem if p.is_file() else p.name: str(p) for p in contents},
            code_paths=[str(code)],
            mlflow_model=Model(model_id=model_id, run_id=run_id),
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.binary, "audio")]),
                outputs=Schema([ColSpec(Array(DataType.double), "embedding")]),
            ),
            input_example=_example(),
            pip_requirements=requirements(),
            metadata={"aut": {"encoder": package.encoder, "tree": package.tree, "weights": package.weights}},
        )
    return folder


def requirements() -> list[str]:
    """Exact versions of what inference imports; a local build mark ('+cpu') is not part of a version."""
    pinned = []
    for name in NEEDED:
        with suppress(PackageNotFoundError):
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
    return pinned


def _example() -> Any:
    """A second of a 440 Hz tone, as a wav file's bytes in a table."""
    import numpy as np
    import pandas as pd

    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype("<i2")
    held = BytesIO()
    with wave.open(held, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(16_000)
        f.writeframes(tone.tobytes())
    return pd.DataFrame({"audio": [held.getvalue()]})


def _versions(uri: str, name: str) -> dict[str, Mapping[str, str]]:
    """Number and tags of every version."""
    store, token = client(uri), None
    found: dict[str, Mapping[str, str]] = {}
    while True:
        page = store.search_model_versions(f"name = '{name}'", page_token=token)
        found |= {str(v.version): v.tags for v in page}
        token = page.token
        if not token:
            return found


def _identity(package: Package) -> dict[str, str]:
    return {"aut.digest.weights": package.weights, "aut.digest.evidence": package.evidence}


def _same(uri: str, package: Package) -> str | None:
    """The newest version with the same weights and evidence."""
    wanted = _identity(package).items()
    found = [n for n, tags in _versions(uri, package.name).items() if wanted <= tags.items()]
    return max(found, key=int, default=None)


def _version_tags(uri: str, params: Params, layout: Layout, package: Package, run_id: str | None) -> dict[str, str]:
    """Verdicts, digests and the way back: DVC, MLflow and Prefect ids."""
    from aut.edges.spool import identity_of

    identity = identity_of("register", "", layout)
    parent = identity["parent_run_id"]
    if run_id and not parent:
        parent = client(uri).get_run(run_id).data.tags.get("mlflow.parentRunId")
    tags = {f"gate.{v.gate}": "pass" if v.passed else "fail" for v in package.verdicts if v.decides}
    tags |= {f"finding.{v.gate}": "yes" if v.passed else "no" for v in package.verdicts if not v.decides}
    tags |= {f"aut.{k}": str(identity[k]) for k in ("profile", "revision", "params_digest", "flow_run") if identity[k]}
    tags |= {"aut.encoder": package.encoder, "aut.gates": digest_json(params.register_.gates.model_dump())}
    tags |= {"aut.parent_run": parent} if parent else {}
    return tags | dict(package.lineage) | _identity(package)


def _keep_reason(uri: str, package: Package, number: str, reason: str) -> None:
    """One tag a forced promotion, never overwritten."""
    store = client(uri)
    tags = store.get_model_version(package.name, number).tags
    count = sum(k.startswith("aut.forced.") for k in tags) + 1
    failed = ", ".join(v.gate for v in package.verdicts if v.decides and not v.passed) or "no gate decided"
    text = f"{reason} (by {getpass.getuser()}, against: {failed})"
    if text not in tags.values():
        store.set_model_version_tag(package.name, number, f"aut.forced.{count}", text)
