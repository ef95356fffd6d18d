"""Trained weights: safetensors files that hold a record of how they came about.

`load("tissue-diff-nca")` reads what ships with the library; `load("runs/mine/model.safetensors")` reads what
you trained. No pickle is ever loaded, except another implementation's checkpoint, through
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nca_lib.cascade import Cascade
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser
from nca_lib.errors import WeightsError
from nca_lib.experiments.settings import Experiment
from nca_lib.files import write_atomically
from nca_lib.fourier import FourierDiffNCA


def save(model: nn.Module, path: str | Path, record: Mapping[str, Any]) -> None:
    """Write `path` (.safetensors) with the record in it, atomically; and a copy of the record beside it.

    How long the training took is in the copy only: equal trainings write equal files.

    `record` must hold the `experiment` (as a dict); a hash of the tensors, the parameter count and the
    library's version are added.

    Raises:
        OutputError: a file cannot be written.
    """
    from nca_lib import __version__

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    full = {
        **record,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tensors_sha256": digest(tensors),
        "library_version": __version__,
    }
    path, within = Path(path), {key: value for key, value in full.items() if key != "training_seconds"}
    blob = to_safetensors(tensors, metadata={"record": json.dumps(within, indent=2)})
    write_atomically(path, blob)
    copy = full | {"sha256": hashlib.sha256(blob).hexdigest()}
    write_atomically(path.with_suffix(".json"), json.dumps(copy, indent=2).encode() + b"\n")


def join(levels: Sequence[str | Path], path: str | Path) -> None:
    """Write a [`Cascade`][nca_lib.cascade.Cascade] of trained models, the coarsest first, as one file.

    Each but the first must have been trained with `context.factor`. One that was trained on `tissue-scales`
    can be several of them, and is told the scale of each. The record is the finest level's, with all levels'
    under `levels`; steps, images and seconds are sums.

    Raises:
        WeightsError: no such weights, no levels of one cascade (one is a cascade itself, the first reads a
            context, another one reads other channels than it is told), or another suffix than .safetensors.
        OutputError: the file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise WeightsError(f"{path} must end in .safetensors")
    records = [record(level) for level in levels]
    for level, each in zip(levels, records, strict=True):
        if "levels" in each:
            raise WeightsError(f"{level} is itself a cascade; give the levels that it was joined from")
    sums = ("steps", "images_seen", "training_seconds")
    whole = records[-1] | {key: sum(each.get(key) or 0 for each in records) for key in sums}
    whole["experiment"] = whole["experiment"] | {"name": Path(path).stem}
    model = _cascade(path, records)
    placed = zip(reversed(_places(len(levels))), levels, strict=True)
    model.load_state_dict(
        {place + key: value for place, level in placed for key, value in load(level).state_dict().items()}
    )
    within = [{key: value for key, value in each.items() if key not in _OF_FILE} for each in records]
    save(model, path, {key: value for key, value in whole.items() if key != "sha256"} | {"levels": within})


_OF_FILE = {"training_seconds", "sha256", "tensors_sha256", "library_version"}


def _places(count: int) -> list[str]:
    """Where the levels of a cascade lie in its state dict, the finest first."""
    return ["below." * depth for depth in range(count)]


def _cascade(name: str | Path, records: Sequence[Mapping[str, Any]]) -> nn.Module:
    experiments = [Experiment.from_dict(each["experiment"]) for each in records]
    if len(experiments) < 2:
        raise WeightsError(f"{name}: a cascade has at least two levels")
    model, *levels = [experiment.build_model() for experiment in experiments]
    if getattr(model, "context_channels", 0):
        raise WeightsError(
            f"{name}: {experiments[0].name} reads {model.context_channels} channels of context; "
            "the coarsest level, which comes first, reads none"
        )
    factors = [experiment.context.factor or 1 for experiment in experiments[1:]]
    for n, (experiment, level) in enumerate(zip(experiments[1:], levels, strict=True), start=1):
        if experiment.context.factor is None or not isinstance(level, Denoiser):
            raise WeightsError(
                f"{name}: {experiment.name} was not trained with context.factor; it is told nothing"
            )
        scale = 1 / math.prod(factors[n:]) if experiment.data["kind"] == "tissue-scales" else None
        if level.image_channels != model.image_channels:
            raise WeightsError(
                f"{name}: {experiment.name} draws {level.image_channels} channels, the level below it "
                f"{model.image_channels}; they must be as many"
            )
        told = level.image_channels + 1 + (scale is not None)
        if level.context_channels != told:
            raise WeightsError(
                f"{name}: {experiment.name} reads {level.context_channels} channels of context; "
                f"as a level of a cascade it is told {told}"
            )
        model = Cascade(model, level, experiment.context.factor, scale=scale)  # type: ignore[arg-type]
    return model


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of tensors' names and values, in the order of their names."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        values = value.cpu().contiguous().flatten().view(torch.uint8)  # NumPy knows no bfloat16
        found.update(name.encode() + values.numpy().tobytes())
    return found.hexdigest()


