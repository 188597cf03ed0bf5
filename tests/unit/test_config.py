"""The configuration: what it accepts, what it refuses and in which words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from hydra.errors import HydraException

from pipeline.assembly.data import open_data
from pipeline.assembly.energies import make_energy
from pipeline.assembly.learner import make_terms
from pipeline.common.errors import ConfigError
from pipeline.config import parts
from pipeline.config.compose import compose, validate
from pipeline.config.groups import choices, conf_directory
from pipeline.config.help import page
from pipeline.config.keys import describe
from pipeline.config.objectives import MixtureObjective
from pipeline.config.run import GROUPS, RunConfig
from tests.beside import BINARY, beside

CATEGORICAL = ["data.encoding=categorical", "data.noise=0", "kernel=gibbs"]
MIXTURE = ["objective=mixture"]
TWO = ["trainer.replicas=2"]
FSDP = "trainer.sharding=fsdp"
GPUS = ["cluster.pool_gpus=0.5"]


@pytest.mark.slow
def test_every_shipped_yaml_loads() -> None:
    """Each choice of each group, with what it needs, composes to a valid configuration.

    Run folders are named by digests: those of `digests.json` change where a key, or a
    default, does.
    """
    digests = json.loads((Path(__file__).parent / "digests.json").read_text())
    assert compose().digest() == digests[""]
    files = sorted(conf_directory().rglob("*.yaml"))
    assert len(files) == sum(len(choices(group)) for group in GROUPS) + 1
    for group in GROUPS:
        for choice in choices(group):
            config = compose([*beside(group, choice), f"{group}={choice}"])
            if group != "experiment" and group != "trainer":
                assert getattr(config, group).name == choice
            expected = digests.get(f"{group}={choice}", config.digest())
            assert config.digest() == expected, f"{group}={choice}"
    assert yaml.safe_load((conf_directory() / "config.yaml").read_text())["defaults"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "digits"),
        (["data=toy"], "toy"),
        (["data=columns", "data.path=rows"], "rows"),
        (["data=columns", "data.path=/a/b/wine quality.csv.gz"], "wine_quality"),
        (["data=columns", "data.path=s3://bucket/events/*.parquet"], "events"),
        (["data=columns", "data.path=s3://bucket/day=*/*.parquet"], "bucket"),
        (["data=idx", "data.path=/a/fashion"], "idx"),
        (["experiment=protein_potts", "data.path=/a/DHFR.a2m.gz"], "DHFR"),
        (["experiment=digits_rbm"], "digits_rbm"),
        (["data=toy", "name=mine"], "mine"),
    ],
)
def test_a_run_is_called_after_its_data(arguments: list[str], name: str) -> None:
    """Unless an experiment or a person gives it a name."""
    assert compose(arguments).name == name


def test_an_experiment_gives_way_to_another_choice() -> None:
    """Its settings of a group go with its own choice there; what is given by hand stays."""
    config = compose(["experiment=toy", "kernel=hmc", "kernel.leapfrog_steps=3", "energy=custom"])
    assert config.kernel == compose(["kernel=hmc", "kernel.leapfrog_steps=3"]).kernel
    assert config.energy == compose(["energy=custom"]).energy
    assert config.data == compose(["experiment=toy"]).data
    assert compose(["experiment=toy", "kernel=mala"]).kernel == compose(["experiment=toy"]).kernel
    assert (
        compose(["experiment=toy", "kernel=ula", "kernel.step_size=0.3"]).kernel.parameters[
            "step_size"
        ]
        == 0.3
    )


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/day=1/*.parquet",
        "/a b/c,d/{1}.arrow",
        "~/x",
        "it's",
        "C:\\data",
        "'quoted, too'",
    ],
)
def test_paths_need_no_quoting(path: str) -> None:
    """Whatever a path may hold, as the shell hands it over."""
    expected = path.strip("'") if path.startswith("'") else path
    assert compose([f"output={path}"]).output == expected


def test_configuration_is_frozen_and_typed() -> None:
    config = compose(["trainer.steps=7", "optimizer.learning_rate=1"])
    assert config.trainer.steps == 7
    assert config.optimizer.learning_rate == 1.0
    with pytest.raises(ValueError, match="frozen"):
        config.trainer.steps = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "key", "value", "remedy"),
    [
        (["trainer.stepz=1"], "trainer.stepz", "1", "did you mean trainer.steps"),
        (["lag=3"], "lag", "3", "trainer.lag"),
        (["+trainer.extra=1"], "trainer.extra", "1", "unknown key"),
        (["trainer.steps=abc"], "trainer.steps", "abc", "whole number"),
        (["trainer.steps=true"], "trainer.steps", "True", "whole number"),
        (["trainer.steps=0"], "trainer.steps", "0", "greater than or equal to 1"),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate", "nan", "finite"),
        (
            ["trainer.reweight=maybe"],
            "trainer.reweight",
            "maybe",
            "'auto' or true or false",
        ),
        (["energy=foo"], "energy", "foo", "conditional_mlp, conv, custom"),
        (["energy=null"], "energy", "null", "conditional_mlp, conv, custom"),
        (["kernel=hmc", "kernel.inner=ula"], "kernel.inner", "ula", "goes with kernel=replica"),
        (["trainer.steps=1,2"], "trainer.steps", "1,2", "one value"),
        (["--steps=3"], "--steps", "3", "key=value"),
        (["steps"], "steps", "(missing)", "key=value"),
        (["data=idx"], "data.path", "???", "must be given for data=idx"),
        (["kernel=gibbs"], "kernel", "gibbs", "use mala, hmc or random_walk"),
        (["energy=rbm"], "kernel", "mala", "gibbs_with_gradients or single_site"),
        (["energy=rbm", "kernel=gibbs"], "data", "digits", "data.encoding=binary"),
        (["data.encoding=binary"], "data.encoding", "binary", "use real"),
        (["experiment=digits_rbm", "data.noise=0.1"], "data.noise", "0.1", "data.noise=0"),
        (["data=toy", "energy=conv"], "energy", "conv", "energy=mlp"),
        (["trainer.negatives=100"], "trainer.negatives", "100", "multiple of chains.per_pool=64"),
        (["trainer.negatives=256"], "trainer.negatives", "256", "at most all 128"),
        (["objective=cd", "trainer.batch_size=100"], "trainer.batch_size", "100", "use 128"),
        (
            ["objective=short_run", "kernel=replica_exchange"],
            "kernel",
            "replica_exchange",
            "objective=pcd",
        ),
        (["objective=hutchinson", "trainer.lag=1"], "trainer.lag", "1", "no chains"),
        (
            ["objective=hutchinson", "trainer.reweight=true"],
            "trainer.reweight",
            "true",
            "no negatives",
        ),
        (["objective=fast_pcd", "trainer.lag=3"], "trainer.lag", "3", "at most 2"),
        (["trainer.lag=soon"], "trainer.lag", "soon", "'auto'"),
        (["objective=hutchinson", "trainer.lag=auto"], "trainer.lag", "auto", "no chains"),
        (["objective=hutchinson", "trainer.refresh=1"], "trainer.refresh", "1", "no negatives"),
        (["trainer.refresh=2"], "trainer.refresh", "2", "at trainer.lag=0 no negatives are stale"),
        (
            ["objective=cd", "trainer.lag=1", "trainer.refresh=2"],
            "trainer.refresh",
            "2",
            "not valid for objective=cd",
        ),
        (
            ["kernel=ula", "kernel.noise=0.1", "trainer.lag=auto", "trainer.refresh=2"],
            "trainer.refresh",
            "2",
            "not valid for kernel=ula",
        ),
        (
            ["trainer.lag=1", "trainer.refresh=2", "trainer.reweight=true"],
            "trainer.refresh",
            "2",
            "get no weights",
        ),
        (
            [*TWO, FSDP, "trainer.lag=1", "trainer.refresh=2"],
            "trainer.refresh",
            "2",
            "no rank has the whole model",
        ),
        ([*TWO, FSDP, "trainer.lag=auto"], "trainer.lag", "auto", "no rank has the whole model"),
        (
            ["trainer.lag=auto", "trainer.lag_mode=exact"],
            "trainer.lag_mode",
            "exact",
            "use bound",
        ),
        (
            ["trainer.lag=auto", "trainer.reweight=true"],
            "trainer.reweight",
            "true",
            "use auto, or false",
        ),
        (["objective=sliced", "energy.box=[-2,2]"], "objective", "sliced", "use energy.box=null"),
        (["objective=sliced", "objective.probe=hutch_pp"], "objective.probes", "1", "at least 3"),
        (["objective=sliced", "objective.probe=basis"], "objective.probe", "basis", "'rademacher'"),
        (
            ["objective=denoising_finite_difference", "objective.probe=hutch_pp"],
            "objective.probe",
            "hutch_pp",
            "'orthogonal'",
        ),
        (
            ["objective=denoising", "objective.sigmas=[0.1,0]"],
            "objective.sigmas.1",
            "0",
            "greater than 0",
        ),
        (
            ["objective=pseudo_likelihood"],
            "objective",
            "pseudo_likelihood",
            "use pcd, hutchinson, denoising or nce",
        ),
        (
            [*BINARY, "objective=hutchinson"],
            "objective",
            "hutchinson",
            "use pcd, pseudo_likelihood",
        ),
        (
            [*CATEGORICAL, "energy=potts_rbm", "objective=ratio_matching"],
            "objective",
            "ratio_matching",
            "pseudo_likelihood",
        ),
        (
            [*BINARY, "objective=conditional_nce", "objective.scale=1.5"],
            "objective.scale",
            "1.5",
            "less than 1",
        ),
        (["objective=improved_cd"], "kernel", "mala", "use kernel=ula"),
        (
            ["objective=improved_cd", "kernel=ula", "objective.replayed=6"],
            "objective.replayed",
            "6",
            "replay at most that",
        ),
        (
            [*MIXTURE, "objective.weights={pcd:1,cd:1}"],
            "objective.weights",
            "pcd, cd",
            "at most one objective",
        ),
        ([*MIXTURE, "objective.weights={pdc:1}"], "objective.weights", "pdc", "no such objective"),
        ([*MIXTURE, "objective.weights=3"], "objective.weights", "3", "should be a dictionary"),
        ([*MIXTURE, "objective.weights={pcd:-1}"], "objective.weights.pcd", "-1", "greater than 0"),
        (
            [*MIXTURE, "objective.terms.nce.draws=2"],
            "objective.terms.nce",
            "{'draws': 2}",
            "add it there",
        ),
        (
            [*MIXTURE, "objective.terms.pcd.draws=2"],
            "objective.terms.pcd.draws",
            "2",
            "unknown key",
        ),
        (
            ["kernel=ula", "kernel.noise=0.1", "trainer.reweight=true"],
            "trainer.reweight",
            "true",
            "use auto",
        ),
        (["kernel=ula", "kernel.noise=0.1", "trainer.lag=3"], "trainer.lag", "3", "at most 2"),
        (["device=cuda"], "cluster.pool_gpus", "0.0", "device=cuda needs a GPU"),
        (["device=tpu"], "device", "tpu", "cpu, cuda or cuda:N"),
        (["chains.min_pools=3"], "chains.min_pools", "3", "use at most that"),
        (["chains.max_pools=1"], "chains.max_pools", "1", "use that or more"),
        (
            ["chains.max_pools=4"],
            "chains.max_pools",
            "4",
            "at lag 0 each step consumes the rounds of given pools",
        ),
        (
            ["chains.max_pools=4", "trainer.lag=2", "cluster=inline"],
            "chains.max_pools",
            "4",
            "which no pool joins",
        ),
        (
            ["trainer.lag=2", "trainer.lag_mode=exact", "trainer.inflight=2"],
            "trainer.inflight",
            "2",
            "use null",
        ),
        (
            ["trainer.sharding=fsdp"],
            "trainer.sharding",
            "fsdp",
            "one rank has nothing to share; use trainer.replicas=2",
        ),
        ([*TWO, "cluster=inline"], "trainer.replicas", "2", "use 1, or cluster=local"),
        ([*TWO, "trainer.batch_size=129"], "trainer.batch_size", "129", "use a multiple of 2"),
        ([*TWO, "trainer.negatives=64"], "trainer.negatives", "64", "use a multiple of 128"),
        (
            ["trainer.replicas=4"],
            "trainer.negatives",
            "128",
            "use a multiple of 256, from that many chains",
        ),
        (
            [*TWO, "objective=improved_cd", "kernel=ula"],
            "objective",
            "improved_cd",
            "use trainer.replicas=1",
        ),
        (
            [*TWO, *MIXTURE, "kernel=ula", "objective.weights={improved_cd:1,nce:1}"],
            *("objective", "improved_cd", "use trainer.replicas=1"),
        ),
        (
            [*TWO, "device=cuda", *GPUS, "cluster.server_gpus=0.5"],
            "cluster.server_gpus",
            "0.5",
            "a GPU for each",
        ),
        *(
            (
                [*TWO, FSDP, f"objective={name}"],
                "trainer.sharding",
                "fsdp",
                f"objective={name} needs more than that",
            )
            for name in (
                "score_matching",
                "hutchinson",
                "sliced",
                "denoising",
                "nce",
                "fast_pcd",
                "maximum_likelihood",
            )
        ),
        (
            [*TWO, FSDP, *MIXTURE, "objective.weights={pcd:1,sliced:1}"],
            "trainer.sharding",
            "fsdp",
            "objective=sliced needs",
        ),
        (
            [*TWO, FSDP, "experiment=dbm_digits"],
            "trainer.sharding",
            "fsdp",
            "energy=dbm uses parameters outside of E(x)",
        ),
        (
            [*TWO, FSDP, "experiment=conditional_regression"],
            "trainer.sharding",
            "fsdp",
            "energy=conditional_mlp uses",
        ),
        (["hydra.verbose=true"], "hydra.verbose", "true", "refused"),
        (["hydra/job_logging=none"], "hydra/job_logging", "none", "refused"),
        (["+energy._target_=os.system"], "energy._target_", "os.system", "unknown key"),
        (["energy={_target_:os.system}"], "energy", "{_target_:os.system}", "unknown key"),
    ],
)
def test_bad_input_is_one_clear_error(
    overrides: list[str], key: str, value: str, remedy: str
) -> None:
    """The error names the key, the value and what would be right."""
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.key == key
    assert str(caught.value.value) == value
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer.stepz=1", "trainer.stepz"),
        ("trainer.steps.more=1", "trainer.steps.more"),
        ("~trainer.more", "trainer.more"),
        ("energy={a:1}", "energy"),
        ("kernel@kernel.inner=mala", "kernel@kernel.inner"),
    ],
)
def test_hydra_puts_the_key_in_quotes(override: str, key: str) -> None:
    """Its errors have the key in their text alone, which is what a refusal names it by."""
    with (
        hydra.initialize_config_dir(str(conf_directory()), version_base="1.3"),
        pytest.raises(HydraException, match=f"'{re.escape(key)}'"),
    ):
        hydra.compose("config", [override])


@pytest.mark.parametrize(
    ("group", "value", "key", "said"),
    [
        ("kernel", {"name": "foo"}, "kernel", "foo"),
        ("kernel", {}, "kernel", "null"),
        ("energy", {"name": "no", "hidden": [1]}, "energy", "no"),
    ],
)
def test_a_stored_part_that_there_is_not_is_refused(
    group: str, value: dict[str, object], key: str, said: str
) -> None:
    """As in a configuration of another version."""
    stored = {**compose().model_dump(mode="json"), group: value}
    with pytest.raises(ConfigError, match="no such choice; there are ") as caught:
        validate(stored)
    assert (caught.value.key, caught.value.value) == (key, said)


def test_a_ladder_is_no_rung_of_another() -> None:
    stored = compose(["kernel=replica_exchange"]).model_dump(mode="json")
    stored["kernel"]["inner"] = dict(stored["kernel"])
    with pytest.raises(ConfigError, match=r"kernel\.inner=replica_exchange: no such choice"):
        validate(stored)


@pytest.mark.parametrize(
    ("name", "probe", "key", "most"),
    [
        ("hutchinson", "orthogonal", "probes", 2),
        ("hutchinson", "hutch_pp", "probes", 8),
        ("denoising_finite_difference", "orthogonal", "draws", 2),
    ],
)
def test_a_row_has_no_more_orthogonal_directions_than_dimensions(
    name: str, probe: str, key: str, most: int
) -> None:
    """The most that there are can be drawn."""
    overrides = ["data=toy", f"objective={name}", f"objective.probe={probe}"]
    with pytest.raises(ConfigError, match=f"use at most {most}$"):
        open_data(compose([*overrides, f"objective.{key}={most + 1}"]))
    config = compose([*overrides, f"objective.{key}={most}"])
    data = open_data(config)
    energy = make_energy(config, data.shape)
    (term,) = make_terms(config, energy, data.sample)
    term.objective.draw(energy, data.sample[:3], torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_several_ranks_go_with_all_that_is_additive() -> None:
    """Every other objective with two, and those of contrastive divergence, differences and
    conditionals sharded as well.
    """
    for name in choices("objective"):
        if getattr(parts.section_of("objective", name), "additive", True):
            compose([*beside("objective", name), f"objective={name}", *TWO])
    sections = {name: parts.section_of("objective", name) for name in choices("objective")}
    shardable = [name for name, section in sections.items() if getattr(section, "shardable", False)]
    assert {"pcd", "finite_difference", "conditional_nce", "pseudo_likelihood"} <= set(shardable)
    for name in shardable:
        compose([*beside("objective", name), f"objective={name}", *TWO, FSDP])


def test_steps_take_the_rounds_of_pools_in_turn() -> None:
    """All pools each step, or some of them: then the next ones the step after."""
    sizes = ["chains.per_pool=8", "chains.pools=3"]
    assert [compose(sizes).pools_of_step(step) for step in (0, 7)] == [[0, 1, 2]] * 2
    some = compose([*sizes, "trainer.negatives=16"])
    assert [some.pools_of_step(step) for step in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_reweighting_is_on_where_it_is_valid() -> None:
    assert compose([]).reweight
    assert not compose(["trainer.reweight=false"]).reweight
    assert not compose(["kernel=ula", "kernel.noise=0.1"]).reweight
    assert not compose(["objective=cd"]).reweight
    assert not compose(["objective=short_run"]).reweight
    assert not compose(["objective=hutchinson"]).reweight
    assert compose(MIXTURE).reweight


def test_a_mixture_has_the_settings_of_its_terms() -> None:
    """Weights that are given take the place of all; a term's settings are those of its file but
    where they are given.
    """
    config = compose(
        [*MIXTURE, "objective.weights={cd:1,hutchinson:0.5}", "objective.terms.hutchinson.probes=4"]
    )
    assert isinstance(config.objective, MixtureObjective)
    assert config.objective.weights == {"cd": 1.0, "hutchinson": 0.5}
    assert config.objective.terms["cd"] == compose(["objective=cd"]).objective
    assert (
        config.objective.terms["hutchinson"]
        == compose(["objective=hutchinson", "objective.probes=4"]).objective
    )
    assert config.starts_at_data


def test_without_chains_there_are_no_pools() -> None:
    config = compose(["objective=hutchinson", "chains.pools=7"])
    assert (config.pools, config.negatives, config.batches_per_step) == (0, 0, 0)
    assert compose([*MIXTURE, "objective.weights={nce:1,hutchinson:1}"]).pools == 0
    assert compose(MIXTURE).pools == 2


def test_digest_names_what_is_learned() -> None:
    """Where and how a run is carried out does not change its name; what it learns does."""
    base = compose([]).digest()
    assert (
        compose(
            [
                "cluster=inline",
                "metrics.port=0",
                "output=/x",
                "checkpoint.every=7",
                "trainer.steps=9",
            ]
        ).digest()
        == base
    )
    assert compose(["seed=1"]).digest() != base


def test_round_trip_through_json() -> None:
    """A checkpoint's manifest stores the configuration as JSON and reads it back the same."""
    config = compose(["experiment=digits_rbm"])
    assert validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_help_lists_every_group_choice_and_key() -> None:
    text = page("", "all")
    lists = text.partition("Keys")[0].replace("*", "").split()
    for group in GROUPS:
        offered = " | ".join(choices(group)).split()
        where = lists.index(f"{group}=") + 1
        assert lists[where : where + len(offered)] == offered
    keys = {key for key, _, _ in describe()}
    assert {
        "output",
        "resume",
        "seed",
        "device",
        "trainer.steps",
        "trainer.batch_size",
        "trainer.negatives",
    } <= keys
    assert {
        "trainer.lag",
        "trainer.lag_mode",
        "trainer.reweight",
        "trainer.min_ess",
        "optimizer.learning_rate",
    } <= keys
    assert {
        "chains.pools",
        "chains.per_pool",
        "kernel.transitions",
        "data.path",
        "checkpoint.every",
        "metrics.port",
        "metrics.address",
    } <= keys
    for key, _, meaning in describe():
        assert meaning.strip(), f"{key} is not explained"
        assert re.search(rf"^  {re.escape(key)}=", text, re.M), key


