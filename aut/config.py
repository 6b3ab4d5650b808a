"""Params: one model of everything that changes a result, read from `params.yaml`, unknown keys refused.

`conf/` (Hydra) is the only source; `compose` generates `params.yaml` from it. Identity (seed, quotas,
global batch, base model) is here. Placement (device, workers, addresses) is a flag or an environment
variable (`aut/layout.py`) and never here, so the same work elsewhere has the same name.

A field has no Python default: DVC would not see such a number change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core import ValidationError as CoreError

from aut.errors import ConfigError
from aut.units import DECODER_TOKENS, PROMPT_TOKENS, WINDOW_S, Domain, Role

T = TypeVar("T")


def _distinct(values: list[Any]) -> list[Any]:
    if twice := [v for v in values if values.count(v) > 1]:
        raise ValueError(f"'{twice[0]}' is given twice")
    return values


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Inside = Annotated[float, Field(gt=0.0, lt=1.0)]
"""A share of which neither nothing nor everything makes sense."""
Below1 = Annotated[float, Field(ge=0.0, lt=1.0)]
Some = Annotated[list[T], Field(min_length=1), AfterValidator(_distinct)]
"""At least one, none twice: a seed given twice would be counted as two."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A training's 64 random bits are a seed and a step, numpy's older generators take 32."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
"""Sources, probe sets and encoders: these names become DVC stage names and folders."""


