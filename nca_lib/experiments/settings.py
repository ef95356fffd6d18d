"""An experiment as one file: a dataclass that is read from TOML and written back.

    name = "diff-nca-tissue"
    [model]
    kind = "diff-nca"
    channels = 48
    [data]
    kind = "tissue"
    [training]
    steps = 20000

`model` and `data` take, besides `kind`, the arguments of that class; every other key is a field of a
dataclass below. Unknown keys, values of the wrong type and numbers out of range are refused by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import field
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Required, Union, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    ValidationError,
    model_validator,
    with_config,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from torch import nn
from typing_extensions import TypedDict

from nca_lib.automaton import GrowingNCA
from nca_lib.baselines import VNCA, UNet
from nca_lib.data.bcss import BCSS
from nca_lib.data.celeba import CelebA
from nca_lib.data.digits import Digits
from nca_lib.data.faces import Faces
from nca_lib.data.folder import Folder
from nca_lib.data.images import Images, Split
from nca_lib.data.tissue import Tissue
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import MLP, Denoiser, ScheduleName, Target, Weighting, noise_schedule
from nca_lib.fourier import FourierDiffNCA

MODELS: dict[str, type[nn.Module]] = {
    "diff-nca": DiffNCA,
    "fourier-diff-nca": FourierDiffNCA,
    "unet": UNet,
    "vnca": VNCA,
    "mlp": MLP,
    "growing-nca": GrowingNCA,
}
DATASETS: dict[str, type[Images]] = {
    "tissue": Tissue,
    "digits": Digits,
    "faces": Faces,
    "celeba": CelebA,
    "bcss": BCSS,
    "folder": Folder,
}


class ExperimentError(ValueError):
    """An experiment that cannot be run; the message names the key and what would be right."""


CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # strict: true is no number

# The name of a folder and of files: nothing that leads elsewhere or hides.
Name = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
# In TOML and on the command line, which have no null.
Unset = BeforeValidator(lambda value: None if value == "none" else value)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Diffusion:
    """The diffusion process; unused by growing automata."""

    schedule: Annotated[
        ScheduleName,
        Field(description="noise schedule: cosine ends in pure noise, linear (the older scripts) does not"),
    ] = "cosine"
    timesteps: Annotated[int, Field(ge=2, description="T, the number of noise levels")] = 300
    target: Annotated[
        Target,
        Field(
            description="what the network predicts: epsilon as published; v keeps colours steady where noise is "
            "strong"
        ),
    ] = "epsilon"
    weighting: Annotated[
        Weighting,
        Field(
            description="of the loss over noise levels: uniform as published, or min_snr (Hang et al. 2023, "
            "gamma = 5)"
        ),
    ] = "uniform"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Growing:
    """What a growing automaton is trained for; unused by diffusion models."""

    regime: Annotated[
        Literal["grow", "persist", "regenerate"],
        Field(
            description="grow from the seed only; persist adds the sample pool; regenerate adds damage to it"
        ),
    ] = "regenerate"
    picture: Annotated[
        str, Field(description="the target: the name of a built-in picture, or the path of an RGBA image")
    ] = "ladybird"
    size: Annotated[int, Field(ge=2, description="height and width of the grid, cells")] = 40
    pool: Annotated[int, Field(ge=1, description="states kept in the sample pool, at least a batch")] = 256
    min_rollout: Annotated[int, Field(ge=1, description="fewest automaton steps between seed and loss")] = 64
    max_rollout: Annotated[int, Field(ge=1, description="most automaton steps between seed and loss")] = 96

    @model_validator(mode="after")
    def _ordered(self) -> Growing:
        if self.min_rollout > self.max_rollout:
            raise ValueError(
                f"growing.min_rollout: {self.min_rollout} is more than max_rollout, {self.max_rollout}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Training:
    """How long, how fast, and what is written on the way."""

    steps: Annotated[int, Field(ge=0, description="optimiser steps; 0 does not train")] = 200_000
    minutes: Annotated[
        float | None,
        Unset,
        Field(gt=0, description="stop by the clock instead, with the learning rate scaled to it"),
    ] = None
    batch: Annotated[int, Field(ge=1, description="images per step")] = 16
    optimizer: Annotated[
        Literal["adam", "muon"],
        Field(
            description="adam, as published; or muon on kernels and adam on the rest, which learns from fewer "
            "images"
        ),
    ] = "adam"
    learning_rate: Annotated[float, Field(gt=0, description="peak learning rate of Adam")] = 1.6e-3
    muon_learning_rate: Annotated[float, Field(gt=0, description="peak learning rate of Muon")] = 0.02
    beta2: Annotated[
        float, Field(ge=0, lt=1, description="Adam's second-moment decay (the first is 0.9)")
    ] = 0.99
    decay: Annotated[
        Literal["cosine", "reference"],
        Field(description="cosine to zero after a warm-up; or 0.9999 per step, as published"),
    ] = "cosine"
    warmup: Annotated[
        int, Field(ge=1, description="steps over which the cosine schedule's learning rate rises from zero")
    ] = 100
    clip: Annotated[float, Field(gt=0, description="largest norm of the gradient")] = 1.0
    ema: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="decay of the averaged weights, warmed up as min(decay, (1+n)/(10+n)); published: 0.99",
        ),
    ] = 0.999
    bf16: Annotated[bool, Field(description="mixed precision where the device computes bf16 natively")] = True
    compile: Annotated[
        bool,
        Field(description="compile the automaton's step with torch.compile where a C++ compiler is present"),
    ] = True
    # NumPy's generators take no negative seeds, torch's none above 64 bits.
    seed: Annotated[int, Field(ge=0, lt=2**63, description="of initialisation, data order and noise")] = 0
    workers: Annotated[
        int, Field(ge=0, description="processes that read images; 0 reads in the training process")
    ] = 0
    log_every: Annotated[
        int, Field(ge=1, description="steps between progress lines and TensorBoard points")
    ] = 50
    save_every: Annotated[int, Field(ge=1, description="steps between checkpoints")] = 500
    sample_every: Annotated[int, Field(ge=1, description="steps between sample grids")] = 2000
    snapshots: Annotated[
        int,
        Field(ge=0, description="also keep the averaged weights at 1/2, 1/4, ... of the steps, this often"),
    ] = 0
    init_from: Annotated[
        str | None,
        Unset,
        Field(description="start from these trained weights (a shipped name or a .safetensors file)"),
    ] = None
    teacher: Annotated[
        str | None,
        Unset,
        Field(description="learn what these trained weights predict, instead of what is true: distillation"),
    ] = None


SECTIONS = {"diffusion": Diffusion, "growing": Growing, "training": Training}


def _table_of(kind: str, build: Any) -> Any:
    """The type of a [model] or [data] table: `kind`, and the arguments of the class but the split."""
    hints = get_type_hints(build.__init__, include_extras=True)
    parameters = inspect.signature(build).parameters.values()
    keys = {p.name: Required[hints[p.name]] if p.default is p.empty else hints[p.name] for p in parameters}
    keys.pop("split", None)
    return with_config(CHECKED)(TypedDict(kind, {"kind": Literal[kind], **keys}, total=False))  # type: ignore[operator]


TABLES = {
    section: {kind: _table_of(kind, build) for kind, build in kinds.items()}
    for section, kinds in (("model", MODELS), ("data", DATASETS))
}


def _table(section: str) -> GetPydanticSchema:
    union: Any = Union[tuple(TABLES[section].values())]  # noqa: UP007
    by_kind = Annotated[union, Field(discriminator="kind")]
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(by_kind))


def _built(section: str) -> BeforeValidator:
    # Strictness would take instances only.
    build: Any = SECTIONS[section]
    return BeforeValidator(lambda value: build(**value) if isinstance(value, Mapping) else value)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Experiment:
    """Everything that decides a training run."""

    name: Annotated[
        Name, Field(description="names the run's folder and its weights: letters, digits, '.', '_' and '-'")
    ]
    model: Annotated[
        Mapping[str, Any],
        _table("model"),
        Field(description="kind (a key of `MODELS`) and the arguments of that class"),
    ] = field(default_factory=lambda: {"kind": "diff-nca"})
    data: Annotated[
        Mapping[str, Any],
        _table("data"),
        Field(
            description="kind (a key of `DATASETS`) and the arguments of that class; unused by growing automata"
        ),
    ] = field(default_factory=lambda: {"kind": "tissue"})
    diffusion: Annotated[Diffusion, _built("diffusion")] = Diffusion()
    growing: Annotated[Growing, _built("growing")] = Growing()
    training: Annotated[Training, _built("training")] = Training()

    @model_validator(mode="after")
    def _pool_holds_a_batch(self) -> Experiment:
        batch, pool = self.training.batch, self.growing.pool
        if self.model["kind"] == "growing-nca" and batch > pool:
            raise ValueError(f"growing.pool: {pool} states are fewer than training.batch, {batch}")
        return self

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Experiment:
        """Check a nested mapping and build the experiment.

        Raises:
            ExperimentError: a key is unknown, or its value of the wrong type or out of range.
        """
        try:
            return cls(**mapping)
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ExperimentError(_message(min(found, key=lambda e: e["type"] == "missing"))) from None

    @classmethod
    def read(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
        """Read a TOML file, or a shipped experiment by its name; `overrides` has dotted keys.

        Raises:
            ExperimentError: no such experiment, not TOML, or a bad key or value.
        """
        path = Path(source)
        if path.suffix != ".toml":
            path = Path(str(resources.files("nca_lib") / "experiments" / "recipes" / f"{source}.toml"))
        if not path.is_file():
            raise ExperimentError(
                f"no experiment {str(source)!r}; give a .toml file or one of: {', '.join(names())}"
            )
        try:
            mapping = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ExperimentError(f"{path}: not valid TOML: {error}") from error
        for dotted, value in (overrides or {}).items():
            section, _, key = dotted.rpartition(".")
            (mapping.setdefault(section, {}) if section else mapping)[key] = value
        return cls.from_dict(mapping)

    def to_dict(self) -> dict[str, Any]:
        """The experiment as nested plain values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The experiment as TOML; reading it back gives an equal experiment."""
        values = self.to_dict()
        for table in values.values():
            if isinstance(table, dict):
                for key in [key for key, value in table.items() if value is None]:
                    del table[key]
        return tomli_w.dumps(values)

    def build_model(self) -> nn.Module:
        """The untrained model: a [`Denoiser`][], a [`VNCA`][] or a [`GrowingNCA`][]."""
        options = dict(self.model)
        kind = options.pop("kind")
        network = MODELS[kind](**options)
        if kind in ("growing-nca", "vnca"):
            return network
        schedule = noise_schedule(self.diffusion.schedule, self.diffusion.timesteps)
        return Denoiser(network, schedule, self.diffusion.target, self.diffusion.weighting)

    def build_data(self, split: Split = "train") -> Images:
        """The data set's training or test split."""
        options = dict(self.data)
        build: Any = DATASETS[options.pop("kind")]
        return build(**options, split=split)


