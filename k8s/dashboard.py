"""The Grafana dashboard, which Grafana's own typed builders make of the table in `k8s.panels`.

python -m k8s.dashboard        writes k8s/monitoring/dashboard.json
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

from k8s.panels import ROWS, Chart, Query, Stat

PATH = Path(__file__).parent / "monitoring" / "dashboard.json"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


def target(query: Query, number: int) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.promql)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + number))
        .range()
    )


def stat_panel(panel: Stat) -> stat.Panel:
    built = (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(options.BigValueGraphMode.NONE)
        .color_mode(options.BigValueColorMode.NONE)
        .text_mode(options.BigValueTextMode.NAME if panel.named else options.BigValueTextMode.VALUE)
        .height(4)
    )
    if panel.words:
        meaning = {value: models.ValueMappingResult(text=word) for value, word in panel.words}
        built.mappings([models.ValueMap(options=meaning)])
    return built


def chart_panel(panel: Chart) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .height(7)
        .line_width(1)
        .show_points(options.VisibilityMode.NEVER)
        .fill_opacity(30 if panel.stacked else 0)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI))
    )
    if panel.low is not None:
        built.min(panel.low)
    if panel.high is not None:
        built.max(panel.high)
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if panel.logarithmic:
        built.scale_distribution(
            common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10)
        )
    if panel.limit is not None:
        below, above = ("red", "transparent") if panel.bad_below else ("transparent", "red")
        steps = [
            models.Threshold(value=None, color=below),
            models.Threshold(value=panel.limit, color=above),
        ]
        built.thresholds(
            grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
        )
        built.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(options.GraphTresholdsStyleMode.AREA)
        )
    return built


def built(panel: Chart | Stat) -> stat.Panel | timeseries.Panel:
    """Return the panel with what every panel has, whatever its kind."""
    made = stat_panel(panel) if isinstance(panel, Stat) else chart_panel(panel)
    made.title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE).span(
        panel.width
    )
    for number, query in enumerate(panel.queries):
        made.with_target(target(query, number))
    return made


def choice(name: str, label: str, query: str) -> grafana.QueryVariable:
    return (
        grafana.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def dashboard() -> str:
    """Return the dashboard as Grafana imports it."""
    board = (
        grafana.Dashboard("EBM training")
        .uid("ebm-training")
        .description(
            "One run of the EBM pipeline: learning, chains, flow of batches, faults, checkpoints,"
            " resources."
        )
        .tags(["ebm"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            grafana.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(choice("run", "Run", "label_values(ebm_run_info, run)"))
        .with_variable(
            choice("pool", "Pool", 'label_values(ebm_transitions_total{run="$run"}, pool)')
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
        )
    )
    number = 1
    for title, panels in ROWS:
        board.with_row(grafana.Row(title).id(number))
        for panel in panels:
            number += 1
            board.with_panel(built(panel).id(number))
        number += 1
    return json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(dashboard())
