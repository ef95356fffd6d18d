"""A canvas on disk equals the one in memory, whatever kills the processes that make it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from nca_lib import load, sample, weights
from nca_lib.canvas import TiledDenoiser, outofcore
from nca_lib.canvas.outofcore import Canvas, Plan, create, run
from nca_lib.canvas.tiles import CanvasError
from nca_lib.memory import KEPT
from nca_lib.samplers import SAMPLERS

ALL = slice(None)


def in_memory(plan):
    model = TiledDenoiser(load(plan.model), wrap=True) if plan.wrap else load(plan.model)
    size, sampler = (plan.height, plan.width), SAMPLERS[plan.sampler]
    return sample(model, size, sampler=sampler, steps=plan.steps, seed=plan.seed)[0].numpy()


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddpm", 3), ("ddim", 1), ("dpm_solver", 4), ("heun", 4), ("heun", 5)]
)
def test_a_canvas_on_disk_equals_the_one_in_memory(tiny, tmp_path, sampler, steps, wrap):
    plan = Plan(tiny, 50, 71, tile=24, sampler=sampler, steps=steps, seed=5, wrap=wrap)
    canvas = create(tmp_path / "canvas", plan)
    seen = []
    run(canvas, progress=lambda made, total: seen.append((made, total)))
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))
    assert len(seen) == 9 * len(plan.calls)
    assert seen[-1] == (pytest.approx(50 * 71 / 1e6), pytest.approx(50 * 71 / 1e6))
    assert canvas.remaining() == []


def test_a_step_waits_for_the_neighbours_and_for_those_who_still_read():
    # The order of the graph is all that keeps generations apart: a random order that obeys it is right.
    plan = Plan("", 5, 7, tile=1)
    canvas = Canvas.__new__(Canvas)
    canvas.plan, canvas.clock = plan, np.zeros((5, 7))
    canvas.__dict__["model"] = type("M", (), {"network": type("N", (), {"steps": 1})})
    assert canvas.neighbours((0, 0)) == [(r, c) for r in range(3) for c in range(3)]
    assert len(canvas.neighbours((2, 3))) == 25


def obedient_order(canvas, rng):
    """What is left, in a random order in which each tile waits for its neighbours."""
    left = set(canvas.remaining())
    while left:
        ready = [
            (step, place)
            for step, place in sorted(left)
            if not any((step - 1, at) in left for at in canvas.neighbours(place))
            and (step - 1, place) not in left
        ]
        chosen = rng.choice(ready)
        left.remove(chosen)
        yield chosen


@pytest.mark.parametrize("seed", range(3))
def test_any_order_that_the_graph_allows_and_any_kill_end_in_the_same_bytes(
    tiny, tmp_path, seed, monkeypatch
):
    plan = Plan(tiny, 40, 40, tile=10, sampler="dpm_solver", steps=5, seed=1)
    canvas, rng = create(tmp_path / "canvas", plan), random.Random(seed)

    class Killed(Exception):
        pass

    write = type(canvas.image).__setitem__

    def write_or_die(array, key, value):
        if rng.random() < 0.05:
            if rng.random() < 0.5:  # after the data, before the clock; or before any
                write(array, key, value)
            raise Killed
        write(array, key, value)

    monkeypatch.setattr(type(canvas.image), "__setitem__", write_or_die)
    kills = 0
    while canvas.remaining():
        try:
            for step, place in obedient_order(canvas, rng):
                canvas.advance(step, place)
        except Killed:
            kills += 1
            canvas = Canvas(tmp_path / "canvas")  # a new process knows only what is on disk
    assert kills > 3
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


def test_work_that_comes_late_touches_nothing(tiny, tmp_path):
    canvas = create(tmp_path / "canvas", Plan(tiny, 30, 30, tile=30, sampler="ddim", steps=3))
    run(canvas)
    before = canvas.finished(ALL, ALL)
    canvas.advance(0, (0, 0))
    # One that began before the others finished: its second look at the clock stops it.
    make = canvas._make

    def slow(*arguments):
        made = make(*arguments)
        canvas.clock[0, 0] = 3
        return made

    canvas._make = slow
    canvas.clock[0, 0] = 0
    canvas.advance(0, (0, 0))
    assert np.array_equal(canvas.finished(ALL, ALL), before)
    assert canvas.clock[0, 0] == 3


def test_what_reads_back_differently_is_refused(tiny, tmp_path, monkeypatch):
    canvas = create(tmp_path / "canvas", Plan(tiny, 20, 20, tile=20, sampler="ddim", steps=1))
    write = type(canvas.image).__setitem__
    monkeypatch.setattr(type(canvas.image), "__setitem__", lambda a, key, value: write(a, key, value * 0))
    with pytest.raises(CanvasError, match="does not read back"):
        run(canvas)


def test_the_same_plan_with_other_weights_is_another_canvas(tiny, tmp_path):
    plan = Plan(str(tmp_path / "mine.safetensors"), 20, 20, tile=10, sampler="ddim", steps=2)
    for change in (0.0, 0.1):
        model = load(tiny)
        with torch.no_grad():
            model.network.cell.narrow.bias += change
        weights.save(model, plan.model, {"experiment": weights.record(tiny)["experiment"]})
        canvas = create(tmp_path / "canvas", plan)
        run(canvas)
        assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))
        shutil.rmtree(tmp_path / "canvas")


def test_refusals(tiny, tmp_path):
    with pytest.raises(CanvasError, match="GrowingNCA cannot be cut up"):
        create(tmp_path / "a", Plan("growing-grow", 64, 64))
    with pytest.raises(CanvasError, match="FourierDiffNCA"):
        create(tmp_path / "a", Plan("faces-fourier", 64, 64))
    with pytest.raises(ValueError, match="1 to 20"):
        create(tmp_path / "a", Plan(tiny, 64, 64, steps=21))
    with pytest.raises(CanvasError, match=r"needs 49\d TB on disk"):
        create(tmp_path / "a", Plan(tiny, 3_200_000, 3_200_000, sampler="dpm_solver"))
    assert not (tmp_path / "a").exists()
    canvas = create(tmp_path / "a", Plan(tiny, 64, 64))
    described = json.loads((tmp_path / "a" / "plan.json").read_text())
    (tmp_path / "a" / "plan.json").write_text(json.dumps({**described, "sha256": "another"}))
    with pytest.raises(CanvasError, match="not the model"):
        Canvas(canvas.folder).model  # noqa: B018


def test_two_workers_one_of_which_is_killed(tiny, tmp_path):
    plan = Plan(tiny, 60, 60, tile=20, sampler="dpm_solver", steps=4)
    canvas = create(tmp_path / "canvas", plan)
    killed = []

    def kill_one(made, total):
        if not killed and made > total / 4:
            killed.append(children(os.getpid())[0])
            os.kill(killed[0], signal.SIGKILL)

    before = dict(os.environ)
    run(canvas, workers=2, progress=kill_one)
    assert killed
    assert dict(os.environ) == before  # what is started later computes with as many threads as ever
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


def children(parent):
    """The Dask workers below a process."""
    below = psutil.Process(parent).children(recursive=True)
    return [
        child.pid for child in below if any(w in " ".join(child.cmdline()) for w in ("dask", "spawn_main"))
    ]


GO_ON = """
import sys
from nca_lib.canvas.outofcore import Canvas, run
if __name__ == "__main__":
    run(Canvas(sys.argv[1]), workers=int(sys.argv[2]))
