"""Try the combinations of settings, and find the best at a fraction of their cost.

    python -m pipeline.sweep [group=choice ...] [key=value ...] key=a,b,c ...

Every combination of the values is a trial: a run in one process, as many at once as
there are cores (or GPUs), on a Ray of its own, or on the cluster at RAY_ADDRESS;
with cluster=inline one after the other, without Ray. Trials are judged by the
log-likelihood of held-out rows at rungs; the best third of them goes on to three
times the steps (successive halving). One that goes on does so from its checkpoint,
and ends as the whole run would. The same command goes on with a sweep that was
interrupted. Each trial is a run like any other, for pipeline.sample, .evaluate and
.report.

    python -m pipeline.sweep experiment=digits_rbm \\
        optimizer.learning_rate=0.05,0.1,0.2 energy.hidden=8,16,32
    python -m pipeline.sweep experiment=toy objective=pcd,hutchinson,nce \\
        optimizer.learning_rate=0.001,0.003 sweep.rungs=2

Exit status: 0 done, 2 refused before the start, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config.arguments import carry_out, usage
from pipeline.config.run import RunConfig
from pipeline.config.sweep import PREFIX, Settings, parse


def sweep(arguments: Sequence[str]) -> str:
    """Carries out the sweep of a command line, and returns its last lines. Raises `PipelineError`,
    `pipeline.runs.interruption.Interrupted`.
    """
    asked = parse(arguments)
    from actors.trials import here, on_ray
    from pipeline.runs.display import Display
    from pipeline.runs.sweep import carry_out as carry_out_sweep
    from pipeline.runs.sweep import in_words, name_of
    from pipeline.storage.paths import absolute, resolve_output, with_absolute_paths
    from pipeline.storage.probe import check_output

    where = asked.base.output or f"runs/{name_of(asked)}"
    output = resolve_output(asked.base.model_copy(update={"output": where}))
    check_output(output)

    def configure(trial: int) -> RunConfig:
        config = with_absolute_paths(asked.config(trial, f"{output}/trials/{trial:04d}"))
        if config.init_from is None:
            return config
        where = absolute(config.init_from, "init_from")
        return config.model_copy(update={"init_from": where})

    if asked.base.cluster.name == "inline":
        advance = here(asked, configure)
    else:
        advance = on_ray(asked, configure, output)
    return in_words(asked, carry_out_sweep(asked, output, advance, Display().say))


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""

    def work(texts: Sequence[str]) -> None:
        from pipeline.runs.interruption import Interrupted

        try:
            print(sweep(texts), flush=True)
        except Interrupted as interrupted:  # within a trial, behind its checkpoint
            raise KeyboardInterrupt from interrupted

    return carry_out(arguments, usage(__doc__ or "", Settings, PREFIX), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
