"""A small trained model on disk, for canvases of any kind."""

import pytest
import torch

from nca_lib import weights
from nca_lib.experiments.settings import Experiment


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The path of a Diff-NCA of two steps, with random weights and masks."""
    experiment = Experiment.from_dict(
        {
            "name": "tiny",
            "model": {
                "kind": "diff-nca",
                "channels": 24,
                "hidden": 16,
                "steps": 2,
                "position": False,
                "encoding": "sinusoidal",
                "update_probability": 0.8,
            },
            "data": {"kind": "tissue", "size": 32},
            "diffusion": {"timesteps": 20, "target": "v"},
        }
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(experiment.build_model(), path, {"experiment": experiment.to_dict()})
    return str(path)