"""


def go_on(folder, workers=1):
    return subprocess.Popen([sys.executable, "-c", GO_ON, str(folder), str(workers)], start_new_session=True)


def test_a_killed_run_goes_on(tiny, tmp_path):
    plan = Plan(tiny, 60, 60, tile=20, sampler="dpm_solver", steps=20)
    canvas = create(tmp_path / "canvas", plan)
    process = go_on(canvas.folder)
    while canvas.clock[:].sum() < 20:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(canvas.remaining()) < 9 * 20
    run(canvas)
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(5))
def test_ten_kills_of_workers_and_of_the_whole_run_end_in_the_same_bytes(tiny, tmp_path, seed):
    rng = random.Random(seed)
    plan = Plan(tiny, 80, 80, tile=16, sampler="dpm_solver", steps=20, seed=seed)
    canvas, kills = create(tmp_path / "canvas", plan), 0
    process = go_on(canvas.folder, workers=2)
    while kills < 10 and canvas.remaining():
        done = canvas.clock[:].sum() + rng.randint(1, 40)
        while canvas.clock[:].sum() < done and canvas.remaining():
            time.sleep(0.02)
        kills += 1
        if kills % 2:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process = go_on(canvas.folder, workers=2)
        elif workers := children(process.pid):
            os.kill(rng.choice(workers), signal.SIGKILL)
    assert process.wait() == 0
    assert kills == 10
    assert np.array_equal(canvas.finished(ALL, ALL), in_memory(plan))


def test_local_workers_keep_freed_memory(monkeypatch):
    import dask
    import distributed

    seen = []

    def cluster(*settings, **more):
        seen.append(dict(dask.config.get("distributed.nanny.pre-spawn-environ")))
        raise KeyboardInterrupt  # before any process is started

    monkeypatch.setattr(distributed, "LocalCluster", cluster)
    nothing = type("C", (), {"plan": Plan("", 1, 1), "remaining": lambda self: []})()
    with pytest.raises(KeyboardInterrupt):
        outofcore._run(nothing, 2, None, lambda made: None)
    assert KEPT.items() <= seen[0].items()
    assert seen[0]["OMP_NUM_THREADS"] == 1  # the others as they were