def names() -> list[str]:
    """The names of the shipped experiments."""
    return _shipped("recipes")


def matrices() -> list[str]:
    """The names of the shipped matrices, see [`nca_lib.experiments.matrix`][]."""
    return _shipped("matrices")


def _shipped(folder: str) -> list[str]:
    entries = (resources.files("nca_lib") / "experiments" / folder).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def fields() -> dict[str, tuple[str, str]]:
    """Every dataclass key by dotted name: its type in words, and what it means."""
    found: dict[str, tuple[str, str]] = {}
    for section, kind in SECTIONS.items():
        hints = get_type_hints(kind)
        for key, field in kind.__pydantic_fields__.items():  # type: ignore[attr-defined]
            found[f"{section}.{key}"] = (_in_words(hints[key]), field.description)
    return found


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if NoneType in get_args(hint):
        return " or ".join("none" if option is NoneType else option.__name__ for option in get_args(hint))
    return hint.__name__


def _message(error: ErrorDetails) -> str:
    """What is wrong, in one line: the key, its value, and what would be right."""
    problem, value = error["type"], error["input"]
    if problem == "value_error":  # from a validator above, which names its keys
        return str(error["ctx"]["error"])
    path = [str(part) for part in error["loc"]]
    known = list(Experiment.__pydantic_fields__)  # type: ignore[attr-defined]
    if path[0] in TABLES and len(path) > 1:
        known = [key for key in TABLES[path[0]][path.pop(1)].__annotations__ if key != "kind"]
    elif len(path) > 1:
        known = list(SECTIONS[path[0]].__pydantic_fields__)  # type: ignore[attr-defined]
    name = ".".join(path)
    match problem:
        case "unexpected_keyword_argument" | "extra_forbidden":
            close = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            return f"{name}: unknown key; {hint}"
        case "union_tag_invalid" | "union_tag_not_found":
            kind, kinds = str(value.get("kind")), ", ".join(TABLES[name])
            return f"{name}.kind: {kind!r} is unknown; choose one of {kinds}"
        case "dataclass_exact_type" | "model_attributes_type":
            return f"{name}: must be a table, [{name}]"
        case "missing":
            return f"{name}: missing"
        case "literal_error":
            choices = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            return f"{name}: {value!r} is not one of {choices}"
        case "int_type" | "float_type" | "bool_type" | "string_type":
            kind = problem.removesuffix("_type").replace("string", "str")
            return f"{name}: {value!r} is not of type {kind}"
        case "string_pattern_mismatch":
            return f"{name}: {value!r} is no name; it may hold letters, digits, '.' (not first), '_' and '-'"
    return f"{name}: {value!r} {error['msg'].removeprefix('Input ')}"