def record(name: str | Path) -> dict[str, Any]:
    """The record of shipped weights, or of a .safetensors file, with the file's `sha256`.

    Raises:
        WeightsError: there are no such weights, or no record of them.
    """
    return _read(name)[1]


def load(name: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a trained model, ready to use, by shipped name or from a .safetensors file.

    Nothing in the file is trusted: its tensors must be finite, and those of the model that its record
    describes; no payload is executed, nothing is downloaded.

    Returns:
        A [`Denoiser`][nca_lib.diffusion.Denoiser] (which a cascade is, too) or a
        [`GrowingNCA`][nca_lib.automaton.GrowingNCA], in evaluation mode, gradients off.

    Raises:
        WeightsError: no such weights, or the file is not the one that its record describes.
    """
    blob, described = _read(name)
    try:
        tensors = parse_safetensors(blob)
    except (SafetensorError, KeyError) as error:  # KeyError: numbers of a kind that torch does not have
        raise WeightsError(f"{name}: not a safetensors file, or damaged ({error})") from error
    if "tensors_sha256" in described:
        same = described["tensors_sha256"] == digest(tensors)
    else:  # of a pair of files, as they were written before
        same = described.get("sha256") == hashlib.sha256(blob).hexdigest()
    if not same:
        raise WeightsError(
            f"{name}: the file's sha256 differs from its record's; it is damaged or was replaced"
        )
    try:
        with _AtMost(max((value.numel() for value in tensors.values()), default=0)):
            if "levels" in described:
                model = _cascade(name, described["levels"])
            else:
                model = Experiment.from_dict(described["experiment"]).build_model()
    except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError) as error:
        raise WeightsError(f"{name}: its record describes no model that can be built: {error}") from error
    _check_tensors(name, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.to(device).eval().requires_grad_(False)


class _AtMost(TorchFunctionMode):
    """Refuses layers with more than `values` weights each, before memory is taken for them."""

    def __init__(self, values: int):
        super().__init__()
        self.values = values

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.empty:  # by which every layer makes its weights
            size = args if isinstance(args[0], int) else args[0]
            if math.prod(size) > self.values:
                raise WeightsError(
                    f"a layer of {math.prod(size):,} weights; the file's largest has {self.values:,}"
                )
        return function(*args, **(kwargs or {}))


def _check_tensors(name: str | Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key in sorted(tensors.keys() | wanted.keys()):
        if key not in tensors or key not in wanted:
            problem = "is missing" if key in wanted else "is none of the model that its record describes"
            raise WeightsError(f"{name}: the tensor {key!r} {problem}")
        found, expected = (f"{x.dtype} {tuple(x.shape)}" for x in (tensors[key], wanted[key]))
        if found != expected:
            raise WeightsError(f"{name}: the tensor {key!r} is {found} instead of {expected}")
        if not tensors[key].isfinite().all():
            raise WeightsError(f"{name}: the tensor {key!r} holds values that are not finite")


def _read(name: str | Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a file of weights, and its record: the one within it, else the one beside it."""
    path = _locate(name)
    blob = _bytes(path)
    # A safetensors file begins with the length of its header, 8 bytes, and its header, JSON.
    metadata = _json(blob[8 : 8 + int.from_bytes(blob[:8], "little")], path).get("__metadata__", {})
    beside = path.with_suffix(".json")
    if isinstance(metadata, dict) and "record" in metadata:
        described = _json(metadata["record"], path)
        described |= {"sha256": hashlib.sha256(blob).hexdigest(), "training_seconds": None}
        with suppress(OSError, WeightsError):
            copy = _json(beside.read_bytes(), beside)
            if copy.get("sha256") == described["sha256"]:
                described["training_seconds"] = copy.get("training_seconds")
    elif beside.is_file():
        described = _json(_bytes(beside), beside)
    else:
        raise WeightsError(f"{beside} is missing, and {path} holds no record of itself")
    if not isinstance(described.get("experiment"), dict):
        raise WeightsError(f"{path}: the record has no 'experiment', which says what to build")
    return blob, described


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error


def _json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged; its record is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: damaged; its record is a {type(found).__name__}, not an object")
    return found


def names() -> list[str]:
    """The names of the weights that ship with the library."""
    folder = resources.files("nca_lib") / "pretrained"
    found = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".safetensors") for name in found if name.endswith(".safetensors"))


