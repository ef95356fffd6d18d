"""Explorers of a model on a GPU show what those of the same model on the CPU show."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulator import Emulator

import nca_lib
from nca_lib.automaton import GrowingNCA
from nca_lib.book import branches, edits, explorers, inside
from nca_lib.book.painting import mask_bytes
from nca_lib.book.players import LivingAutomaton
from nca_lib.book.subjects import Subject
from nca_lib.diffusion import Denoiser, noise_schedule
from nca_lib.fourier import FourierDiffNCA

MODEL = Denoiser(FourierDiffNCA(10, 16, 2, frequencies=2), noise_schedule("cosine", 30), "v")
SUBJECT = Subject("tissue", MODEL, torch.rand(3, 3, 8, 8) * 2 - 1)
EXPLORERS: dict[str, Callable[[Subject], Any]] = {
    "sampler": lambda subject: explorers.sampler_explorer(subject, steps=3),
    "compare": lambda subject: explorers.compare_explorer(subject, steps=(3, 2)),
    "size": lambda subject: explorers.size_explorer(subject, "ring", (8, 12)),
    "inpainting": explorers.inpainting_painter,
    "walk": edits.walk_explorer,
    "inside": inside.inside_explorer,
} | {f"answers: {task}": lambda s, task=task: edits.answers_explorer(s, task=task) for task in edits.TASKS}  # type: ignore[misc]


def there(subject: Subject, device: torch.device) -> Subject:
    """The same subject; its images stay where a reader has them."""
    return Subject(subject.name, copy.deepcopy(subject.model).to(device), subject.images)


def pictures(shown: Any) -> list[str]:
    """All pictures of a film, as data addresses."""
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', shown.data, re.DOTALL)
    return [picture["src"] for frame in json.loads(data)["frames"] for picture in frame["pictures"]]


@pytest.mark.parametrize("name", EXPLORERS)
def test_an_explorer_shows_what_it_shows_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCA_LIB_BOOK", "1")
    expected = pictures(EXPLORERS[name](SUBJECT))
    with Emulator() as gpu:
        assert pictures(EXPLORERS[name](there(SUBJECT, gpu.device))) == expected


class _AtOnce:
    """A thread whose work is done when it starts; the emulator belongs to one."""

    def __init__(self, target: Callable[..., None] = lambda: None, args: Any = (), daemon: bool = True):
        self.start = lambda: target(*args)

    def is_alive(self) -> bool:
        return False


def led_elsewhere(subject: Subject) -> list[Any]:
    """A sample, a part of an image painted on it, another end, and noise again."""
    made = branches.Branches(subject, steps=4)
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[2:5, 2:5] = True
    torch.manual_seed(0)
    for tool, lead in (("image", made.go_on), ("colour", made.other_noise), ("noise", made.renoise)):
        made.choose(0, 2)
        made._tool.value = tool
        made._brush._hear(None, {"event": "painted"}, [memoryview(mask_bytes(cells))])
        lead()
    rows = made.tree.branches
    assert len(rows) == 4, made.message.value
    made.close()
    return list(rows)


def test_branches_are_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCA_LIB_BOOK", raising=False)
    monkeypatch.setattr(branches.threading, "Thread", _AtOnce)
    expected = led_elsewhere(SUBJECT)
    with Emulator() as gpu:
        assert led_elsewhere(there(SUBJECT, gpu.device)) == expected


def test_a_living_automaton_is_hurt_on_a_device() -> None:
    automaton, cells = nca_lib.load("growing-grow"), torch.zeros(20, 20, dtype=torch.bool)
    assert isinstance(automaton, GrowingNCA)
    cells[:, :9] = True

    def lived(automaton: GrowingNCA) -> torch.Tensor:
        living = LivingAutomaton(automaton, 20)
        living.live(8), living.erase(cells), living.live(2)
        return living.picture().cpu()

    expected = lived(automaton)
    with Emulator() as gpu:
        torch.testing.assert_close(lived(copy.deepcopy(automaton).to(gpu.device)), expected)
