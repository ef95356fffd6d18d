"""Experiments: what decides a training, the training itself, and matrices of both (chapter 5)."""

from nca_lib.experiments.settings import Experiment, ExperimentError

__all__ = ["Experiment", "ExperimentError"]