def _locate(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix != ".safetensors":
        path = Path(str(resources.files("nca_lib") / "pretrained" / f"{name}.safetensors"))
    if not path.is_file():
        known = ", ".join(names())
        raise WeightsError(f"no weights {str(name)!r}; give a .safetensors file or one of: {known}")
    return path


# The public implementation's names and ours; its two stages end in "rgb" (image) and "fourier" (spectrum).
_REFERENCE_LAYERS = {
    "p0_{}": "perception",
    "fc0_{}": "widen",
    "fc1_{}": "narrow",
    "{embedding}.0": "embedding.0",
    "{embedding}.2": "embedding.2",
    "embedding_map_1_{}.0": "modulate_seen.0",
    "embedding_map_1_{}.2": "modulate_seen.2",
    "embedding_map_2_{}.0": "modulate_hidden.0",
    "embedding_map_2_{}.2": "modulate_hidden.2",
}
_REFERENCE_PARAMETERS = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
    "bias": "bias",
}
_IMAGE_STAGE = ("rgb", "embedding_network_rgb", "cell")
_SPECTRUM_STAGE = ("fourier", "embedding_net_fourier", "spectrum_cell")


def from_reference(state_dict: Mapping[str, Tensor], *, steps: int, update_probability: float) -> DiffNCA:
    """A model from a state dict of the authors' public implementation.

    That implementation exchanges height and width inside; the 3x3 kernels are exchanged back here, so that
    the model takes (B, 3, H, W) like any other. (Position needs no exchange: [`Cell`][] asks for py first.)

    Args:
        state_dict: names `p0_rgb.weight_g`, ...; read a checkpoint by `torch.load(path, weights_only=True)`.
        steps: K, the automaton steps per call (not stored in the checkpoint).
        update_probability: chance that a cell DOES update (not stored either).

    Returns:
        A [`FourierDiffNCA`][] if both stages' names are there, a [`DiffNCA`][] if only the image stage's are.

    Raises:
        WeightsError: names are missing or unknown.
    """
    names = _reference_names(*_IMAGE_STAGE)
    both = any("fourier" in name for name in state_dict)
    if both:
        names |= _reference_names(*_SPECTRUM_STAGE)
    if set(state_dict) != set(names):
        missing, unknown = sorted(set(names) - set(state_dict)), sorted(set(state_dict) - set(names))
        raise WeightsError(f"not a checkpoint of the public code: missing {missing}, unknown {unknown}")
    channels, hidden = state_dict["p0_rgb.bias"].shape[0], state_dict["fc0_rgb.bias"].shape[0]
    kind = FourierDiffNCA if both else DiffNCA
    model = kind(channels, hidden, steps, update_probability=update_probability)
    translated = {}
    for theirs, ours in names.items():
        value = torch.as_tensor(state_dict[theirs])
        # A 3x3 kernel's last axis runs along H there. (A gain, one number a filter, has nothing to exchange.)
        translated[ours] = value.transpose(2, 3) if value.ndim == 4 else value
    model.load_state_dict(translated)
    return model.eval()


def _reference_names(stage: str, embedding: str, cell: str) -> dict[str, str]:
    return {
        f"{layer.format(stage, embedding=embedding)}.{theirs}": f"{cell}.{ours}.{name}"
        for layer, ours in _REFERENCE_LAYERS.items()
        for theirs, name in _REFERENCE_PARAMETERS.items()
    }