class Frozen(BaseModel):
    """A section of params: immutable, misspelt keys refused.

    What contradicts what is said by methods `_check_...`, each of which yields sentences. They are asked also where a
    value is wrong, so that all is listed at once: a wrong value is not there then, and what needs it is left unasked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        lines: list[InitErrorDetails] = []
        try:
            made = handler(values)
        except ValidationError as error:
            lines = [_line(e["type"], e["msg"], e["loc"], e["input"]) for e in error.errors()]
            made = _parts(cls, values)
        lines += [_line("contradiction", told, (), values) for told in _contradictions(made)]
        if lines:
            raise CoreError.from_exception_data(cls.__name__, lines)
        return made


def _line(kind: str, told: str, where: tuple[int | str, ...], value: Any) -> InitErrorDetails:
    return {"type": PydanticCustomError(kind, "{told}", {"told": told}), "loc": where, "input": value}


def _contradictions(section: Any) -> list[str]:
    found: list[str] = []
    for name in dir(type(section)):
        if name.startswith("_check_"):
            with suppress(AttributeError):
                found += getattr(section, name)()
    return found


_WRONG = object()


def _right(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or what of it is right."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return _parts(kind, value)


def _parts(kind: Any, value: Any) -> Any:
    """Of a section or a table the parts that are right."""
    if not isinstance(value, dict):
        return _WRONG
    if isinstance(kind, type) and issubclass(kind, Frozen):
        named = {field.alias or name: (name, field) for name, field in kind.model_fields.items()}
        found = {n: _right(f.rebuild_annotation(), value[key]) for key, (n, f) in named.items() if key in value}
        return kind.model_construct(**{name: part for name, part in found.items() if part is not _WRONG})
    if get_origin(kind) is dict:
        found = {key: _right(get_args(kind)[1], part) for key, part in value.items()}
        return {key: part for key, part in found.items() if part is not _WRONG}
    return _WRONG


class Source(Frozen):
    """One corpus. `path` is relative to AUT_DATA (generated corpora keep theirs under AUT_WORK)."""

    dataset: str  # a module of aut/datasets
    role: Role  # training pool of that domain, or 'probe'
    domain: Domain
    path: str
    options: dict[str, Any]  # what the adapter takes: column mapping, version, size of a toy ...
    quarantine_max_fraction: Fraction | None = None  # of this source; null: as index says

    def _check_role(self) -> Iterator[str]:
        if self.role not in ("probe", self.domain):
            yield f"role '{self.role}' must be 'probe' or equal the domain '{self.domain}'"

    def _check_path(self) -> Iterator[str]:
        if Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            yield f"path '{self.path}' must lie below AUT_DATA: give it without a leading / or '..'"


class Index(Frozen):
    quarantine_max_fraction: Fraction  # of a source's clips, where it gives none of its own; more stops the run
    min_s: NonNegativeFloat  # shorter clips go to the quarantine
    max_s: PositiveFloat  # longer ones too (training truncates at 30 s)
    max_text_tokens: Annotated[int, Field(gt=PROMPT_TOKENS, le=DECODER_TOKENS)]  # of a pool row, the prompt included
    tokenizer: str  # 'utf8' counts bytes, an upper bound for byte-level BPE; else a tokenizer folder or hub name
    captions_per_label: PositiveInt  # templates used for label-only sources

    def _check_lengths(self) -> Iterator[str]:
        if self.min_s >= self.max_s:
            yield f"min_s = {self.min_s:g} is not below max_s = {self.max_s:g}: no clip would be left"


class Screen(Frozen):
    gates: list[Literal["id", "content", "acoustic"]]
    acoustic_threshold: Fraction  # agreement of the aligned fingerprints, in [0, 1]; 0 is chance
    min_match_s: PositiveFloat  # a match this short counts 0.71 of its agreement, a longer one nearly all
    max_flagged_fraction: Fraction  # of a domain's pool; more stops the pipeline


class Mixture(Frozen):
    rows: PositiveInt  # clips of one epoch
    window: PositiveInt  # every window of so many rows has the quotas exactly
    quota: dict[Domain, Fraction]  # sums to 1
    short: Literal["repeat", "error"]  # a domain with fewer clips than its quota
    parts: PositiveInt  # hash ranges a source is cut into
    licences_excluded: Annotated[list[str], AfterValidator(_distinct)]  # clips under these are not taken

    def _check_sum(self) -> Iterator[str]:
        total = sum(self.quota.values())
        if abs(total - 1.0) > 1e-9:
            yield f"quota sums to {total:g}, must sum to 1"

    def _check_window(self) -> Iterator[str]:
        for domain, share in self.quota.items():
            if abs(share * self.window - round(share * self.window)) > 1e-6 or 0 < share * self.window < 0.5:
                rows = f"a whole number of rows in a window of {self.window}"
                yield f"quota.{domain} = {share:g} is not {rows}: change one"


class ModelShape(Frozen):
    """A Whisper that is trained here, from random weights."""

    d_model: PositiveInt
    encoder_layers: PositiveInt
    decoder_layers: PositiveInt
    heads: PositiveInt
    mels: Literal[80, 128]
    vocabulary: Annotated[int, Field(ge=265)]  # 256 bytes and Whisper's nine special tokens

    def _check_width(self) -> Iterator[str]:
        if self.d_model % self.heads or self.d_model % 2:
            yield f"d_model = {self.d_model} must be even, and divisible by heads = {self.heads}"


class Schedule(Frozen):
    """Optimiser steps and how the learning rate moves over them."""

    steps: PositiveInt | None  # null: from epochs
    epochs: PositiveFloat | None  # null: from steps
    batch: PositiveInt  # clips of one optimiser step, over all processes
    lr: PositiveFloat
    warmup_fraction: Below1  # 1 would leave no step at the full rate
    weight_decay: NonNegativeFloat
    betas: tuple[Below1, Below1]
    clip_norm: PositiveFloat | None

    def _check_length(self) -> Iterator[str]:
        if (self.steps is None) == (self.epochs is None):
            yield f"steps = {self.steps} and epochs = {self.epochs}: give one, and null for the other"


class Training(Frozen):
    """How a step is computed; identical for base and fine-tune."""

    precision: Literal["fp32", "bf16"]
    length: Literal["native", "padded"]  # native: no 30-s padding
    max_s: Annotated[float, Field(gt=0.0, le=WINDOW_S)]  # longer clips are truncated; Whisper hears no more
    language: str
    spec_augment: bool
    gain_jitter_db: NonNegativeFloat
    label_smoothing: Below1  # 1 would leave nothing of the targets
    checkpoint_every: PositiveInt  # steps that a kill costs at most; written twice as often
    keep_checkpoints: PositiveInt
    eval_every: PositiveInt
    eval_clips: NonNegativeInt  # held out of the mixture, over all domains
    activation_checkpointing: bool
    compile: bool  # the blocks, by torch.compile
    deepspeed_stage: Literal[0, 1, 2, 3]  # 0: plain data parallel

    def _check_compile(self) -> Iterator[str]:
        if self.compile and self.deepspeed_stage == 3:
            yield "compile = true with deepspeed_stage = 3: its hooks gather weights within what would be compiled"


class BaseEncoder(Frozen):
    """A starting point: everything in the table that is not fine-tuned here.

    train       a small Whisper trained on the speech pool (where no hub can be reached)
    pretrained  a Whisper from the hub or a folder, decoder included
    random      the same shape as `base`, untrained
    logmel      mean and deviation of each log-mel bin: no network at all
    hub         any Hugging Face audio encoder, as a baseline only
    registered  a registered version (models:/NAME/3), or a folder that `aut export` wrote, as a baseline only
    """

    kind: Literal["train", "pretrained", "random", "logmel", "hub", "registered"]
    model: str | None  # hub name, folder or address, for pretrained, hub and registered
    revision: str | None

    def _check_model(self) -> Iterator[str]:
        if self.kind in ("pretrained", "hub", "registered") and not self.model:
            yield "model is empty: give a hub name, a folder or models:/NAME/3"
        if self.kind == "registered" and "@" in str(self.model):
            yield f"model = {self.model} is an alias, which moves: name a version, models:/NAME/3"


class Base(Frozen):
    encoders: dict[Name, BaseEncoder]  # `base` must be among them
    shape: ModelShape  # for kinds train and random; ignored where base is pretrained
    schedule: Schedule
    training: Training

    def _check_base(self) -> Iterator[str]:
        if "base" not in self.encoders:
            yield "encoders needs the key 'base'"
        elif self.encoders["base"].kind not in ("train", "pretrained"):
            yield f"encoders.base.kind = {self.encoders['base'].kind} cannot be fine-tuned: give train or pretrained"


class Finetune(Frozen):
    arms: Some[Literal["adapted", "control"]]
    seeds: Some[Seed]
    schedule: Schedule
    training: Training


class Export(Frozen):
    encoders: list[str]  # base, random, logmel ..., <arm>-<seed>: derived in conf
    parity_atol: PositiveFloat
    parity_clips: PositiveInt


class Embed(Frozen):
    sets: list[str]  # the probe sets: derived in conf
    encoders: list[str]
    poolings: Some[Literal["valid", "padded"]]  # the first one decides; padded is the ablation
    layers: Literal["last", "all"]
    max_s: PositiveFloat


def _divides(folds: str | int) -> str | int:
    if isinstance(folds, int) and folds < 2:
        raise ValueError(f"{folds} leaves nothing to train on: give official, split, or 2 and more")
    return folds


class Protocol(Frozen):
    """How a probe set is split and fitted.

    folds      'official': the set's own folds, each the test part once; an integer k: k stratified
               folds that keep a `source_id` whole; 'split': train on train+validation, test on test
    repeats    for integer folds only: how many random divisions
    """

    folds: Annotated[Literal["official", "split"] | int, AfterValidator(_divides)]
    test_fold: str | None = None  # only this fold is tested (the paper's ESC-50 fold 5)
    repeats: PositiveInt = 1
    stratified_fraction: Inside | None = None  # a random test share instead of folds (the paper's GTZAN)
    labels: str | None = None  # label mapping known to the dataset ('superb12'); null: as indexed
    exclude: str | None = None  # exclusion list known to the dataset ('sturm'); null: none
    solver: Literal["logistic", "adam"]

    def _check_repeats(self) -> Iterator[str]:
        if self.repeats > 1 and (isinstance(self.folds, str) or self.stratified_fraction is not None):
            how = f"folds: {self.folds}" if self.stratified_fraction is None else "stratified_fraction"
            yield f"repeats = {self.repeats} with {how}: only a number of folds is divided again, give 1"


class Adam(Frozen):
    """How the linear layer of solver `adam` is trained."""

    lr: PositiveFloat
    batch: PositiveInt
    epochs: PositiveInt


class Probe(Frozen):
    sets: dict[Name, Some[str]]  # probe source -> protocols, the first one decides
    protocols: dict[str, Protocol]
    seeds: Some[Seed]  # for random fits (adam)
    c_grid: Some[PositiveFloat]  # logistic: chosen inside the training part
    inner_folds: Annotated[int, Field(ge=2)]
    tolerance: PositiveFloat
    inner_tolerance: PositiveFloat  # of the fits that only rank values of C
    adam: Adam
    knn: NonNegativeInt  # neighbours of the k-NN ablation, 0: off


class Compare(Frozen):
    a: str  # 'adapted'
    against: Some[str]  # arms or encoders: base, control
    baselines: list[str]  # in the table and in the 'beats' verdicts
    resamples: PositiveInt
    level: Inside  # of the intervals
    power: Inside  # of the minimum detectable difference


class Gates(Frozen):
    leakage_max_fraction: Fraction
    gain_domains: list[Domain]
    speech_margin_points: NonNegativeFloat
    parity: bool
    drop_in: bool


class Register(Frozen):
    name: str
    gates: Gates


class Params(Frozen):
    profile: str
    seed: Seed
    sources: dict[Name, Source]
    index: Index
    screen: Screen
    mixture: Mixture
    base: Base
    finetune: Finetune
    export: Export
    embed: Embed
    probe: Probe
    compare: Compare
    register_: Register = Field(alias="register")

    def _check_probe_sets(self) -> Iterator[str]:
        probes = {n for n, s in self.sources.items() if s.role == "probe"}
        for name in self.probe.sets:
            if name not in probes:
                yield f"probe.sets.{name} is no source with role 'probe'"

    def _check_protocols(self) -> Iterator[str]:
        for name, protocols in self.probe.sets.items():
            for protocol in protocols:
                if protocol not in self.probe.protocols:
                    yield f"probe.sets.{name}: no protocol '{protocol}'"

    def _check_pools(self) -> Iterator[str]:
        for domain, share in self.mixture.quota.items():
            if share and not self.pool(domain):
                yield f"mixture.quota.{domain} = {share:g}, but no source has role '{domain}'"

    def _check_control(self) -> Iterator[str]:
        if "control" in self.finetune.arms and not self.mixture.quota.get("speech", 0.0):
            yield "finetune.arms has control, which is speech only, and mixture.quota.speech = 0: leave one out"

    def _check_encoders(self) -> Iterator[str]:
        known = {*self.base.encoders, *(f"{a}-{s}" for a in self.finetune.arms for s in self.finetune.seeds)}
        for section, names in (("export", self.export.encoders), ("embed", self.embed.encoders)):
            for name in names:
                if name not in known:
                    yield f"{section}.encoders: '{name}' is neither in base.encoders nor an arm-seed"

    def _check_arm(self) -> Iterator[str]:
        if self.compare.a not in self.finetune.arms:
            yield f"compare.a: '{self.compare.a}' is not in finetune.arms ({', '.join(self.finetune.arms)})"
        if self.compare.a in self.compare.against:
            yield f"compare.against: '{self.compare.a}' is compare.a itself"

    def _check_rivals(self) -> Iterator[str]:
        """What `compare` names that no embedding will be there of: it would be left out of the report in silence."""
        there = list(dict.fromkeys(n.partition("-")[0] for n in self.embed.encoders))  # 'adapted-0' is told as its arm
        for key, names in (("against", self.compare.against), ("baselines", self.compare.baselines)):
            for name in names:
                if name not in there:
                    yield f"compare.{key}: '{name}' is none of what is embedded ({', '.join(there)})"

    def pool(self, domain: Domain) -> list[str]:
        """Names of the sources that feed a domain's training pool, sorted."""
        return sorted(n for n, s in self.sources.items() if s.role == domain)

    @property
    def champion_encoder(self) -> str:
        """The encoder that is registered: the adapted arm's first seed."""
        return f"{self.compare.a}-{self.finetune.seeds[0]}"


