"""What an evaluation sees in an image: one extractor of features in each module."""

from nca_lib.evaluation.extractors.choose import default_extractors
from nca_lib.evaluation.extractors.efficientnet import EfficientNetLite0
from nca_lib.evaluation.extractors.extractor import Extractor, to_pixels
from nca_lib.evaluation.extractors.inception import Inception
from nca_lib.evaluation.extractors.small import SmallFeatures

__all__ = ["EfficientNetLite0", "Extractor", "Inception", "SmallFeatures", "default_extractors", "to_pixels"]