def test_every_field_is_set_in_yaml() -> None:
    """No default hides in code: what `--help` shows is what conf/ says."""
    for name, field in RunConfig.model_fields.items():
        assert field.is_required(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["trainer.stepz=1"], ["trainer.batch_size=5000", "cluster=inline"]]
)
def test_refusal_exits_with_2_and_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.train", *arguments, f"output={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    key = arguments[0].partition("=")[0]
    assert done.stderr.startswith(f"refused: {key}=")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_lag_that_the_run_chooses() -> None:
    """At most 1, by first come; in one process there is nothing to choose. Negatives are moved by
    what is given, or 2, where they are draws of the model's law.
    """
    auto = compose(["trainer.lag=auto"])
    assert (auto.chooses_lag, auto.lag, auto.refresh, auto.assigned_rounds) == (True, 1, 2, False)
    alone = compose(["trainer.lag=auto", "cluster=inline"])
    assert (alone.chooses_lag, alone.lag, alone.refresh) == (False, 0, 0)
    assert alone.assigned_rounds
    assert compose(["trainer.lag=auto", "trainer.refresh=0"]).refresh == 0
    assert compose(["trainer.lag=auto", "trainer.refresh=5"]).refresh == 5
    assert compose(["trainer.lag=auto", "objective=cd"]).refresh == 0
    assert compose(["trainer.lag=3"]).refresh == 0


def test_what_is_moved_gets_no_weights() -> None:
    assert compose(["trainer.lag=1"]).reweight
    assert not compose(["trainer.lag=1", "trainer.refresh=2"]).reweight


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://key:secret@bucket/data?token=secret", "data"),
        ("s3://key:sec/ret@bucket", "bucket"),
        ("https://host/wine.csv?sig=sec/ret", "wine"),
        ("s3://bucket/a/*.parquet", "a"),
        ("here/wine.csv.gz", "wine"),
    ],
)
def test_a_run_is_called_after_its_file_without_secrets(path: str, name: str) -> None:
    assert compose(["data=columns", f"data.path='{path}'", "data.held_out=5"]).name == name
