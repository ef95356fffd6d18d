"""The kinds of models and of data sets that a settings file can name, and the arguments that each takes."""

from __future__ import annotations

import inspect
import re

from torch import nn

from nca_lib.automaton import GrowingNCA
from nca_lib.baselines import VNCA, UNet
from nca_lib.data.bcss import BCSS
from nca_lib.data.celeba import CelebA
from nca_lib.data.conditional import DigitsByClass, FacesByAttributes
from nca_lib.data.digits import Digits
from nca_lib.data.faces import Faces
from nca_lib.data.folder import Folder
from nca_lib.data.images import Images
from nca_lib.data.slides import Slides
from nca_lib.data.tissue import Tissue, TissueScales
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import MLP
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
    "tissue-scales": TissueScales,
    "digits": Digits,
    "faces": Faces,
    "celeba": CelebA,
    "bcss": BCSS,
    "folder": Folder,
    "slides": Slides,
    "digits-by-class": DigitsByClass,
    "faces-by-attributes": FacesByAttributes,
}
KINDS: dict[str, dict[str, type]] = {"model": {**MODELS}, "data": {**DATASETS}}


def arguments(build: type) -> dict[str, inspect.Parameter]:
    """What a kind's class takes, without the split, which is no setting."""
    parameters = inspect.signature(build).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "split"}


def meanings(build: type) -> dict[str, str]:
    """What a class says of each of its arguments under `Args:`, as plain text."""
    _, _, section = inspect.cleandoc(build.__doc__ or "").partition("\nArgs:\n")
    items = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section.partition("\n\n")[0], re.MULTILINE)
    plain = re.compile(r"\[`([^`]+)`\]\[[^]]*\]|`")
    return {name: plain.sub(r"\1", " ".join(text.split())) for name, text in items}
