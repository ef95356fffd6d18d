"""Explorers: alive in Jupyter, a picture with words in the built book."""

import time
from collections.abc import Iterator

import ipywidgets as ipw
import pytest
import torch
from IPython.display import HTML
from torch import Tensor

import nca_lib
from nca_lib.book import explorers as widgets
from nca_lib.data.digits import Digits


@pytest.fixture
def in_book(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCA_LIB_BOOK", raising=False)


@pytest.mark.usefixtures("in_book")
def test_in_the_book_an_explorer_is_a_picture_with_words() -> None:
    shown = widgets.noise_explorer(Digits(8).images[:3])
    assert isinstance(shown, HTML)
    assert "data:image/png;base64," in shown.data
    assert "run this notebook to explore" in shown.data
    assert 'alt="' in shown.data


@pytest.mark.usefixtures("in_book")
def test_only_outside_the_book_are_widgets_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ipw.Widget] = []
    monkeypatch.setattr(ipw.Widget, "open", lambda widget: made.append(widget))
    widgets.noise_explorer(Digits(8).images[:3])
    assert not made, "a widget in a page without a kernel is a dead slider"
    monkeypatch.delenv("NCA_LIB_BOOK")
    widgets.noise_explorer(Digits(8).images[:3])
    assert made


@pytest.mark.usefixtures("in_book")
def test_every_explorer_draws_its_first_picture() -> None:
    digits, tissue = nca_lib.load("digits-mlp"), nca_lib.load("diff-nca-tissue")
    grower = nca_lib.load("growing-grow")
    tissue.network.steps = 1
    for shown in (
        widgets.sampler_explorer(digits, (8, 8)),
        widgets.size_explorer(tissue),
        widgets.growing_player(grower, size=16, steps=80),
    ):
        assert isinstance(shown, HTML)


@pytest.mark.usefixtures("live")
def test_a_changed_control_draws_another_picture() -> None:
    explorer = widgets.noise_explorer(Digits(8).images[:3])
    assert isinstance(explorer, widgets.Explorer)
    explorer.wait(10)
    before = bytes(explorer._picture.value)
    assert before.startswith(b"\x89PNG")
    explorer._controls["t"].value = 290
    explorer.wait(10)
    assert bytes(explorer._picture.value) != before
    explorer.close()


def test_a_new_choice_cancels_the_computation_before_it() -> None:
    seen: list[int] = []

    def frames(number: int) -> Iterator[Tensor]:
        for _ in range(1000):
            seen.append(number)
            time.sleep(0.005)
            yield torch.zeros(3, 4, 4)

    explorer = widgets.Explorer({"number": ipw.IntSlider(1)}, frames, 16)
    first = explorer._thread
    time.sleep(0.05)
    explorer._controls["number"].value = 2
    assert first is not None
    first.join(5)
    assert not first.is_alive()
    time.sleep(0.05)
    explorer.close()
    explorer.wait(5)
    assert explorer._thread is not None
    assert not explorer._thread.is_alive()
    assert {1, 2} == set(seen)
    assert len(seen) < 1000


def test_a_refused_setting_is_told_and_does_not_end_the_explorer() -> None:
    def frames(steps: int) -> Iterator[Tensor]:
        if steps > 5:
            raise ValueError("steps is too large")
        yield torch.zeros(3, 4, 4)

    explorer = widgets.Explorer({"steps": ipw.IntSlider(9)}, frames, 16)
    explorer.wait(5)
    assert explorer._message.value == "steps is too large"
    explorer._controls["steps"].value = 2
    explorer.wait(5)
    assert explorer._message.value == "done"
