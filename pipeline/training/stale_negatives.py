"""The learner's way with negatives that were made under older weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.chains.sampler import ChainPlan
from pipeline.common.rng import torch_generator
from pipeline.common.types import LagChoice, Negatives
from pipeline.config.run import RunConfig
from pipeline.energies.base import Energy
from pipeline.objectives.base import NegativeSide, Term
from pipeline.training.lag_choice import Treatment
from pipeline.training.lag_probe import LagProbe
from pipeline.training.lag_trial import LagTrial, Pace, Seen
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.refresh import Refresher
from pipeline.training.staleness import LagController


class StaleNegatives:
    """Steers the bound on lag, and says what stale negatives get: what the configuration says, or
    where the run chooses, what its trials find to be free (`LagTrial`). `energy` has the learner's
    weights; `moving` says how negatives are moved, None where they never are. Each of the `ranks`
    moves its own, with a random stream of its own; what they choose is the same on each.
    """

    def __init__(
        self,
        config: RunConfig,
        energy: Energy,
        terms: Sequence[Term],
        moving: ChainPlan | None,
        ranks: Ranks = ALONE,
    ) -> None:
        # what is not reweighted has no ESS to steer by
        steered = (
            config.reweight and config.trainer.lag_mode == "bound" and not config.assigned_rounds
        )
        self._config, self._ranks = config, ranks
        self._controller = LagController(config.lag, config.trainer.min_ess, steered)
        self._refresher: Refresher | None = None
        if moving is not None:
            generator = torch_generator(config.seed, "refresh", ranks.rank, device=config.device)
            self._refresher = Refresher(energy, moving, generator)
        self._trial: LagTrial | None = None
        if config.chooses_lag:
            (term,) = (term for term in terms if term.objective.consumes_chains)
            self._trial = LagTrial(config)
            self._probe = LagProbe(config, energy, term, self._refresher)
        self._ended: float | None = None  # when the last step did
        self._pace: Pace | None = None
        self._seen: list[Seen] = []  # what every rank saw of this step

    @property
    def reweight(self) -> bool:
        """True where stale negatives of the next step get importance weights."""
        if self._trial is None:
            return self._config.reweight
        return self._trial.treatment is Treatment.REWEIGHTED

    @property
    def bound(self) -> int:
        """The bound on lag."""
        if self._trial is None:
            return self._controller.bound
        return (
            min(self._trial.bound, self._controller.bound) if self.reweight else self._trial.bound
        )

    @property
    def choice(self) -> LagChoice | None:
        """The run's findings about lag, where it looks for any."""
        return None if self._trial is None else self._trial.choice

    def move(self, side: NegativeSide | None, received: Sequence[Negatives], version: int) -> None:
        """Moves the negatives of the `side` that are older than `version` under the weights now,
        where they are to be: in place, those of all batches together, in their order.
        """
        moves = self._trial is None or self._trial.treatment is Treatment.MOVED
        if self._refresher is None or side is None or not moves:
            return
        stale = [batch.version < version for batch in received]
        if not any(stale):
            return
        sizes = torch.tensor([len(batch.energy) for batch in received])
        rows = torch.tensor(stale).repeat_interleave(sizes).to(side.position.device)
        context = None if side.context is None else side.context[rows]
        side.position[rows] = self._refresher.move(side.position[rows], context)

    def look(self, side: NegativeSide | None, received: Sequence[Negatives], version: int) -> None:
        """Sees what there is to see of a step, before the weights of `version` are updated."""
        if self._trial is None:
            return
        look = self._probe.look(side, received, version) if self._trial.probing else None
        self._seen = self._ranks.gather(Seen(self._pace, look))

    def observe(self, version: int, ess: float) -> None:
        """Takes in the update that made `version`, and the mean ESS of all ranks' batches, 0 where
        there are none.
        """
        if self._trial is None or self.reweight:
            self._controller.observe(ess)
        if self._trial is not None:
            self._trial.observe(version, self._seen)

    def end(self, ahead: float, step: float) -> None:
        """A step ended now, in which the learner computed for so many seconds, `ahead` of its
        negatives and in the `step` itself.
        """
        now = time.perf_counter()
        self._pace = None if self._ended is None else Pace(now - self._ended, ahead, step)
        self._ended = now

    def state_dict(self) -> dict[str, Any]:
        """The state that all ranks share."""
        return self._controller.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._controller.load_state_dict(state)

    def own_state(self) -> dict[str, Any] | None:
        """The state that this rank shares with no other; None where it has none."""
        return None if self._refresher is None else self._refresher.state_dict()

    def take_over(self, state: dict[str, Any] | None, version: int) -> None:
        """Takes up what another rank's `own_state` has learned, with a random stream of its own,
        which begins at `version`.
        """
        if state is not None:
            seed, rank = self._config.seed, self._ranks.rank
            generator = torch_generator(
                seed, "refresh", rank, version + 1, device=self._config.device
            )
            self.load_own_state({**state, "generator": generator.get_state()})

    def load_own_state(self, state: dict[str, Any] | None) -> None:
        if self._refresher is not None and state is not None:
            self._refresher.load_state_dict(state)
