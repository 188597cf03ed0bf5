"""Other libraries' training loops, for `benchmarks.time_to_likelihood`.

    python -m benchmarks.contestants TASK CONTESTANT SEED SETTING FILE

One run in a process of its own. SETTING is JSON. FILE gets the snapshots of the run: the seconds
that its loop had computed, and the weights, in the order of this project's own parameters.

A library keeps its own loop, loss, sampler and first weights. What its users bring stays theirs to
bring: the data, an optimizer of torch's, a rate that falls to 0 linearly. A library's moving
average of the weights is used where it has one and the setting says its decay.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.assembly.data import open_data
from pipeline.config.compose import compose

SNAPSHOTS = 24
HIDDEN = 16
WIDTHS = (64, 384, 384, 1)

Setting = dict[str, Any]
Read = Callable[[], Sequence[Tensor]]


class Snapshot(NamedTuple):
    """The weights that a loop had after so many `seconds` of its own."""

    seconds: float
    weights: list[Tensor]


class Watch:
    """A stopwatch for a loop that makes `setting["steps"]` steps; it stands while weights are kept.

    `read` returns the weights. It is called after every `steps / SNAPSHOTS` steps.
    """

    def __init__(self, setting: Setting, read: Read) -> None:
        self.steps, self.rate = setting["steps"], setting["rate"]
        self._read, self._made, self._seconds = read, 0, 0.0
        self.kept: list[Snapshot] = []
        self._began = time.perf_counter()

    def step(self) -> float:
        """Count a step that was made; return the rate of the next one."""
        self._made += 1
        if self._made % max(1, self.steps // SNAPSHOTS) == 0 or self._made == self.steps:
            self._seconds += time.perf_counter() - self._began
            self.kept.append(Snapshot(self._seconds, [w.detach().clone() for w in self._read()]))
            self._began = time.perf_counter()
        return float(self.rate * max(0.0, 1 - self._made / self.steps))

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Count the optimizer's steps, and set its rates."""

        def stepped(*_: Any) -> None:
            rate = self.step()
            for group in optimizer.param_groups:
                group["lr"] = rate

        optimizer.register_step_post_hook(stepped)
        self._began = time.perf_counter()


def make_optimizer(
    setting: Setting, parameters: Sequence[Tensor], maximize: bool = False
) -> torch.optim.Optimizer:
    """Make the `setting`'s: SGD, or AdamW with its `betas` and decay."""
    if setting.get("optimizer", "sgd") == "sgd":
        return torch.optim.SGD(parameters, setting["rate"], maximize=maximize)
    return torch.optim.AdamW(
        parameters,
        setting["rate"],
        betas=(float(setting["betas"][0]), float(setting["betas"][1])),
        weight_decay=setting.get("decay", 0.0),
        maximize=maximize,
    )


# RBMs 64x16 of the binarized digits


def digits_in_black_and_white() -> Tensor:
    """Return the training rows, `[1500, 64]` of 0 and 1."""
    return open_data(compose(["experiment=digits_rbm"])).sample.flatten(1).contiguous()


def scikit_learn(setting: Setting, seed: int) -> list[Snapshot]:
    """Run `BernoulliRBM.fit`: persistent chains, as many as a batch has rows, no momentum."""
    from sklearn.neural_network import BernoulliRBM

    def weights() -> list[Tensor]:
        arrays = (model.components_, model.intercept_visible_, model.intercept_hidden_)
        return [torch.from_numpy(array) for array in arrays]

    class Model(BernoulliRBM):
        def _fit(self, rows: Any, random: Any) -> None:
            if not hasattr(self, "watch"):
                self.watch = Watch(setting, weights)
            super()._fit(rows, random)
            self.learning_rate = self.watch.step()

    rows = digits_in_black_and_white().numpy()
    epochs = round(setting["steps"] * setting["batch"] / len(rows))
    model = Model(HIDDEN, batch_size=setting["batch"], n_iter=epochs, random_state=seed)
    model.learning_rate = setting["rate"]
    model.fit(rows)
    kept: list[Snapshot] = model.watch.kept
    return kept


