"""Our denoisers in Hugging Face's forms, and theirs in ours (the extra `hub`).

    HubDenoiser.of("tissue-diff-nca").save_pretrained("folder")     # or push_to_hub("somebody/tissue")
    denoiser = HubDenoiser.from_pretrained("folder")                # samplers and edits take it
    images = pipeline(denoiser, (64, 64))(num_inference_steps=50, use_clipped_model_output=True).images
    denoiser = from_pipeline(DDPMPipeline.from_pretrained("google/ddpm-cifar10-32"))

Only `push_to_hub`, and `from_pretrained` with the name of a repository, use a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nca_lib import weights
from nca_lib.diffusion import Denoiser, NoiseSchedule, Target
from nca_lib.errors import UsageError, WeightsError
from nca_lib.experiments.settings import Experiment
from nca_lib.extras import extra

with extra("hub"):
    from diffusers import DDIMPipeline, DDIMScheduler
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download

FILE = "model.safetensors"
# What they call what a network predicts, and what we do.
PREDICTIONS: dict[str, Target] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


class HubDenoiser(
    Denoiser, PyTorchModelHubMixin, library_name="nca_lib", license="mit", tags=["neural-cellular-automata"]
):
    """A denoiser that is saved to, and loaded from, a folder or a repository of the Hub.

    Its `config.json` has the arguments below; its weights are a file of [`nca_lib.weights`][], which
    `nca_lib.load` reads as well. Whose ever the folder is, they are read with the checks of that module.

    Args:
        model: `kind` and the arguments of that class, as in an experiment's file.
        diffusion: schedule, timesteps and target, likewise; by default those of
            [`Diffusion`][nca_lib.experiments.settings.Diffusion].

    Raises:
        ExperimentError: a key is unknown, or its value of the wrong type or out of range.
        UsageError: the kind of model is no denoiser.
    """

    def __init__(self, model: dict[str, Any], diffusion: dict[str, Any] | None = None):
        experiment = Experiment.from_dict({"name": "hub", "model": model, "diffusion": diffusion or {}})
        built = experiment.build_model()
        if not isinstance(built, Denoiser):
            raise UsageError(f"a {model['kind']} is no denoiser; the Hub's form here holds denoisers")
        super().__init__(built.network, built.schedule, built.target, built.weighting)
        self.record: Mapping[str, Any] = {"experiment": experiment.to_dict()}

    @classmethod
    def of(cls, name: str | Path) -> HubDenoiser:
        """Trained weights, by shipped name or from a .safetensors file, in this form.

        Raises:
            WeightsError: as [`load`][nca_lib.weights.load]; or a cascade, which has no form on the Hub.
        """
        loaded, record = weights.load(name), weights.record(name)
        if "levels" in record or not isinstance(loaded, Denoiser):
            raise WeightsError(f"{name}: only single denoisers have a form on the Hub")
        made = cls(record["experiment"]["model"], record["experiment"]["diffusion"])
        made.load_state_dict(loaded.state_dict())
        made.record = {key: value for key, value in record.items() if key != "sha256"}
        return made.eval().requires_grad_(False)

    def _save_pretrained(self, save_directory: Path) -> None:
        weights.save(self, save_directory / FILE, self.record)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubDenoiser:
        asked = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        path = Path(model_id) / FILE
        if not path.parent.is_dir():
            path = Path(hf_hub_download(model_id, FILE, **{key: options[key] for key in asked}))
        return cls.of(path).to(options.get("map_location", "cpu"))


class _AsUNet(nn.Module):
    """A denoiser's network as diffusers' pipelines call a UNet: timesteps of 0..T-1, one for all images."""

    def __init__(self, denoiser: Denoiser, size: tuple[int, int]):
        super().__init__()
        self.denoiser = denoiser
        self.config = SimpleNamespace(in_channels=denoiser.image_channels, sample_size=size)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        time = self.denoiser.schedule.time(torch.as_tensor(timestep).cpu().expand(len(sample)))
        return UNet2DOutput(sample=self.denoiser.network(sample, time))


def pipeline(denoiser: Denoiser, size: tuple[int, int]) -> DDIMPipeline:
    """The denoiser in diffusers' pipeline, which draws images of `size` (height, width).

    Called with `use_clipped_model_output=True`, and as many steps as there are timesteps, it computes what
    [`ddim`][nca_lib.samplers.ddim] does. With fewer steps it visits other timesteps: its scheduler divides,
    ours spaces evenly.
    """
    names = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    scheduler = DDIMScheduler(
        num_train_timesteps=denoiser.schedule.timesteps,
        trained_betas=denoiser.schedule.betas.tolist(),
        prediction_type=names[denoiser.target],
    )
    return DDIMPipeline(cast(Any, _AsUNet(denoiser, size)), scheduler)


class _UNetAsNetwork(nn.Module):
    """diffusers' UNet as a denoiser's network: time t/T in place of timesteps."""

    def __init__(self, unet: Any, timesteps: int):
        super().__init__()
        self.unet, self.timesteps = unet, timesteps
        self.image_channels = unet.config.in_channels

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        timestep = (time * self.timesteps).round().to(noisy.device)
        return self.unet(noisy, timestep).sample

    def compile_step(self, mode: str | None) -> None:
        self.compile()


def from_pipeline(pipeline: Any) -> Denoiser:
    """The denoiser in one of diffusers' pipelines that have a `unet` and a `scheduler`, as DDPM's.

    Raises:
        UsageError: its scheduler knows a prediction that is none of ours.
    """
    scheduler = pipeline.scheduler
    prediction = scheduler.config.prediction_type
    if prediction not in PREDICTIONS:
        raise UsageError(f"the pipeline predicts {prediction!r}; ours are {', '.join(PREDICTIONS)}")
    schedule = NoiseSchedule(scheduler.betas.double())
    network = _UNetAsNetwork(pipeline.unet, schedule.timesteps)
    return Denoiser(network, schedule, PREDICTIONS[prediction]).eval()
