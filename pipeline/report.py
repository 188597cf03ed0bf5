"""Write a page about a run, or about several side by side: one file that a browser opens by itself.

    python -m pipeline.report run=URL [output=FOLDER]
    python -m pipeline.report runs=[A,B]

URL is a run's output folder, on any fsspec file system, of a run that is done or goes on. The page
is report.html, which a run writes at its end, too. It has the run's likelihood, last lines, curves,
pictures, figures, configuration and timings; of several runs, what they have come to and the
settings that differ come first. Pictures are within the file: it can be mailed, and needs no
network.

    python -m pipeline.report run=runs/latest
    python -m pipeline.report runs=[runs/slow,runs/quick] output=compared

Exit status: 0 done, 2 refused before the start, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config.arguments import carry_out, parse, usage
from pipeline.config.report import Settings


def main(arguments: Sequence[str]) -> int:
    """Carries out the command line, and returns its exit status."""

    def work(texts: Sequence[str]) -> None:
        settings, _ = parse(texts, Settings, ())
        from pipeline.runs.page import write_page

        print(f"  page        {write_page(settings)}", flush=True)

    return carry_out(arguments, usage(__doc__ or "", Settings), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
