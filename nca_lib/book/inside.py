"""Inside one call of a denoiser: the automaton's steps in frequency and in image space (chapters 3, 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nca_lib.book.film import View
from nca_lib.book.panel import Explorer, choice, explore, slider
from nca_lib.book.players import sharing_weights
from nca_lib.book.subjects import Subject, heat, level_words, which
from nca_lib.diff_nca import DiffNCA
from nca_lib.diffusion import Denoiser, clean_of
from nca_lib.errors import UsageError
from nca_lib.extras import extra
from nca_lib.fourier import FourierDiffNCA, image_of_window
from nca_lib.noise import CounterNoise, Purpose, firing_from

with extra("book"):
    from IPython.display import HTML

COMPONENTS = "first three components"
DECADES = 7  # of influence that are shown


def inside_explorer(*subjects: Subject) -> Explorer | HTML:
    """The K steps within one call at a chosen t: what is predicted, what is hidden, who fires, who is heard.

    Args:
        subjects: denoisers around a DiffNCA or a FourierDiffNCA.
    """

    def views(subject: int, t: int, image: int, hidden: str, y: int, x: int, seed: int) -> Iterator[View]:
        chosen = subjects[subject]
        model, clean = chosen.model, chosen.images[image % len(chosen.images)][None]
        height, width = chosen.size
        y, x = min(y, height - 1), min(x, width - 1)
        noisy = model.schedule.add_noise(
            clean, torch.tensor([t]), CounterNoise(seed).normal(clean, Purpose.START, 0)
        )
        touched = noisy.clone()
        touched[..., y, x] += 0.5
        steps, others = (list(call_states(model, given, t, seed)) for given in (noisy, touched))
        channels, level = model.image_channels, level_words(model.schedule, t)
        last = steps[-1][1][0, 2 * channels :]
        for (name, state, mask), (_, other, _) in zip(steps, others, strict=True):
            output = state[:, channels : 2 * channels]
            estimate = clean_of(model.target, model.schedule, output, noisy, torch.tensor([t]))[0]
            difference = (state - other)[0].square().mean(0).sqrt()
            pictures = {
                "noisy image": noisy[0],
                "clean estimate": estimate.clamp(-1, 1),
                f"hidden: {hidden}": _hidden(state[0, 2 * channels :], last, hidden),
                "influence": _influence(difference),
            }
            if _network(model).update_probability < 1:
                pictures["cells that fire"] = mask.expand(1, 1, height, width)[0] * 2 - 1
            words = (
                f"{level}; {name}. Cell y {y}, x {x} has influenced {int((difference > 1e-7).sum())} cells."
            )
            yield View(pictures, words, of=len(steps))

    def code(subject: int, t: int, image: int, hidden: str, y: int, x: int, seed: int) -> str:
        return (
            f"{subjects[subject].code}import torch\nfrom nca_lib.book.inside import call_states\n\n"
            f"# noisy: (1, C, H, W)\nfor name, state, mask in call_states(model, noisy, {t}, {seed}):\n"
            "    print(name, state.shape)"
        )

    most = min(subject.model.schedule.timesteps for subject in subjects) - 1
    fewest = min(_network(subject.model).channels - 2 * subject.model.image_channels for subject in subjects)
    size = max(max(subject.size) for subject in subjects)
    channels = [COMPONENTS, *(f"channel {n}" for n in range(fewest))]
    controls = which(subjects) | {
        "t": slider("timestep t", most // 2, 0, most, 1, "how noisy the image is that the call is given"),
        "image": slider("image", 0, 0, 15, 1, "which image lies under the noise"),
        "hidden": choice("hidden", channels, COMPONENTS, "of the channels that no one trained for a meaning"),
        "y": slider("cell y", size // 2, 0, size - 1, 1, "whose influence is followed; or click a picture"),
        "x": slider("cell x", size // 2, 0, size - 1, 1, "whose influence is followed; or click a picture"),
        "seed": slider("seed", 0, 0, 99, 1, "of noise and firing masks"),
    }
    return explore(controls, views, "the automaton's steps within one call", "step", code)


def call_states(
    model: Denoiser, noisy: Tensor, t: int, seed: int = 0
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What a call of a denoiser does to its cells, step by step.

    Args:
        model: around a [`DiffNCA`][nca_lib.diff_nca.DiffNCA] or a
            [`FourierDiffNCA`][nca_lib.fourier.FourierDiffNCA].
        noisy: (1, C, H, W), on any device.
        t: timestep.
        seed: of the firing masks.

    Yields:
        The step's name, the state (1, channels, H, W) after it, and which cells fired, (1, 1, H, W) or
        (1, 1, 1, 1), both on the CPU. A step in frequency space yields the image of its coefficients so far.
    """
    own = sharing_weights(model)
    network, time = _network(own), own.schedule.time(torch.tensor([t]))
    noisy, everywhere = noisy.to(next(own.parameters()).device), torch.ones(1, 1, 1, 1)
    with torch.no_grad(), firing_from(own, CounterNoise(seed)):
        if isinstance(network, FourierDiffNCA):
            steps = network.spectrum_rollout(network.spectrum_seed(noisy), time)
            for k, spectrum in enumerate(steps, 1):
                name = f"frequency step {k} of {network.spectrum_steps}"
                yield name, _image_state(network, noisy, spectrum).cpu(), everywhere
            start = _image_state(network, noisy, spectrum)
        else:
            start = network.seed(noisy)
        masks = network.masks(start, time)
        for k, (state, mask) in enumerate(zip(network.rollout(start, time), masks, strict=True), 1):
            fired = everywhere if mask is None else mask.cpu()
            yield f"image step {k} of {network.steps}", state.cpu(), fired


def _network(model: Denoiser) -> DiffNCA:
    network: Any = model.network
    if not isinstance(network, DiffNCA):
        raise UsageError(f"a {type(network).__name__} has no steps to look at; DiffNCA and FourierDiffNCA do")
    return network


def _image_state(network: FourierDiffNCA, noisy: Tensor, spectrum: Tensor) -> Tensor:
    real, imaginary = spectrum.chunk(2, dim=1)
    written = torch.complex(real, imaginary)[:, noisy.shape[1] :]
    return torch.cat([noisy, image_of_window(written, network.window, *noisy.shape[2:])], dim=1)


def _hidden(state: Tensor, last: Tensor, which: str) -> Tensor:
    """Hidden channels (N, H, W) as a picture: one, or their components, scaled as in the last state."""
    if which != COMPONENTS:
        number = int(which.split()[1])
        return (state[number : number + 1] / last[number].abs().max().clamp(min=1e-6)).clamp(-1, 1)
    vectors = last.flatten(1).T
    mean = vectors.mean(0)
    _, deviations, axes = torch.linalg.svd(vectors - mean, full_matrices=False)
    scaled = (state.flatten(1).T - mean) @ axes[:3].T / (2 * deviations[:3] / len(vectors) ** 0.5)
    return scaled.T.reshape(3, *state.shape[1:]).clamp(-1, 1)


def _influence(difference: Tensor) -> Tensor:
    strength = 1 + difference.clamp(min=1e-12).log10() / DECADES
    return heat(torch.where(difference > 1e-7, strength.clamp(0.15, 1), torch.zeros(())), 1.0)