def rbms(setting: Setting, seed: int) -> list[Snapshot]:
    """Run `rbms.training.pcd.train`, which writes its rate to an HDF5 file at every step."""
    import numpy as np
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.dataset.dataset_class import RBMDataset
    from rbms.parser import default_args
    from rbms.training.pcd import train

    torch.manual_seed(seed)
    rows = digits_in_black_and_white().numpy()
    empty, ones = np.empty(0), np.ones(len(rows), np.float32)
    data = RBMDataset(rows, ones, ones, empty, "digits", is_binary=True, device="cpu")
    watches: list[Watch] = []

    def optimizer(parameters: list[Tensor], lr: float, maximize: bool) -> torch.optim.Optimizer:
        weight, visible, hidden = parameters
        watch = Watch(setting, lambda: (weight.T, visible, hidden))
        made = make_optimizer({**setting, "rate": lr}, parameters, maximize)
        watch.follow(made)
        watches.append(watch)
        return made

    with tempfile.TemporaryDirectory() as folder:
        train(
            train_dataset=data,
            test_dataset=data,
            model_type="BBRBM",
            args={
                **default_args,
                "filename": str(Path(folder) / "rbm.h5"),
                "num_hiddens": HIDDEN,
                "batch_size": setting["batch"],
                "gibbs_steps": setting["transitions"],
                "learning_rate": setting["rate"],
                "num_chains": setting["chains"],
                "num_updates": setting["steps"] + 1,  # it counts the first weights as one
                "training_type": "pcd",
                "device": "cpu",
                "dtype": torch.float32,
                "train_size": 1.0,
                "test_size": None,
                "seed": seed,
                "log": False,
            },
            dtype=torch.float32,
            checkpoints=np.empty(0),
            optim=optimizer,
            map_model={"BBRBM": BBRBM},
        )
    return watches[0].kept


def rbms_step(setting: Setting, seed: int) -> list[Snapshot]:
    """Run the step of `rbms` in a bare loop: as `train`, without its files and progress bar."""
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.bernoulli_bernoulli.implement import _init_parameters
    from rbms.training.pcd import fit_batch_pcd

    torch.manual_seed(seed)
    rows = digits_in_black_and_white()
    visible, hidden, weight = _init_parameters(HIDDEN, rows, rows.device, rows.dtype)
    model = BBRBM(weight, visible, hidden)
    chains = model.init_chains(setting["chains"])
    model.init_grad()
    optimizer = make_optimizer(setting, model.parameters(), maximize=True)
    watch = Watch(setting, lambda: (model.weight_matrix.T, model.vbias, model.hbias))
    watch.follow(optimizer)
    ones = torch.ones(len(rows), 1)
    with torch.no_grad():
        for _ in range(setting["steps"]):
            chosen = torch.randperm(len(rows))[: setting["batch"]]
            batch = rows[chosen], ones[chosen]
            optimizer.zero_grad(set_to_none=False)
            chains, _ = fit_batch_pcd(batch, chains, model, setting["transitions"], 1.0)
            optimizer.step()
    return watch.kept


def ebmkit_rbm(setting: Setting, seed: int) -> list[Snapshot]:
    """Run `ebm.Trainer.fit` on `ebm.nets.RBM`: a chain for each row of a batch."""
    import ebm
    from ebm.nets import RBM

    torch.manual_seed(seed)
    model = RBM(WIDTHS[0], HIDDEN)
    buffer = ebm.ReplayBuffer(setting["batch"], WIDTHS[:1], reinit_prob=0.0, init_fn=_coins)
    sampler = ebm.GibbsSampler(steps=setting["transitions"])
    return _ebmkit(setting, model, sampler, buffer, digits_in_black_and_white())


def _coins(shape: tuple[int, ...]) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5))


