"""Trained weights: safetensors beside a JSON record of how they came about.

`load("diff-nca-tissue")` reads what ships with the library; `load("runs/mine/model.safetensors")` reads what
you trained. No pickle is ever loaded, except another implementation's checkpoint, through
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from nca_lib.diff_nca import DiffNCA
from nca_lib.errors import WeightsError
from nca_lib.experiments.settings import Experiment
from nca_lib.files import write_atomically
from nca_lib.fourier import FourierDiffNCA


def save(model: nn.Module, path: str | Path, record: Mapping[str, Any]) -> None:
    """Write `path` (.safetensors) and the record beside it (.json), each atomically.

    `record` must hold the `experiment` (as a dict); sha256, parameter count and library version are added.
    """
    from nca_lib import __version__

    blob = to_safetensors({name: value.contiguous() for name, value in model.state_dict().items()})
    full = {
        **record,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "library_version": __version__,
    }
    path = Path(path)
    write_atomically(path, blob)
    write_atomically(path.with_suffix(".json"), json.dumps(full, indent=2).encode() + b"\n")


def record(name: str | Path) -> dict[str, Any]:
    """The record of shipped weights, or of a .safetensors file.

    Raises:
        WeightsError: there are no such weights, or no record beside them.
    """
    path = _locate(name).with_suffix(".json")
    if not path.is_file():
        raise WeightsError(f"{path} is missing; weights are read together with their record")
    return json.loads(path.read_text())


def load(name: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Load a trained model, ready to use, by shipped name or from a .safetensors file.

    Returns:
        A [`Denoiser`][nca_lib.diffusion.Denoiser] or a [`GrowingNCA`][nca_lib.automaton.GrowingNCA], in
        evaluation mode, gradients off.

    Raises:
        WeightsError: no such weights, or the file is not the one that its record describes.
    """
    described = record(name)
    blob = _locate(name).read_bytes()
    if hashlib.sha256(blob).hexdigest() != described["sha256"]:
        raise WeightsError(
            f"{name}: the file's sha256 differs from its record's; it is damaged or was replaced"
        )
    model = Experiment.from_dict(described["experiment"]).build_model()
    model.load_state_dict(parse_safetensors(blob))
    return model.to(device).eval().requires_grad_(False)


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
