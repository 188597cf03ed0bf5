"""A run in this process or on Ray, from its configuration to its summary."""

from __future__ import annotations

import logging
import os

from pipeline.assembly.data import doubts, told_columns
from pipeline.assembly.fit import misfits, row_spread
from pipeline.assembly.prepare import prepare
from pipeline.common.types import Figures
from pipeline.config.cores import crowding
from pipeline.config.run import RunConfig
from pipeline.data.content import content_of
from pipeline.diagnosis.causes import Facts
from pipeline.diagnosis.watch import Diagnosis
from pipeline.runs.display import Display
from pipeline.runs.inline import InlineRunner
from pipeline.runs.interruption import own_handlers
from pipeline.runs.run import Execution, Runner, Watch
from pipeline.runs.threads import own_threads
from pipeline.storage.folders import refuse_folder_of_a_run
from pipeline.storage.lease import LEASE_FOLDER
from pipeline.storage.paths import absolute, check_shared, resolve_output, with_absolute_paths
from pipeline.storage.probe import check_output, check_run
from pipeline.storage.store import CHECKPOINTS


@own_handlers()
@own_threads()
def launch(config: RunConfig, display: Display, until: int | None = None) -> Figures:
    """Trains what `config` describes, with what it carries, and returns what `summary.json` holds;
    or pauses at step `until` (`Execution.carry_out`). Ray is imported where it is to be used.

    Raises `PipelineError`, `pipeline.runs.interruption.Interrupted`.
    """
    config = with_absolute_paths(config)
    output = resolve_output(config)
    if config.init_from:  # after the output, which is named by it as it was given
        given = absolute(config.init_from, "init_from")
        config = config.model_copy(update={"init_from": given})
    check_shared(config, output)
    check_output(output, within=(CHECKPOINTS, LEASE_FOLDER))
    refuse_folder_of_a_run(output)
    if config.init_from:
        check_run(config.init_from, "init_from")
    config, data, model = prepare(config)
    display.say(
        f"{config.name}: {config.energy.name} energy, {config.kernel.name} kernel,"
        f" {config.objective.name}, to {output}"
    )
    crowded = crowding(config)
    for doubt in [*([crowded] if crowded else []), *doubts(config, data)]:
        display.say(f"warning: {doubt}")
    for line in told_columns(data):
        display.say(line)
    if data.sequences is not None:
        display.say(data.sequences.in_words())

    def make_runner(watch: Watch) -> Runner:
        if config.cluster.name == "inline":
            return InlineRunner(config)
        # as it is imported in a notebook it asks for ipywidgets, of which a run makes no use
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
        from actors.cluster import connect
        from actors.driver import RayRunner

        display.say(
            "joining the Ray cluster"
            if os.environ.get("RAY_ADDRESS")
            else "starting Ray and its actors"
        )
        connect(config, output)
        return RayRunner(config, output, data.shape, data.context_shape, watch=watch)

    content = content_of(config.data, data)
    facts = Facts(config, row_spread(data), held_out_apart=data.held_out_apart)
    diagnosis = Diagnosis(facts, misfits(config, model, data))
    execution = Execution(config, output, model, display, content, diagnosis)
    return execution.carry_out(make_runner, until)
