"""Hostile command lines: each is accepted, or refused in one line that a person can act on.

    python -m tests.fuzz [--cases 2000] [--seed 0] [--json docs/fuzz.json]

A case is a small run (`BASES`) with one or two arguments put behind it (hypothesis draws them, from
every key of `--help` and from values that nobody should give). It is carried as far as
`python -m pipeline.train` goes before anything starts: the configuration is composed, its data are
opened, its energy is made, and both are rehearsed. What is no `PipelineError` of exit status 2
counts as a traceback. A refusal must name one of the keys given, the value that it had and what
would be right, in one line (`faults_of`). A case may take `SECONDS` of the processor, and `ROOM`
bytes of memory.
The exit status is 0 where there is no traceback, no refusal that lacks something, and nothing was
written.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from pipeline.assembly.prepare import prepare
from pipeline.common.errors import ConfigError, PipelineError
from pipeline.config.compose import compose, compose_raw
from pipeline.config.groups import keys_of
from pipeline.config.keys import describe
from pipeline.config.parts import PARTS, names
from pipeline.config.run import GROUPS

SECONDS, ROOM, LONGEST = 30, 3 * 2**30, 1000
FEW = ("data.rows=200", "data.held_out=40")
TOY = ("data=toy", *FEW, "energy.hidden=[8]")
SMALL = (
    *("cluster=inline", "chains.per_pool=8", "trainer.batch_size=16", "trainer.negatives=null"),
    *("checkpoint.every=5", "metrics.port=0", "trainer.steps=5"),
)
BINARY = ("data=digits", "data.encoding=binary", "data.noise=0", "data.held_out=97")
RBM = (*BINARY, "energy=rbm", "energy.hidden=4")
FILES = ("images", "rows.parquet", "words.csv", "family.fasta")
# by these every key of `--help` is there in one base or another
BASES: tuple[tuple[str, ...], ...] = (
    (*TOY, "cluster=local"),
    (*TOY, "kernel=hmc", "objective=hutchinson"),
    (*TOY, "kernel=ula", "objective=improved_cd"),
    (*TOY, "kernel=underdamped", "objective=cd"),
    (*TOY, "kernel=random_walk", "objective=fast_pcd"),
    (*TOY, "kernel=metropolis_hastings", "objective=short_run"),
    (*TOY, "kernel=replica_exchange", "kernel.inner=hmc"),
    (*TOY, "objective=maximum_likelihood", "objective.grid=20"),
    (*TOY, "objective=score_matching"),
    (*TOY, "objective=sliced"),
    (*TOY, "objective=finite_difference"),
    (*TOY, "objective=denoising"),
    (*TOY, "objective=denoising_finite_difference"),
    (*TOY, "objective=nce"),
    (*TOY, "objective=conditional_nce"),
    (*TOY, "objective=mixture"),
    ("data=toy", *FEW, "energy=custom", "energy.entry_point=none"),
    ("data=digits", "energy=conv", "energy.channels=[4]", "energy.hidden=4"),
    (*RBM, "kernel=gibbs"),
    (*RBM, "kernel=gibbs_with_gradients", "objective=pseudo_likelihood"),
    (*BINARY, "energy=quadratic", "kernel=single_site", "objective=ratio_matching"),
    (*BINARY, "energy=dbm", "energy.hidden=[4,3]", "kernel=gibbs"),
    ("data=digits", "energy=gaussian_rbm", "energy.hidden=4", "kernel=gibbs"),
    (
        *("data=digits", "data.encoding=categorical", "data.levels=3", "data.noise=0"),
        *("energy=potts_rbm", "energy.levels=3", "energy.hidden=4", "kernel=gibbs"),
    ),
    ("data=ising", "data.shape=[2,2]", *FEW, "energy=lattice", "kernel=single_site"),
    ("data=ising", "data.shape=[2,2]", *FEW, "experiment=maxent_ising"),
    ("data=labelled_toys", *FEW, "energy=label_mlp", "energy.hidden=[8]", "energy.classes=2"),
    (
        *("data=labelled_toys", *FEW, "energy=label_mlp", "energy.hidden=[8]"),
        *("energy.classes=2", "objective=label_likelihood"),
    ),
    ("data=conditional_toy", *FEW, "energy=conditional_mlp", "energy.hidden=[8]"),
    (
        *("data=tags", *FEW, "data.sites=3", "data.levels=2", "energy=pairwise"),
        *("energy.levels=2", "kernel=gibbs_with_gradients"),
    ),
    ("experiment=maxent_moments",),
    ("data=idx", "data.path=images", "data.held_out=5", "energy.hidden=[8]"),
    ("data=columns", "data.path=rows.parquet", "data.held_out=5", "energy.hidden=[8]"),
    (
        *("data=columns", "data.path=words.csv", "data.held_out=5", "data.categorical=auto"),
        *("data.missing=impute", "energy=mixed_rbm", "energy.hidden=4", "kernel=gibbs"),
    ),
    ("data=images", "data.path=images", "data.held_out=5", "energy.hidden=[8]"),
    ("data=rows", "data.held_out=5", "energy.hidden=[8]"),
    (
        *("data=fasta", "data.path=family.fasta", "data.alphabet=rna", "data.held_out=5"),
        *("energy=potts", "energy.levels=5", "kernel=gibbs"),
    ),
    (
        *("data=fasta", "data.path=family.fasta", "data.alphabet=rna", "data.held_out=5"),
        *("energy=potts_rbm", "energy.levels=5", "energy.hidden=4", "energy.units=drelu"),
        "kernel=gibbs",
    ),
    ("experiment=rna_potts", "data.path=family.fasta", "data.held_out=5"),
)
NUMBERS = (
    *("0", "1", "-1", "2", "3", "5", "17", "0.5", "1.5", "-0.0", "1e-300", "1e300", "1e400", "nan"),
    *("inf", "-inf", ".nan", "-.inf", "1e9", "1000000000", "2147483648", "9223372036854775808"),
    *("1" + "0" * 400, "0x10", "1_000", "00", "1e-7", "100000"),
)
WORDS = (
    *("", "null", "true", "false", "yes", "off", "''", '""', "'null'", "None", "auto", "all"),
    *("cpu", "cuda", "cuda:0", "cuda:99", "cuda:-1", "mps", "banana", "exact", "real", "binary"),
    *("${seed}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOTHING}", "${", "???", "$(true)"),
    *("\\", "'", '"', "\\'", "a'b\"c", "'a", "{", "[", "]", "}", "[1,2", "{a:1", "1,2,3"),
    *("[]", "{}", "[[]]", "[null]", "[nan]", "[0]", "[-1]", "[1,2]", "[2,1]", "[1e400,1]"),
    *("[1000000000]", "[1000000000,1000000000]", "[65536,65536]", "['']", "[a,b]", "[true]"),
    *("{a:1}", "{a:{b:[1]}}", "{kind:pairs}", "[{kind:pairs}]", "[{kind:custom,entry_point:x}]"),
    *("[{kind:histogram,low:1,high:0,bins:3}]", "[{kind:polynomial,degree:100000}]"),
    *("{pcd:1}", "{pcd:nan}", "{mixture:1}", "{_target_:os.system}", "[" * 300, "[1," * 300),
    *("range(1,3)", "choice(a,b)", "int(3)", "str(3)", "glob(*)", "sort(3,1)", "json_str(1)"),
    *("/no/such/path", "/", "/dev/null", "~", "~nobody/x", "s3:/x", "nothing://x", "file://", "%"),
    *(
        "a b",
        "a=b",
        "a\nb",
        "a\tb",
        "ü",
        "😀",
        "\u202eabc",
        "\udcff",
        "a" * 100_000,
        "/" + "a" * 300,
    ),
)
# how the argument of a key may be written
FORMS: tuple[Callable[[str, str], str], ...] = (
    *(lambda key, value: f"{key}={value}",) * 80,
    lambda key, value: f"+{key}={value}",
    lambda key, value: f"++{key}={value}",
    lambda key, _: f"~{key}",
    lambda key, value: f"~{key}={value}",
    lambda key, _: f"{key}=",
    lambda key, _: key,
    lambda key, value: f"{key}@x={value}",
    lambda key, value: f"{key}:x={value}",
    lambda key, value: f"-{key}={value}",
    lambda key, value: f"--{key}={value}",
    lambda key, value: f"{key}=={value}",
    lambda key, value: f"{key}.={value}",
    lambda key, value: f".{key}={value}",
    lambda key, value: f"{key}.x={value}",
    lambda key, value: f"{key}[0]={value}",
    lambda key, value: f" {key} = {value}",
    lambda _, value: f"={value}",
)


class Outcome(NamedTuple):
    """What came of a case, the `arguments` behind the `base`: `kind` is accepted, refused or
    traceback; `line` is what the person sees; `faults` are what a refusal lacks.
    """

    base: tuple[str, ...]
    arguments: tuple[str, ...]
    kind: str
    line: str
    faults: tuple[str, ...]
    seconds: float


class TooLongError(BaseException):
    """A case took longer than `SECONDS`. It is no `Exception`, so that nothing takes it for one."""


@cache
def keys_under(base: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the keys that there are under a base, those of its own choices among them."""
    under = set(keys_of(compose_raw([*SMALL, *base])))
    whole = {key for key in help_keys() if any(name.startswith(f"{key}.") for name in under)}
    return tuple(sorted(under | whole))


