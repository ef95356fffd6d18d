"""Experiments: what decides a training, the training itself, and matrices of both (chapter 5).

`training` and `matrix` are imported by name: weights, which they need, need the settings here.
"""

from nca_lib.errors import ExperimentError
from nca_lib.experiments.settings import Experiment

__all__ = ["Experiment", "ExperimentError"]