def read_params(path: Path | str = "params.yaml") -> Params:
    """The params of this working copy. ConfigError names each wrong key."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", "run from the project's root, or `aut run --profile demo`") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}".replace("\n", " ")) from None
    return parse_params(values, str(path))


def parse_params(values: Any, origin: str) -> Params:
    """`values` as Params; ConfigError lists every wrong key at once."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        rows = [f"{'.'.join(map(str, e['loc'])) or 'params'}: {_plain(e)}" for e in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(rows), "mend these keys (docs/params.md lists them all)") from None


def _plain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    return str(error["msg"]).removeprefix("Value error, ")


def compose(profile: str, overrides: Sequence[str], conf: Path, out: Path) -> Params:
    """Composes `conf/profile/<profile>.yaml` with Hydra overrides, checks it, then replaces `out`."""
    from dvc.utils.hydra import compose_and_dump
    from omegaconf import OmegaConf

    known = sorted(p.stem for p in (conf / "profile").glob("*.yaml"))
    if profile not in known:
        raise ConfigError(f"no profile '{profile}'", f"choose one of {', '.join(known)}")
    OmegaConf.register_new_resolver("arm_seeds", _arm_seeds, replace=True)
    draft = out.with_name(f".{out.stem}.draft{out.suffix}")
    try:
        compose_and_dump(str(draft), str(conf.resolve()), None, "config", "", [f"profile={profile}", *overrides])
        params = read_params(draft)
        draft.replace(out)
    except ConfigError as error:
        raise ConfigError(error.what.replace(str(draft), f"profile {profile}"), error.remedy) from None
    except Exception as error:  # Hydra and OmegaConf share no base class of their own
        if type(error).__module__.split(".")[0] not in ("hydra", "omegaconf"):
            raise
        message = " ".join(str(error).split())
        raise ConfigError(f"profile {profile}: {message}", "see docs/params.md for the keys") from None
    finally:
        draft.unlink(missing_ok=True)
    return params