@cache
def help_keys() -> frozenset[str]:
    """Returns every key that `--help` lists."""
    return frozenset(key for key, _, _ in describe())


def values() -> st.SearchStrategy[str]:
    """Draws the text behind `=`."""
    choices = [name for group in PARTS for name in names(group)]
    number = st.one_of(
        st.sampled_from(NUMBERS),
        st.integers(0, 20).map(str),
        st.integers(-(2**70), 2**70).map(str) | st.integers(1, 16).map(lambda n: str(10**n)),
        st.floats().map(repr),
    )
    return st.one_of(
        number,
        number,
        st.lists(number, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.sampled_from(WORDS),
        st.sampled_from(choices) | st.text(st.characters(exclude_characters="\0"), max_size=20),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draws a base, and one or two hostile arguments."""
    base = draw(st.sampled_from(BASES))
    there = st.sampled_from(keys_under(base))
    keys = st.one_of(there, there, there, st.sampled_from((*GROUPS, *sorted(help_keys()))))
    argument = st.builds(
        lambda form, key, value: form(key, value), st.sampled_from(FORMS), keys, values()
    )
    count = draw(st.sampled_from((1, 1, 2)))
    return base, tuple(draw(st.lists(argument, min_size=count, max_size=count)))


def attempt(base: Sequence[str], arguments: Sequence[str]) -> Outcome:
    """Carries a command line as far as a run goes before anything starts."""
    began = time.process_time()
    kind, line, faults = "accepted", "", ()
    try:
        with _within(SECONDS):
            prepare(compose([*SMALL, *base, *arguments]))
    except PipelineError as error:
        kind, line = "refused", str(error)
        faults = tuple(faults_of(error, arguments, tuple(base)))
    except (Exception, TooLongError):
        kind, line = "traceback", traceback.format_exc()
    return Outcome(tuple(base), tuple(arguments), kind, line, faults, time.process_time() - began)


def faults_of(
    error: PipelineError, arguments: Sequence[str], base: tuple[str, ...]
) -> Iterator[str]:
    """Yields what the line of a refusal lacks: a key, its value, or a remedy. The key is one that
    was given, or one of the run's that does not go with it.
    """
    line = str(error)
    if error.exit_status != 2:
        yield "status"
    keys = {argument.lstrip("+~- .").partition("=")[0].strip(" .") for argument in arguments}
    given = any(key.partition("@")[0].partition("[")[0] in line for key in keys)
    named, equals, rest = line.partition("=")
    if not (named and equals and rest.partition(": ")[0].strip()):
        yield "value"
    if not given and named not in (*keys_under(base), *GROUPS):
        yield "key"
    remedy = error.remedy if isinstance(error, ConfigError) else line.partition(": ")[2]
    if len(remedy) < 5 or " failed (" in remedy:
        yield "remedy"
    if not line.isprintable() or len(line) > LONGEST:
        yield "one line"


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raises `TooLongError` within the context after so many seconds of the processor."""

    def stop(*_: Any) -> None:
        raise TooLongError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def apart() -> Iterator[Path]:
    """A context in a folder that holds the data of `BASES` alone, with no Ray cluster, and at most
    `ROOM` bytes more memory.
    """
    there, limits = os.getcwd(), resource.getrlimit(resource.RLIMIT_DATA)
    address = os.environ.pop("RAY_ADDRESS", None)
    most = psutil.Process().memory_info().data + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (most, limits[1]))
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            rows = np.random.default_rng(0).integers(0, 256, (30, 4, 4), np.uint8)
            Path("images").write_bytes(
                struct.pack(">4B3I", 0, 0, 8, 3, *rows.shape) + rows.tobytes()
            )
            table = pa.table({name: rows[:, 0, n] / 100 for n, name in enumerate("abc")})
            pq.write_table(table, "rows.parquet")
            lines = [f"{n / 10},{'ash' if n % 3 else 'oak'}" for n in range(30)]
            Path("words.csv").write_text("\n".join(["a,b", *lines, ",ash", "1,"]))
            codes = np.random.default_rng(1).integers(0, 5, (30, 6))
            rows = ("".join("-ACGU"[code] for code in row) for row in codes)
            lines = (f">{n}\n{row}" for n, row in enumerate(rows))
            Path("family.fasta").write_text("\n".join(lines))
            yield Path(folder)
            os.chdir(there)
    finally:
        os.chdir(there)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        if address is not None:
            os.environ["RAY_ADDRESS"] = address


def fuzz(count: int, seed: int, each: Callable[[Outcome], None] = lambda _: None) -> list[Outcome]:
    """Returns the outcomes of `count` cases, the same for the same seed; `each` sees them as they
    come.
    """
    outcomes: list[Outcome] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def one(case: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        outcomes.append(attempt(*case))
        each(outcomes[-1])

    one()
    return outcomes


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    place = given.json.absolute() if given.json else None

    def tell(outcome: Outcome) -> None:
        if outcome.kind == "traceback" or outcome.faults:
            shown = " ".join(text[:80] for text in outcome.arguments)
            tail = outcome.line.strip().splitlines()[-1][:300]
            print(ascii(f"{outcome.kind} {outcome.faults}: {shown} -> {tail}"), flush=True)

    with apart() as folder:
        outcomes = fuzz(given.cases, given.seed, tell)
        written = sorted({path.name for path in folder.iterdir()} - set(FILES))
    kinds = collections.Counter(outcome.kind for outcome in outcomes)
    lacking = collections.Counter(fault for outcome in outcomes for fault in outcome.faults)
    figures = {
        "command": f"python -m tests.fuzz --cases {given.cases} --seed {given.seed}",
        "cases": len(outcomes),
        "distinct_cases": len({(outcome.base, outcome.arguments) for outcome in outcomes}),
        "accepted": kinds["accepted"],
        "refused": kinds["refused"],
        "tracebacks": kinds["traceback"],
        "refusals_lacking_key": lacking["key"],
        "refusals_lacking_value": lacking["value"],
        "refusals_lacking_remedy": lacking["remedy"],
        "refusals_of_several_lines": lacking["one line"],
        "refusals_of_another_status": lacking["status"],
        "written": written,
        "keys": len(help_keys()),
        "longest_processor_seconds": round(max(outcome.seconds for outcome in outcomes), 1),
    }
    text = json.dumps(figures, indent=1) + "\n"
    print(text)
    if place is not None:
        place.write_text(text)
    return int(bool(kinds["traceback"] or lacking or written))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
