"""Judges read single images, without comparing sets (chapter 5): faces' rules, digits' classes, stains."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nca_lib.data.digits import Digits
from nca_lib.data.images import Images
from nca_lib.evaluation import coherence
from nca_lib.extras import extra

STAINED = ("tissue", "tissue-scales", "slides", "bcss")  # kinds of data that are stained tissue


class Judge(Protocol):
    """Reads a property of the data from single images, without comparing sets."""

    name: str
    columns: int

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to (B, columns) numbers whose means over all images are what counts."""
        ...

    def summary(self, means: Tensor) -> dict[str, Any]:
        """The means, as named values."""
        ...


class FaceJudge:
    """The fraction of portraits that keep each of the drawn faces' global rules, and all of them."""

    name = "coherence"

    def __init__(self, size: int):
        self.rules = list(coherence.coherence(torch.zeros(1, 3, size, size)))
        self.columns = len(self.rules)

    def __call__(self, images: Tensor) -> Tensor:
        """Which rules each image keeps, (B, rules), 0 or 1."""
        return torch.stack(list(coherence.coherence(images).values()), 1).float()

    def summary(self, means: Tensor) -> dict[str, Any]:
        """The fraction of images that keep each rule."""
        return dict(zip(self.rules, means.tolist(), strict=True))


class DigitJudge:
    """How surely, and as which digits, a classifier of real digits reads the images.

    A support vector machine on 8x8 pixels (the training split, resampled as the images are), its
    probabilities from Platt scaling. `classes` counts the digits read in more than 2% of the images. The
    machine has seen nothing but digits, and may read other things (white noise: a 1) with confidence: read
    its numbers beside the distances.
    """

    name = "digits"
    columns = 11  # the confidence, and a count for each digit

    def __init__(self, size: int):
        with extra("evaluation"):
            from sklearn.calibration import CalibratedClassifierCV
            from sklearn.svm import SVC

        real = Digits(size, "train")
        machine = CalibratedClassifierCV(SVC(gamma="scale", C=10), method="sigmoid", cv=5, ensemble=False)
        self.classifier = machine.fit(self._pixels(real.images), real.labels.numpy())

    def _pixels(self, images: Tensor) -> np.ndarray:
        small = nn.functional.interpolate(
            images.mean(1, keepdim=True), size=(8, 8), mode="bicubic", antialias=True
        )
        return small.flatten(1).cpu().numpy()

    def __call__(self, images: Tensor) -> Tensor:
        """The highest class probability and the class as one of ten indicators, (B, 11)."""
        chances = torch.from_numpy(self.classifier.predict_proba(self._pixels(images))).float()
        sure, digit = chances.max(1)
        return torch.cat([sure[:, None], nn.functional.one_hot(digit, 10).float()], 1)

    def summary(self, means: Tensor) -> dict[str, Any]:
        """Mean confidence, the number of classes with more than 2% of the images, and their fractions."""
        fractions = means[1:].tolist()
        return {
            "confidence": float(means[0]),
            "classes": sum(fraction > 0.02 for fraction in fractions),
            "class_fractions": fractions,
        }


class TissueJudge:
    """Stains and nuclei of tissue, as [`tissue_statistics`][nca_lib.evaluation.histology.tissue_statistics].

    `haematoxylin` and `dab` are fractions of the pixels (DAB's means nothing where another stain was used),
    `nuclei` their number per 1,000 pixels, `nucleus_area` their mean area in pixels, of those that touch no
    edge.

    Args:
        train: real images, whose first 256 set the thresholds of the stains.
    """

    name = "tissue"
    columns = 5  # both fractions, nuclei, and of the whole ones the sum of areas and the number

    def __init__(self, train: Images):
        from nca_lib.evaluation.histology import fit_thresholds

        images = [train.image(i % len(train), np.random.default_rng([0, i])) for i in range(256)]
        self.thresholds = fit_thresholds(torch.stack(images)[:, : train.channels])

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 5)."""
        from nca_lib.evaluation.histology import tissue_statistics

        rows = []
        for image in images.cpu():
            found = tissue_statistics(image[None], self.thresholds)
            areas = found["nucleus_area"]
            counted = [found[key].item() for key in ("haematoxylin", "dab", "nuclei")]
            rows.append([*counted, areas.sum().item(), len(areas)])
        return torch.tensor(rows)

    def summary(self, means: Tensor) -> dict[str, Any]:
        """Both fractions, nuclei per 1,000 pixels, and their mean area; 0 where there are none."""
        haematoxylin, dab, nuclei, area, whole = means.tolist()
        mean_area = area / whole if whole else 0.0
        return {"haematoxylin": haematoxylin, "dab": dab, "nuclei": nuclei, "nucleus_area": mean_area}


def judge_of(kind: str, train: Images, stained: bool = False) -> Judge | None:
    """The judge of a kind of data, if there is one; `stained`: its images are stained tissue anyway.

    There is none of faces that are too small for their rules to be read.
    """
    if kind == "faces":
        return FaceJudge(train.size) if train.size >= coherence.SIZE else None
    if kind == "digits":
        return DigitJudge(train.size)
    return TissueJudge(train) if stained or kind in STAINED else None
