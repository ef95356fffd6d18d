"""Branches of a sample: going on untouched ends where it would have; what is painted leads elsewhere."""

import itertools
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


def paint(branches: Branches, cells: torch.Tensor) -> None:
    branches._brush._hear(None, {"event": "painted"}, [memoryview(mask_bytes(cells))])


@pytest.fixture
def middle() -> torch.Tensor:
    cells = torch.zeros(8, 8, dtype=torch.bool)
    cells[2:5, 2:5] = True
    return cells


def test_a_sample_is_the_librarys_and_going_on_untouched_ends_there(branches: Branches) -> None:
    (branch,) = branches.branches
    assert len(branch.way) == 7  # the noise, and six calls
    expected = nca_lib.sample(nca_lib.load("digits-mlp"), (8, 8), steps=6, seed=1)
    assert torch.equal(branch.way[-1][1], expected[0])
    branches.choose(0, 3)
    branches.go_on()
    branches.wait(30)
    assert len(branches.branches[1].way) == 7
    torch.testing.assert_close(branches.branches[1].way[-1][1], expected[0])


def test_the_next_to_last_call_is_not_finished(branches: Branches) -> None:
    (branch,) = branches.branches
    assert [t for t, *_ in branch.way[-2:]] == [0, -1]
    branches.choose(0, 5)
    branches.go_on()
    branches.wait(30)
    torch.testing.assert_close(branches.branches[1].way[-1][1], branch.way[-1][1])


def test_what_is_painted_leads_elsewhere_and_leaves_the_branch_it_left_as_it_was(
    branches: Branches, middle: torch.Tensor
) -> None:
    branches.choose(0, 2)
    before = branches.branches[0].way[2][1]
    paint(branches, middle)
    branches.go_on()
    branches.wait(30)
    first, second = branches.branches
    assert torch.equal(first.way[2][1], before)
    painted = second.way[2][1]
    assert torch.equal(painted[:, ~middle], before[:, ~middle])
    assert (painted[:, middle] != before[:, middle]).all()
    assert (second.parent, second.call, second.words) == (0, 2, "painted, went on")
    assert not torch.equal(first.way[-1][1], second.way[-1][1])
    branches.choose(0, 2)
    assert branches._hand is None


def test_the_same_strokes_paint_the_same(branches: Branches, middle: torch.Tensor) -> None:
    again = Branches(branches._subject, steps=6)
    again.wait(30)
    for made in (branches, again):
        made.choose(0, 2)
        made._tool.value = "noise"
        paint(made, middle)
    assert branches._hand is not None and again._hand is not None
    assert torch.equal(branches._hand, again._hand)
    again.close()


@pytest.mark.parametrize("tool", ["colour", "image", "branch 1"])
def test_what_is_pasted_lies_under_the_noise_of_the_place(
    branches: Branches, middle: torch.Tensor, tool: str
) -> None:
    branches.choose(0, 4)
    branches._tool.value = tool
    paint(branches, middle)
    t = branches.branches[0].way[4][0]
    signal, sigma = branches._subject.model.schedule.levels(t)
    pasted = {"colour": torch.ones(1, 8, 8), "image": branches._subject.images[0]}
    clean = pasted.get(tool, branches.branches[0].way[-1][1])
    assert branches._hand is not None
    left = (branches._hand - signal * clean)[0, middle]
    assert float(left.abs().max()) < 5 * sigma


def test_other_noise_and_noise_again_make_a_tree_of_different_ends(branches: Branches) -> None:
    branches.choose(0, 2)
    branches._many.value = 2
    branches.other_noise()
    branches.wait(30)
    branches.choose(2, 3)
    branches.renoise()
    branches.wait(30)
    assert [branch.parent for branch in branches.branches] == [None, 0, 0, 2, 2]
    assert [row["parent"] for row in branches.tree.branches] == [None, 0, 0, 2, 2]
    ends = [branch.way[-1][1] for branch in branches.branches]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(ends, 2))
    assert all(torch.equal(branches.branches[n].way[2][1], branches.branches[0].way[2][1]) for n in (1, 2))
    branches.tree._handle_custom_msg({"branch": 1, "call": 4}, [])
    assert branches.tree.chosen == [1, 4]
    assert branches._film.frames[0]["caption"].startswith("Branch 2, t = ")


def test_it_stops_where_it_is_and_goes_on_from_there(branches: Branches) -> None:
    branches.choose(0, 0)
    branches._steps = 200  # time to stop it
    branches.go_on()
    branches.stop()
    branches.wait(30)
    stopped = branches.branches[1]
    assert 1 < len(stopped.way) < 200
    assert branches.message.value == "branch 2 stopped"
    branches.go_on()
    branches.wait(30)
    assert len(branches.branches[2].way) == 201
    assert branches.branches[2].way[-1][0] == -1


def test_what_cannot_be_done_is_told(branches: Branches) -> None:
    branches.go_on()
    assert branches.message.value == "this image is finished: go back to an earlier call"
    branches.branches *= 16
    branches.choose(0, 2)
    branches.go_on()
    assert branches.message.value == "16 branches are a tree; New sample begins another"


def test_closing_frees_all(branches: Branches) -> None:
    living = set(ipw.widgets.widget._instances)
    other = Branches(branches._subject, steps=2)
    other.wait(30)
    other.close()
    assert set(ipw.widgets.widget._instances) <= living