DERIVED = ("profile", "export.encoders", "embed.encoders", "embed.sets")  # follow from other keys in conf


def overrides_of(params: Params, conf: Path) -> list[str]:
    """What `aut run --profile P` needs besides the profile to compose these params; empty where they are its own."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        plain = compose(params.profile, [], conf, Path(folder) / "params.yaml")
    given = (p.model_dump(mode="json", by_alias=True, exclude_unset=True) for p in (params, plain))
    mine, theirs = map(_leaves, given)
    changed = {k: v for k, v in mine.items() if v != theirs.get(k, _ABSENT) and k not in DERIVED}
    return [f"{'' if k in theirs else '+'}{k}={_hydra(v)}" for k, v in changed.items()] + [
        f"~{k}" for k in theirs if k not in mine and k not in DERIVED
    ]


_ABSENT = object()


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _leaves(part, f"{name}.{key}" if name else key).items()}


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar: strings quoted where they hold more than a word."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(_hydra(v) for v in value)}]"
    if isinstance(value, str) and not value.replace("_", "").replace("-", "").isalnum():
        return "'" + value.replace("'", "\\'") + "'"
    return str(value)


def _arm_seeds(arms: Sequence[str], seeds: Sequence[int], encoders: Any) -> Any:
    """`${arm_seeds:...}` in conf: every starting encoder, then each arm with each seed."""
    from omegaconf import OmegaConf

    return OmegaConf.create([*encoders, *(f"{arm}-{seed}" for arm in arms for seed in seeds)])
