"""Words for command lines that are not what their writer meant: what was probably meant, and how it
is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from pipeline.common.errors import ConfigError

FORM = "the arguments are key=value (see --help)"

# names of other tools, by the key or the choices that do the same here
KEYS = {
    **dict.fromkeys(("epochs", "iterations", "iters", "max_steps", "num_steps"), "trainer.steps"),
    **dict.fromkeys(("lr", "rate"), "optimizer.learning_rate"),
    **dict.fromkeys(("batch", "bs", "batchsize"), "trainer.batch_size"),
    **dict.fromkeys(("k", "cd_k", "sampling_steps"), "kernel.transitions"),
    **dict.fromkeys(("wd", "l2"), "optimizer.weight_decay"),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "device"),
    **dict.fromkeys(("num_chains", "n_chains", "replay_buffer"), "chains.per_pool"),
    **dict.fromkeys(("workers", "num_workers", "actors"), "chains.pools"),
    **dict.fromkeys(("out", "outdir", "output_dir", "save_dir"), "output"),
    **dict.fromkeys(("dataset", "file", "files"), "data.path"),
    **dict.fromkeys(("model", "network"), "energy"),
    **dict.fromkeys(("sampler", "mcmc"), "kernel"),
    **dict.fromkeys(("loss", "criterion"), "objective"),
    **dict.fromkeys(("config", "preset"), "experiment"),
    **dict.fromkeys(("tensorboard", "mlflow", "wandb", "logger"), "recorders"),
}
CHOICES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "data": {
        **dict.fromkeys(("mnist", "fashion_mnist", "fashionmnist"), ("idx",)),
        **dict.fromkeys(("csv", "parquet", "arrow", "npy", "npz", "table", "file"), ("columns",)),
        **dict.fromkeys(("folder", "png", "jpeg", "imagefolder"), ("images",)),
    },
    "energy": {
        **dict.fromkeys(("cnn", "resnet"), ("conv",)),
        "ising": ("lattice", "quadratic"),
        "boltzmann": ("quadratic", "rbm", "dbm"),
        "grbm": ("gaussian_rbm",),
    },
    "kernel": {
        "langevin": ("mala", "ula"),
        "sgld": ("ula",),
        "metropolis": ("random_walk",),
        "nuts": ("hmc",),
        "parallel_tempering": ("replica_exchange",),
    },
    "objective": {
        "contrastive_divergence": ("cd", "pcd"),
        **dict.fromkeys(("mle", "ml", "likelihood"), ("maximum_likelihood", "pcd")),
        **dict.fromkeys(("sm", "score"), ("score_matching", "hutchinson")),
        "dsm": ("denoising",),
        "ssm": ("sliced",),
    },
    "cluster": {
        **dict.fromkeys(("none", "single", "laptop"), ("inline", "local")),
        **dict.fromkeys(("k8s", "kubernetes"), ("kuberay",)),
    },
}


def no_such_choice(group: str, value: object, there: Sequence[str]) -> str:
    """Returns what is right where `group=value` is none of the choices `there`."""
    if group == "data" and ("." in str(value) or "/" in str(value)):
        return f"no such choice; files are given as data=columns data.path={value}"
    name = str(value).lower().replace("-", "_")
    near = [name] if name in there else list(CHOICES.get(group, {}).get(name, ()))
    near = near or difflib.get_close_matches(name, there, n=2, cutoff=0.6)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no such choice; {meant}there are {', '.join(there)}"


def meant_by(key: str, known: Sequence[str], groups: Iterable[str], most: int = 3) -> list[str]:
    """Returns the keys that `key` may be meant for, the likeliest first, `most` of them: by what
    other tools call them, by their last word, by the name of a group (`energy=`), or else those
    that are spelled like it. `known` has those of the default choices first.
    """
    names, key = list(groups), key.replace("/", ".").replace(":", ".")
    last = key.rpartition(".")[2].lower()
    if key.lower() in KEYS:
        found = KEYS[key.lower()]
        return [f"{found}=" if found in names else found]
    if key.lower() in known:
        return [key.lower()]
    same = [name for name in known if name.rpartition(".")[2] == last]
    if "." not in key:
        same += [f"{name}=" for name in difflib.get_close_matches(key, names, n=1, cutoff=0.7)]
    return (same or difflib.get_close_matches(key, known, n=most, cutoff=0.5))[:most]


def malformed(
    arguments: Sequence[str],
    number: int,
    known: Sequence[str],
    groups: Iterable[str],
    choices: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> ConfigError:
    """Returns the refusal of argument `number`, which has no `=`, or begins with a dash. It says
    how the setting that was meant is written, where that can be told. `choices` are those of each
    group, the likeliest group first.
    """
    text, names = arguments[number], list(groups)
    before = arguments[number - 1] if number else ""
    if before.endswith("=") and not text.startswith("-"):  # key= value
        key = before.removesuffix("=")
        return ConfigError(key, "''", f"write {key}={text}: {FORM}")
    name, equals, value = text.lstrip("-").partition("=")
    shown = value or "(missing)"
    behind = arguments[number + 1 :]
    if behind[:1] == ["="]:  # key = value
        behind = behind[1:]
    if not equals and behind and "=" not in behind[0] and not behind[0].startswith("-"):
        value = behind[0]
    if not text.startswith("-") and text.endswith((".yaml", ".yml")):
        remedy = "no file is read; settings are key=value, and presets experiment=NAME"
        return ConfigError(text, "(missing)", remedy)
    for group, there in choices.items():
        if text in there and text not in names:  # a choice without its group
            return ConfigError(text, "(missing)", f"write {group}={text}: {FORM}")
    exact = name in known or name in names
    near = [name] if exact else meant_by(name, known, names, 1)
    if name and near and value:
        remedy = f"write {near[0].rstrip('=')}={value}: {FORM}"
    elif text.startswith("-"):
        remedy = f"unknown option; {FORM}"
    else:
        remedy = f"give it a value: {FORM}" if exact else FORM
    return ConfigError(text.partition("=")[0], shown, remedy)
