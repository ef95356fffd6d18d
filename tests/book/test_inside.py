"""The steps inside a call end in what the call says; answers are the library's edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import nca_lib
from nca_lib.book.edits import TASKS, Task, answers_explorer, walk_explorer
from nca_lib.book.inside import call_states, inside_explorer
from nca_lib.book.panel import Explorer
from nca_lib.book.subjects import Subject
from nca_lib.data.digits import Digits
from nca_lib.diffusion import clean_of
from nca_lib.noise import CounterNoise, firing_from


@pytest.fixture(autouse=True)
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCA_LIB_BOOK", raising=False)


def subject(name: str) -> Subject:
    model: Any = nca_lib.load(name)
    size = 16 if model.image_channels == 1 else 18
    images = Digits(16).images[:3] if model.image_channels == 1 else torch.zeros(2, 3, size, size)
    return Subject(name, model, images, name)


def still(explorer: Any) -> Explorer:
    assert isinstance(explorer, Explorer)
    explorer.close()
    explorer.wait(60)
    return explorer


@pytest.mark.parametrize("name", ["digits-diff-nca", "digits-fourier"])
@pytest.mark.parametrize("probability", [1.0, 0.6])
def test_the_last_state_holds_what_the_call_says(name: str, probability: float) -> None:
    model: Any = subject(name).model
    model.network.update_probability = probability
    noisy, t = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([140])
    *_, (step, state, mask) = call_states(model, noisy, 140, seed=5)
    with firing_from(model, CounterNoise(5)), torch.no_grad():
        expected = model(noisy, t)
    estimate = clean_of(model.target, model.schedule, state[:, 1:2], noisy, t)
    torch.testing.assert_close(estimate, expected, atol=1e-4, rtol=1e-4)
    assert step == "image step 8 of 8"
    assert 0.4 < float(mask.mean()) <= probability + 0.2


def test_influence_spreads_a_cell_a_step_and_at_once_through_frequencies() -> None:
    settings = {"subject": 0, "t": 100, "image": 0, "hidden": "channel 2", "y": 8, "x": 8, "seed": 0}
    local = list(still(inside_explorer(subject("digits-diff-nca")))._views(**settings))
    assert len(local) == 8
    assert "has influenced 9 cells" in local[0].caption
    assert "has influenced 25 cells" in local[1].caption
    spectral = list(still(inside_explorer(subject("digits-fourier")))._views(**settings))
    assert len(spectral) == 24
    assert "frequency step 1 of 16" in spectral[0].caption
    assert "has influenced 256 cells" in spectral[1].caption


def test_what_has_no_steps_is_told() -> None:
    with pytest.raises(ValueError, match="a MLP has no steps"):
        inside_explorer(Subject("digits", nca_lib.load("digits-mlp"), Digits(8).images[:2]))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_code_that_is_handed_out(task: Task) -> None:
    explorer = still(answers_explorer(subject("digits-diff-nca"), task=task))
    values = {name: control.value for name, control in explorer.controls.items()}
    values |= {"answers": 3, "steps": 4}
    *_, last = explorer._views(**values)
    names: dict[str, Any] = {"images": subject("digits-diff-nca").images}
    assert explorer._code
    exec(explorer._code(**values), names)
    for number in range(3):
        shown = last.pictures[f"answer {number + 1}"]
        torch.testing.assert_close(shown, names["answers"][number].clamp(-1, 1), atol=2e-3, rtol=0)
    assert not torch.equal(last.pictures["answer 1"], last.pictures["answer 2"])


def test_a_walk_begins_and_ends_with_the_samples_of_its_seeds() -> None:
    digits = subject("digits-diff-nca")
    explorer = still(walk_explorer(digits))
    views = list(explorer._views(subject=0, first=3, second=4, count=3, steps=4))
    for view, seed in ((views[0], 3), (views[-1], 4)):
        expected = nca_lib.sample(digits.model, (16, 16), steps=4, seed=seed)
        torch.testing.assert_close(view.pictures["sample"], expected[0], atol=1e-4, rtol=0)
