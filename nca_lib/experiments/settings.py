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
dataclass below. Unknown keys and values of the wrong type are refused by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

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
from nca_lib.errors import ExperimentError
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


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The diffusion process; unused by growing automata."""

    schedule: ScheduleName = "cosine"
    """noise schedule: cosine ends in pure noise, linear (the older scripts) does not"""
    timesteps: int = 300
    """T, the number of noise levels"""
    target: Target = "epsilon"
    """what the network predicts: epsilon as published; v keeps colours steady where noise is strong"""
    weighting: Weighting = "uniform"
    """of the loss over noise levels: uniform as published, or min_snr (Hang et al. 2023, gamma = 5)"""


@dataclass(frozen=True, kw_only=True)
class Growing:
    """What a growing automaton is trained for; unused by diffusion models."""

    regime: Literal["grow", "persist", "regenerate"] = "regenerate"
    """grow from the seed only; persist adds the sample pool; regenerate adds damage to it"""
    picture: str = "ladybird"
    """the target: the name of a built-in picture, or the path of an RGBA image"""
    size: int = 40
    """height and width of the grid, cells"""
    pool: int = 256
    """states kept in the sample pool"""
    min_rollout: int = 64
    """fewest automaton steps between seed and loss"""
    max_rollout: int = 96
    """most automaton steps between seed and loss"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long, how fast, and what is written on the way."""

    steps: int = 200_000
    """optimiser steps"""
    minutes: float | None = None
    """stop by the clock instead, with the learning rate scaled to it"""
    batch: int = 16
    """images per step"""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, as published; or muon on kernels and adam on the rest, which learns from fewer images"""
    learning_rate: float = 1.6e-3
    """peak learning rate of Adam"""
    muon_learning_rate: float = 0.02
    """peak learning rate of Muon"""
    beta2: float = 0.99
    """Adam's second-moment decay (the first is 0.9)"""
    decay: Literal["cosine", "reference"] = "cosine"
    """cosine to zero after a warm-up; or 0.9999 per step, as published"""
    warmup: int = 100
    """steps over which the cosine schedule's learning rate rises from zero"""
    clip: float = 1.0
    """largest norm of the gradient"""
    ema: float = 0.999
    """decay of the averaged weights, warmed up as min(decay, (1+n)/(10+n)); published: 0.99"""
    bf16: bool = True
    """mixed precision where the device computes bf16 natively"""
    compile: bool = True
    """compile the automaton's step with torch.compile where a C++ compiler is present"""
    seed: int = 0
    """of initialisation, data order and noise"""
    workers: int = 0
    """processes that read images; 0 reads in the training process"""
    log_every: int = 50
    """steps between progress lines and TensorBoard points"""
    save_every: int = 500
    """steps between checkpoints"""
    sample_every: int = 2000
    """steps between sample grids"""
    snapshots: int = 0
    """also keep the averaged weights at 1/2, 1/4, ... of the steps, this often"""
    init_from: str | None = None
    """start from these trained weights (a shipped name or a .safetensors file)"""
    teacher: str | None = None
    """learn what these trained weights predict, instead of what is true: distillation"""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a training run."""

    name: str
    """names the run's folder and its weights"""
    model: Mapping[str, Any] = field(default_factory=lambda: {"kind": "diff-nca"})
    """kind (a key of `MODELS`) and the arguments of that class"""
    data: Mapping[str, Any] = field(default_factory=lambda: {"kind": "tissue"})
    """kind (a key of `DATASETS`) and the arguments of that class; unused by growing automata"""
    diffusion: Diffusion = field(default_factory=Diffusion)
    growing: Growing = field(default_factory=Growing)
    training: Training = field(default_factory=Training)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Experiment:
        """Check a nested mapping and build the experiment.

        Raises:
            ExperimentError: a key is unknown or its value of the wrong type.
        """
        values = dict(mapping)
        for section in ("model", "data"):
            if section in values:
                _check_kind(section, values[section], MODELS if section == "model" else DATASETS)
        for section, kind in (("diffusion", Diffusion), ("growing", Growing), ("training", Training)):
            if section in values:
                _check(kind, values[section], section)
                values[section] = kind(**values[section])
        _check(cls, values, "")
        if "name" not in values:
            raise ExperimentError("name: missing; an experiment needs a name")
        return cls(**values)

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
        lines = [f"name = {json.dumps(self.name)}"]
        for section, values in self.to_dict().items():
            if section != "name":
                lines += ["", f"[{section}]"]
                lines += [
                    f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None
                ]
        return "\n".join(lines) + "\n"

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


def fields() -> dict[str, tuple[Any, str]]:
    """Every dataclass key by dotted name: its type and what it means (for the command line's help)."""
    found: dict[str, tuple[Any, str]] = {}
    for section, kind in (("diffusion", Diffusion), ("growing", Growing), ("training", Training)):
        hints = get_type_hints(kind)
        meanings = _meanings(kind)
        found |= {f"{section}.{key}": (hints[key], meanings[key]) for key in hints}
    return found


def _meanings(kind: type) -> dict[str, str]:
    # The string under each field is its documentation; it lives in the source only.
    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    pairs = itertools.pairwise(lines)
    return {
        line.split(":")[0]: below.strip('"')
        for line, below in pairs
        if ": " in line and below.startswith('"""')
    }


def _check_kind(section: str, values: Any, known: Mapping[str, type]) -> None:
    if not isinstance(values, Mapping):
        raise ExperimentError(f"{section}: must be a table, [{section}]")
    kind = str(values.get("kind"))
    if kind not in known:
        raise ExperimentError(f"{section}.kind: {kind!r} is unknown; choose one of {', '.join(known)}")
    options = {key: value for key, value in values.items() if key != "kind"}
    build: Any = known[kind]
    _check(build.__init__, options, section, hidden=("return", "split"))


def _check(target: Callable[..., Any], values: Any, where: str, hidden: tuple[str, ...] = ()) -> None:
    if not isinstance(values, Mapping):
        raise ExperimentError(f"{where}: must be a table, [{where}]")
    hints = {key: hint for key, hint in get_type_hints(target).items() if key not in hidden}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(hints)}"
            raise ExperimentError(f"{name}: unknown key; {hint}")
        if not _fits(value, hints[key]):
            if get_origin(hints[key]) is Literal:
                raise ExperimentError(f"{name}: {value!r} is not one of {', '.join(get_args(hints[key]))}")
            expected = getattr(hints[key], "__name__", str(hints[key])).replace("typing.", "")
            raise ExperimentError(f"{name}: {value!r} is not of type {expected}")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is NoneType:
        return value is None
    return isinstance(value, hint)
