"""Hugging Face's forms, offline: a folder, a pipeline with our model, their UNet in our samplers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from nca_lib import load, sample
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.errors import NCAError, WeightsError
from nca_lib.hub import FILE, HubDenoiser, from_pipeline, pipeline
from nca_lib.samplers import ddim


def last(denoiser: Denoiser, start: torch.Tensor, steps: int) -> torch.Tensor:
    return [state.image for state in ddim(denoiser, start, steps=steps)][-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub")
    HubDenoiser.of("digits-diff-nca").save_pretrained(place)
    return place


def test_a_folder_gives_the_same_model_back(folder: Path) -> None:
    assert next(HubDenoiser.from_pretrained(folder, map_location="meta").parameters()).is_meta
    again, first = HubDenoiser.from_pretrained(folder), load("digits-diff-nca")
    images = [sample(model, (16, 16), steps=3, seed=1) for model in (again, first, load(folder / FILE))]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert again.target == first.target
    config = json.loads((folder / "config.json").read_text())
    assert config.keys() == {"model", "diffusion"}
    assert torch.equal(HubDenoiser(**config).schedule.betas, first.schedule.betas)
    assert "nca_lib" in (folder / "README.md").read_text()


def test_what_is_pushed_is_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def upload_folder(self: HfApi, *, folder_path: Path, **others: object) -> None:
        shutil.copytree(folder_path, tmp_path / "pushed")

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **others: type("R", (), {"repo_id": repo_id})
    )
    HubDenoiser.of("digits-mlp").push_to_hub("somebody/digits-mlp")
    again = HubDenoiser.from_pretrained(tmp_path / "pushed")
    assert torch.equal(sample(again, (8, 8), steps=2), sample(load("digits-mlp"), (8, 8), steps=2))


def test_a_strangers_folder_is_checked(folder: Path, tmp_path: Path) -> None:
    hurt = Path(shutil.copytree(folder, tmp_path / "hurt"))
    tensors = load_file(hurt / FILE)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, hurt / FILE)
    with pytest.raises(WeightsError, match=re.escape(FILE)):
        HubDenoiser.from_pretrained(hurt)
    with pytest.raises(NCAError, match="single denoisers"):
        HubDenoiser.of("tissue-cascade")
    with pytest.raises(NCAError, match="growing-nca is no denoiser"):
        HubDenoiser({"kind": "growing-nca"})
    with pytest.raises(NCAError, match="colour"):
        HubDenoiser({"kind": "diff-nca", "colour": 3})


@pytest.mark.parametrize("name", ["digits-mlp", "digits-diff-nca"])
def test_our_model_in_their_pipeline_gives_the_numbers_of_our_ddim(name: str) -> None:
    """Same noise, all timesteps; their table of alphas is float32, ours float64."""
    model, size = load(name), 8
    steps = 300
    assert isinstance(model, Denoiser)
    torch.manual_seed(0)
    start = torch.randn(2, 1, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = pipeline(model, (size, size))(
            batch_size=2, num_inference_steps=steps, output_type="pt", use_clipped_model_output=True
        ).images
    torch.testing.assert_close(theirs, last(model, start, steps).clamp(-1, 1) / 2 + 0.5, atol=1e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_their_unet_in_our_sampler_gives_the_numbers_of_their_scheduler(prediction: str) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        **blocks,
    ).eval()
    betas = noise_schedule("linear", 20).betas
    scheduler = DDIMScheduler(20, trained_betas=betas.tolist(), prediction_type=prediction)
    ours = from_pipeline(DDPMPipeline(unet, scheduler))
    start = image = torch.randn(2, 3, 8, 8)
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for t in scheduler.timesteps:
            image = scheduler.step(unet(image, t).sample, t, image, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(last(ours, start, 20), image, atol=1e-4, rtol=0)
