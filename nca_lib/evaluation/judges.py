"""Judges read single images, without comparing sets: drawn faces' rules, digits' classes (chapter 5)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nca_lib.data.digits import Digits
from nca_lib.evaluation import coherence
from nca_lib.extras import extra


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