def _ebmkit(setting: Setting, model: nn.Module, sampler: Any, buffer: Any, data: Any) -> Any:
    import ebm

    loss = ebm.ContrastiveDivergence(sampler, buffer, energy_reg=setting.get("energy_l2", 0.0))
    optimizer = make_optimizer(setting, list(model.parameters()))
    trainer = ebm.Trainer(
        model,
        loss,
        optimizer,
        device="cpu",
        ema_decay=setting.get("ema"),
        grad_clip_norm=setting.get("clip"),
    )
    averaged = model if trainer.ema is None else trainer.ema.module
    watch = Watch(setting, lambda: list(averaged.parameters()))
    watch.follow(optimizer)
    trainer.fit(data, steps=setting["steps"], batch_size=setting["batch"], verbose=False)
    return watch.kept


# the perceptron 64-384-384-1 of the grey digits


class Perceptron(nn.Module):
    """The default energy in plain modules: a SiLU perceptron + |x|^2 / 2, its last layer small."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, other in pairwise(WIDTHS):
            layers += [nn.Linear(width, other), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])
        last = layers[-2]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.net(x).squeeze(1) + x.square().sum(1) / 2
        return value


def noisy_digits(batch: int) -> Iterator[Tensor]:
    """Yield batches of training rows with the data's noise, `[batch, 64]`, in epochs, for ever."""
    data = open_data(compose([]))
    rows = data.sample.flatten(1)
    while True:
        for chosen in torch.randperm(len(rows)).split(batch):
            if len(chosen) == batch:
                yield rows[chosen] + data.noise * torch.randn(batch, WIDTHS[0])


def ebmkit_deep(setting: Setting, seed: int) -> list[Snapshot]:
    """Run `ebm.Trainer.fit` with MALA or ULA, a replay buffer and its moving average."""
    import ebm

    torch.manual_seed(seed)
    shape, chains = WIDTHS[:1], setting["chains"]
    buffer = ebm.ReplayBuffer(chains, shape, reinit_prob=setting["restart"])
    kind = {"mala": ebm.MALA, "ula": ebm.LangevinDynamics}[setting["kernel"]]
    sampler = kind(step_size=setting["step_size"], steps=setting["transitions"])
    kept: list[Snapshot] = _ebmkit(
        setting, Perceptron(), sampler, buffer, noisy_digits(setting["batch"])
    )
    return kept


def torchebm(setting: Setting, seed: int) -> list[Snapshot]:
    """Run the loop of torchebm's guides: its loss, its Langevin dynamics and its moving average."""
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics
    from torchebm.utils.ema import EMA

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__(device="cpu")
            self.energy = Perceptron()

        def forward(self, x: Tensor) -> Tensor:
            value: Tensor = self.energy(x)
            return value

    torch.manual_seed(seed)
    model = Model()
    loss_of = ContrastiveDivergence(
        model,
        LangevinDynamics(model, step_size=setting["step_size"], device="cpu"),
        k_steps=setting["transitions"],
        persistent=True,
        buffer_size=setting["chains"],
        init_steps=0,
        new_sample_ratio=setting["restart"],
        energy_reg_weight=setting["energy_l2"],
        device=torch.device("cpu"),
    )
    optimizer = make_optimizer(setting, list(model.parameters()))
    average = EMA(model, setting["ema"])
    batches = noisy_digits(setting["batch"])
    watch = Watch(setting, lambda: list(average.module.parameters()))
    watch.follow(optimizer)
    for _ in range(setting["steps"]):
        optimizer.zero_grad(set_to_none=True)
        loss, _ = loss_of(next(batches))
        loss.backward()
        if setting.get("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), setting["clip"])
        optimizer.step()
        average.update(model)
    return watch.kept


CONTESTANTS: dict[str, dict[str, Callable[[Setting, int], list[Snapshot]]]] = {
    "digits RBM": {
        "scikit-learn": scikit_learn,
        "rbms": rbms,
        "rbms, its step alone": rbms_step,
        "ebmkit": ebmkit_rbm,
    },
    "digits perceptron": {"ebmkit": ebmkit_deep, "torchebm": torchebm},
}


def main() -> None:
    task, name, seed, setting, file = sys.argv[1:]
    settings = json.loads(setting)
    torch.set_num_threads(settings.get("threads", 1))
    kept = CONTESTANTS[task][name](settings, int(seed))
    torch.save([tuple(snapshot) for snapshot in kept], file)


if __name__ == "__main__":
    main()
