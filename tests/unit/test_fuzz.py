"""Hostile command lines end in one line that a person can act on: few of the cases of `tests.fuzz`,
the same each time.
"""

from __future__ import annotations

import collections
import re
import resource

import psutil
import pytest
import torch

from pipeline.assembly.memory import refusing_excess, within_memory
from pipeline.common.errors import ConfigError
from pipeline.config.compose import compose
from pipeline.config.run import GROUPS
from tests.fuzz import BASES, FILES, TOY, apart, attempt, fuzz, help_keys, keys_under


def test_every_key_of_help_is_tried() -> None:
    under = {key for base in BASES for key in keys_under(base)}
    assert help_keys() - under - set(GROUPS) == set()


def test_hostile_command_lines_are_accepted_or_refused_in_one_line() -> None:
    with apart() as folder:
        outcomes = fuzz(120, seed=0)
        assert {path.name for path in folder.iterdir()} == set(FILES)
    bad = [outcome for outcome in outcomes if outcome.kind == "traceback" or outcome.faults]
    assert bad == []
    kinds = collections.Counter(outcome.kind for outcome in outcomes)
    assert kinds["accepted"] > 5
    assert kinds["refused"] > 50


RBM = ("data=digits", "data.encoding=binary", "data.noise=0", "energy=rbm", "kernel=gibbs")
CONV = ("data=digits", "energy=conv", "energy.channels=[4]", "energy.hidden=4")


@pytest.mark.parametrize(
    ("base", "argument", "line"),
    [
        # what was a traceback, or named nothing
        (TOY, "=4", "''=4: no key stands before this value"),
        (TOY, "energy=4", "energy=4: no such choice; there are "),
        (TOY, "~cluster=16", "~cluster=16: a key cannot be taken away"),
        (TOY, "~trainer.lag", "~trainer.lag=(none): a key cannot be taken away"),
        (TOY, "trainer.lag", "trainer.lag=(missing): give it a value"),
        (TOY, "+trainer.lag=1", "trainer.lag=1: this key is there already; leave out the +"),
        (TOY, "trainer.lag=", "trainer.lag='': should be 'auto' or a whole number"),
        (TOY, "seed=${oc.env:NONE}", "seed=${oc.env:NONE}: KeyError raised while resolving"),
        (TOY, "seed=${none}", "seed=${none}: Interpolation key 'none' not found; give the value"),
        (TOY, "energy.hidden=3", "energy.hidden=3: should be a list such as [a,b]"),
        (TOY, "seed=1" + "0" * 400, "seed=1000000"),
        (TOY, "energy.base_scale=1e-300", "energy.base_scale=1e-300: should be of a size from"),
        (TOY, "cluster.server_gpus=1", "cluster.server_gpus=1.0: cluster=inline has one process"),
        ((*TOY, "objective=mixture"), "objective.terms=1", "objective.terms=1: should be a dict"),
        # what would have filled the memory
        (TOY, "data.rows=1000000000000000", "data.rows=1000000000000000: takes more than this"),
        (TOY, "energy.hidden=[1000000,1000000]", "energy.hidden=[1000000, 1000000]: takes more"),
        (RBM, "energy.hidden=1000000000000", "energy.hidden=1000000000000: takes more than this"),
        (
            (*TOY, "objective=sliced"),
            "objective.probes=100000000000",
            "objective.probes=100000000000: takes more than this machine's",
        ),
        (CONV, "energy.scales=1000000000", "energy.scales=1000000000: images of (8, 8) shrink"),
        # what would not have ended
        ((*TOY, "kernel=hmc"), "kernel.leapfrog_steps=1000000", "kernel.leapfrog_steps=1000000: "),
        (TOY, "device=banana", "device=banana: should be cpu, cuda or cuda:N"),
        (TOY, "device=mps", "device=mps: should be cpu, cuda or cuda:N"),
        (TOY, "device=cuda:-1", "device=cuda:-1: should be cpu, cuda or cuda:N"),
    ],
)
def test_a_refusal_says_what_would_be_right(
    base: tuple[str, ...], argument: str, line: str
) -> None:
    with apart():
        outcome = attempt(base, [argument])
    assert (outcome.kind, outcome.faults) == ("refused", ())
    assert outcome.line.startswith(line)


@pytest.mark.parametrize(
    ("gpus", "device", "said"),
    [
        (0, "cuda", "device=cuda: torch .* sees no GPU on this machine; use cpu"),
        (0, "cuda:1", "device=cuda:1: torch .* sees no GPU on this machine; use cpu"),
        (2, "cuda:99", "device=cuda:99: there are 2 GPUs on this machine; use cuda:0 to cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with apart():
        outcome = attempt(TOY, [f"device={device}"])
    assert (outcome.kind, outcome.faults) == ("refused", ())
    assert re.match(said, outcome.line)


def test_a_cluster_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that submits a run need not have the device that its actors have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = ("cluster=ray", "device=cuda", "cluster.pool_gpus=0.5", "cluster.server_gpus=1")
    with apart():
        assert attempt(TOY, there).kind == "accepted"
        assert attempt(TOY, ["cluster=local", *there[1:]]).line.startswith("device=cuda: torch ")


def test_memory_is_bounded_while_a_run_is_prepared() -> None:
    """By what the machine has, and by what was set before; then as before."""
    data = resource.RLIMIT_DATA
    before = resource.getrlimit(data)
    with within_memory():
        soft, hard = resource.getrlimit(data)
        assert psutil.virtual_memory().total < soft < 2 * psutil.virtual_memory().total
        assert hard == before[1]
    assert resource.getrlimit(data) == before
    with apart():
        least = resource.getrlimit(data)[0]
        with within_memory():
            assert resource.getrlimit(data)[0] <= least


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("int too large"), RuntimeError("can't allocate memory")]
)
def test_what_takes_too_much_is_named_by_its_largest_setting(error: Exception) -> None:
    section = compose(["energy.hidden=[3,70000]"]).energy
    with (
        pytest.raises(ConfigError, match=r"energy.hidden=\[3, 70000\]: takes more than this"),
        refusing_excess("energy", section),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another"), refusing_excess("energy", section):
        raise RuntimeError("another")
