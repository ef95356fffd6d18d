"""Branches of a sample: going on untouched ends where it would have; what is painted leads elsewhere."""

from collections.abc import Iterator

import ipywidgets as ipw
import pytest
import torch

import nca_lib
from nca_lib.book.branches import Branches
from nca_lib.book.painting import mask_bytes
from nca_lib.book.subjects import Subject


@pytest.fixture
def branches() -> Iterator[Branches]:
    digits = Subject("digits", nca_lib.load("digits-mlp"), torch.zeros(1, 1, 8, 8))  # type: ignore[arg-type]
    made = Branches(digits, steps=6)
    made.wait(30)
    yield made
    made.close()


def test_a_sample_is_the_librarys_and_going_on_untouched_ends_there(branches: Branches) -> None:
    (way,) = branches.ways
    assert len(way) == 7  # the noise, and six calls
    expected = nca_lib.sample(nca_lib.load("digits-mlp"), (8, 8), steps=6, seed=1)
    assert torch.equal(way[-1][1], expected[0])
    branches._call.value = 3
    branches.branch("ddim")
    branches.wait(30)
    assert len(branches.ways[1]) == 7
    torch.testing.assert_close(branches.ways[1][-1][1], expected[0])


def test_what_is_painted_and_other_noise_lead_elsewhere_and_all_ends_are_kept(branches: Branches) -> None:
    branches._call.value = 2
    before = branches.ways[0][2][1]
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[2:5, 2:5] = True
    branches._brush._hear(None, {"event": "painted"}, [memoryview(mask_bytes(cells))])
    painted = branches.ways[0][2][1]
    assert torch.equal(painted[:, ~cells], before[:, ~cells])
    assert (painted[:, cells] != before[:, cells]).all()
    for sampler in ("ddim", "ddpm"):
        branches.branch(sampler)
        branches.wait(30)
    ends = [way[-1][1] for way in branches.ways]
    assert len(ends) == len(branches._ends.frames[0]["pictures"]) == 3
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    branches._ends._hear(None, {"event": "cell", "picture": 0, "y": 0, "x": 0}, [])
    assert branches._film.frames[0]["caption"].startswith("Branch 1")


def test_closing_frees_all(branches: Branches) -> None:
    living = set(ipw.widgets.widget._instances)
    other = Branches(branches._subject, steps=2)
    other.wait(30)
    other.close()
    assert set(ipw.widgets.widget._instances) <= living
