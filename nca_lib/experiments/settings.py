"""An experiment as one file: a dataclass that is read from TOML and written back.

    name = "tissue-diff-nca"
    [model]
    kind = "diff-nca"
    channels = 48
    [data]
    kind = "tissue"
    [training]
    steps = 20000

`model` and `data` take, besides `kind`, the arguments of that class; every other key is a field of a
dataclass below. A file may begin with another one, see [`nca_lib.experiments.files`][]. Unknown keys, values
of the wrong type and numbers out of range are refused by name. What is none by default can be set to
`"none"` again, in a file or on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Required, Self, Union, get_args, get_origin, get_type_hints

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
from pydantic.fields import FieldInfo
from torch import nn
from typing_extensions import TypedDict

from nca_lib.data.images import Images, Split
from nca_lib.diffusion import Denoiser, ScheduleName, Target, Weighting, noise_schedule
from nca_lib.errors import ExperimentError
from nca_lib.experiments.files import Layer, layers_of, merged, nested
from nca_lib.experiments.kinds import DATASETS, KINDS, MODELS, arguments

CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # strict: true is no number
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"  # leads nowhere else as a path, and is not hidden

Unset = BeforeValidator(lambda value: None if value == "none" else value)  # TOML has no null


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Diffusion:
    """The diffusion process; unused by growing automata and VNCA."""

    schedule: ScheduleName = Field(
        default="cosine",
        description="noise schedule: cosine ends in pure noise, linear (the older scripts) does not",
    )
    timesteps: int = Field(default=300, ge=2, le=100_000, description="T, the number of noise levels")
    target: Target = Field(
        default="epsilon",
        description="what the network predicts: epsilon as published; v keeps colours where noise is strong",
    )
    weighting: Weighting = Field(
        default="uniform",
        description="of the loss over noise levels: uniform as published, or min_snr (Hang et al. 2023)",
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Context:
    """What a denoiser with context channels is told besides what the data set says of an image."""

    factor: Annotated[int | None, Field(ge=2), Unset] = Field(
        default=None,
        description="the image, so many times coarser (4 channels): a level of a cascade (chapter 9)",
    )
    noise: float = Field(
        default=0.4, ge=0, lt=1, description="most noise in what the coarser level says, in training"
    )
    dropout: float = Field(
        default=0.0, ge=0, le=1, description="chance that an image is told nothing, for guidance: zeros"
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Growing:
    """What a growing automaton is trained for; unused by other models."""

    regime: Literal["grow", "persist", "regenerate"] = Field(
        default="regenerate",
        description="grow from the seed only; persist adds the sample pool; regenerate adds damage to it",
    )
    picture: str = Field(
        default="ladybird",
        description="the target: the name of a built-in picture, or the path of an RGBA image",
    )
    size: int = Field(default=40, ge=2, description="height and width of the grid, cells")
    pool: int = Field(default=256, ge=1, description="states kept in the sample pool, at least a batch")
    min_rollout: int = Field(default=64, ge=1, description="fewest automaton steps between seed and loss")
    max_rollout: int = Field(default=96, ge=1, description="most automaton steps between seed and loss")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        least, most = self.min_rollout, self.max_rollout
        if least > most:
            raise ValueError(f"growing.min_rollout: {least} is more than growing.max_rollout, {most}")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Training:
    """How long, how fast, and what is written on the way."""

    steps: int = Field(
        default=200_000, ge=0, description="optimiser steps; 0 keeps the weights of init_from as they are"
    )
    minutes: Annotated[float | None, Field(gt=0), Unset] = Field(
        default=None, description="stop by the clock instead, with the learning rate scaled to it"
    )
    batch: int = Field(default=16, ge=1, le=1_000_000, description="images per step")
    optimizer: Literal["adam", "muon"] = Field(
        default="adam",
        description="adam as published; muon on kernels, adam on the rest, learns from fewer images",
    )
    learning_rate: float = Field(default=1.6e-3, gt=0, description="peak learning rate of Adam")
    muon_learning_rate: float = Field(default=0.02, gt=0, description="peak learning rate of Muon")
    beta2: float = Field(
        default=0.99, ge=0, lt=1, description="Adam's second-moment decay (the first is 0.9)"
    )
    decay: Literal["cosine", "reference"] = Field(
        default="cosine", description="cosine to zero after a warm-up; or 0.9999 per step, as published"
    )
    warmup: int = Field(
        default=100, ge=1, description="steps over which the cosine schedule's learning rate rises from zero"
    )
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of the averaged weights, warmed up as min(decay, (1+n)/(10+n)); published: 0.99",
    )
    bf16: bool = Field(
        default=True,
        description="mixed precision where the device computes bf16 natively; fp16 on older NVIDIA GPUs",
    )
    compile: bool = Field(
        default=True,
        description="compile the automaton's step with torch.compile where a C++ compiler is present",
    )
    # NumPy's generators take no negative seeds, torch's none of more than 64 bits.
    seed: int = Field(default=0, ge=0, lt=2**63, description="of initialisation, data order and noise")
    workers: int = Field(
        default=0, ge=0, le=256, description="processes that read images; 0 reads in the training process"
    )
    log_every: int = Field(default=50, ge=1, description="steps between points of the TensorBoard curves")
    save_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    sample_every: int = Field(default=2000, ge=1, description="steps between sample grids")
    snapshots: int = Field(
        default=0,
        ge=0,
        description="also keep the averaged weights at 1/2, 1/4, ... of the steps, this often",
    )
    init_from: Annotated[str | None, Field(min_length=1), Unset] = Field(
        default=None, description="start from these trained weights (a shipped name or a .safetensors file)"
    )
    teacher: Annotated[str | None, Field(min_length=1), Unset] = Field(
        default=None,
        description="learn what these trained weights predict, instead of what is true: distillation",
    )
    accumulate: int = Field(
        default=1, ge=1, description="parts that a process cuts its share of a batch into: less memory"
    )
    tf32: bool = Field(default=True, description="products of float32 in TF32 on NVIDIA GPUs: three digits")
    deterministic: bool = Field(
        default=False, description="only algorithms that give the same bits each time; slower on GPUs"
    )

    @model_validator(mode="after")
    def _trains_or_is_trained(self) -> Self:
        if self.steps == 0 and self.init_from is None:
            raise ValueError("training.steps: 0 trains nothing, which takes weights from training.init_from")
        return self


SECTIONS: dict[str, Any] = {
    "diffusion": Diffusion,
    "context": Context,
    "growing": Growing,
    "training": Training,
}

# A model's and a data set's plain numbers are counts and probabilities. Others say their range themselves.
RANGES: dict[Any, Any] = {
    int: Annotated[int, Field(ge=1, le=2**28)],  # a product of two is still a number of 64 bits
    int | None: Annotated[int | None, Field(ge=1, le=2**28), Unset],
    float: Annotated[float, Field(gt=0, le=1)],
    float | None: Annotated[float | None, Field(gt=0), Unset],  # a measure
}


def _table_of(kind: str, build: type) -> Any:
    """The type of a [model] or [data] table: `kind`, and the arguments of its class."""
    hints = get_type_hints(build.__init__, include_extras=True)  # type: ignore[misc]
    keys: dict[str, Any] = {"kind": Literal[kind]}
    for name, parameter in arguments(build).items():
        hint = RANGES.get(hints[name], hints[name])
        if hints[name] is int and parameter.default == 0:
            hint = Annotated[int, Field(ge=0)]
        keys[name] = Required[hint] if parameter.default is parameter.empty else hint
    return with_config(CHECKED)(TypedDict(kind, keys, total=False))  # type: ignore[operator]


TABLES = {
    section: {kind: _table_of(kind, build) for kind, build in kinds.items()}
    for section, kinds in KINDS.items()
}


def _table(section: str) -> GetPydanticSchema:
    union: Any = Union[tuple(TABLES[section].values())]  # noqa: UP007
    by_kind = Annotated[union, Field(discriminator="kind")]
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(by_kind))


def _section(name: str) -> BeforeValidator:
    # Strictness would take instances only.
    build = SECTIONS[name]
    return BeforeValidator(lambda value: build(**value) if isinstance(value, Mapping) else value)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Experiment:
    """Everything that decides a training run."""

    name: str = Field(
        pattern=NAME, description="of the run's folder and its weights: letters, digits, '.', '_' and '-'"
    )
    model: Annotated[Mapping[str, Any], _table("model")] = Field(
        default_factory=lambda: {"kind": "diff-nca"},
        description="kind (a key of `MODELS`) and the arguments of that class",
    )
    data: Annotated[Mapping[str, Any], _table("data")] = Field(
        default_factory=lambda: {"kind": "tissue"},
        description="kind (a key of `DATASETS`) and the arguments of that class; unused by growing automata",
    )
    diffusion: Annotated[Diffusion, _section("diffusion")] = Diffusion()
    context: Annotated[Context, _section("context")] = Context()
    growing: Annotated[Growing, _section("growing")] = Growing()
    training: Annotated[Training, _section("training")] = Training()

    @model_validator(mode="after")
    def _pool_holds_a_batch(self) -> Self:
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
            raise ExperimentError(message(error)) from None

    @classmethod
    def read(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
        """Read a TOML file, or a shipped experiment by its name; `overrides` has dotted keys.

        Raises:
            ExperimentError: no such experiment or base, not TOML, or a bad key or value.
        """
        return cls.from_layers([*layers_of(source), ("overrides", nested(overrides or {}))])

    @classmethod
    def from_layers(cls, layers: Sequence[Layer]) -> Experiment:
        """What the layers of a file say together, checked."""
        return cls.from_dict(merged(layers))

    def to_dict(self) -> dict[str, Any]:
        """The experiment as nested plain values; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The experiment as TOML; reading it back gives an equal experiment."""
        name, sections = self.name, {k: v for k, v in self.to_dict().items() if k != "name"}
        known = {
            section: {key: value for key, value in values.items() if value is not None}
            for section, values in sections.items()
        }
        return tomli_w.dumps({"name": name, **known})

    def spelt_out(self) -> dict[str, Any]:
        """All settings as plain data, with what model and data take by default: equal runs are equal here."""
        settings = self.to_dict()
        for part, kinds in KINDS.items():
            taken = arguments(kinds[settings[part]["kind"]]).items()
            defaults = {name: each.default for name, each in taken if each.default is not each.empty}
            settings[part] = defaults | settings[part]
        return settings

    def build_model(self) -> nn.Module:
        """The untrained model: a [`Denoiser`][], or of kind vnca or growing-nca that class."""
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


def fields() -> dict[str, tuple[str, str]]:
    """Every dataclass key by dotted name: its values in words, and what it means."""
    return {
        f"{section}.{key}": (in_words(field), field.description or "")
        for section, build in SECTIONS.items()
        for key, field in build.__pydantic_fields__.items()
    }


def texts() -> set[str]:
    """The dotted keys whose values are text, of any kind of model and data."""
    hints = {
        f"{section}.{key}": field.annotation
        for section, build in SECTIONS.items()
        for key, field in build.__pydantic_fields__.items()
    }
    for section, tables in TABLES.items():
        for table in tables.values():
            hints |= {f"{section}.{key}": hint for key, hint in table.__annotations__.items()}
    return {"name"} | {key for key, hint in hints.items() if hint in (str, str | None, Required[str])}


def in_words(field: FieldInfo) -> str:
    """The values that a field takes: `float >= 0, < 1`."""
    if get_origin(field.annotation) is Literal:
        return " or ".join(map(str, get_args(field.annotation)))
    kinds = get_args(field.annotation) or (field.annotation,)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    number = ", ".join([" ".join([kinds[0].__name__, *limits[:1]]), *limits[1:]])
    return f"{number} or none" if NoneType in kinds else number


def message(error: ValidationError, known: Sequence[str] = ()) -> str:
    """What is wrong, in one line: the key, its value, and what would be right.

    `known` are the keys that there are, by default those of an experiment.
    """
    first = min(error.errors(include_url=False), key=lambda found: found["type"] == "missing")
    problem, value = first["type"], first["input"]
    if problem == "value_error":  # from a validator above, which names its keys
        return str(first["ctx"]["error"])
    path = [str(part) for part in first["loc"]]
    if not known:
        known = _known(path)
    if path[0] in TABLES and len(path) > 1:
        del path[1]  # the kind
    name = ".".join(path)
    match problem:
        case "unexpected_keyword_argument" | "extra_forbidden":
            close = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            return f"{name}: unknown key; {hint}"
        case "union_tag_invalid" | "union_tag_not_found":
            return (
                f"{name}.kind: {str(value.get('kind'))!r} is unknown; choose one of {', '.join(KINDS[name])}"
            )
        case "dataclass_exact_type" | "model_attributes_type":
            return f"{name}: must be a table, [{name}]"
        case "missing":
            return f"{name}: missing"
        case "literal_error":
            choices = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            return f"{name}: {value!r} is not one of {choices}"
        case "int_type" | "float_type" | "bool_type" | "string_type":
            kind = problem.removesuffix("_type").replace("string", "str")
            return f"{name}: {value!r} is not of type {kind}"
        case "string_pattern_mismatch":
            return f"{name}: {value!r} is no name; use letters, digits, '_', and further on '.' and '-'"
    return f"{name}: {value!r} {first['msg'].split(' ', 1)[1]}"


def _known(path: Sequence[str]) -> list[str]:
    section, *inner = path
    if section in TABLES and inner:
        return [key for key in TABLES[section][inner[0]].__annotations__ if key != "kind"]
    build: Any = SECTIONS[section] if inner else Experiment
    return list(build.__pydantic_fields__)
