"""Which extractors of features an evaluation uses (chapter 5)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from nca_lib.evaluation.extractors import efficientnet
from nca_lib.evaluation.extractors.efficientnet import EfficientNetLite0
from nca_lib.evaluation.extractors.extractor import Extractor
from nca_lib.evaluation.extractors.inception import Inception, inception_path
from nca_lib.evaluation.extractors.small import SmallFeatures


def default_extractors(count: int | None = None, *, inception: str | Path | None = None) -> list[Extractor]:
    """Every extractor that is there: the small one, EfficientNet-Lite0 and Inception.

    Args:
        count: leave out those whose features are too many for a covariance of so many images; where all are,
            the small one stays.
        inception: the file of Inception's weights; by default, Inception is used where torch-fidelity and its
            weights are.

    Raises:
        WeightsError: a file of weights is not there or not the right one.
    """
    found: list[Extractor] = [SmallFeatures.shipped()]
    if efficientnet.installed():
        found.append(EfficientNetLite0())
    if inception or (find_spec("torch_fidelity") and inception_path().is_file()):
        found.append(Inception(inception))
    return [e for e in found if count is None or e.num_features < count] or found[:1]
