"""Generator of the Grafana dashboard of all runs: `python deploy/grafana/dashboard.py` writes rlhf.json beside it.

Needs `pip install grafana-foundation-sdk`. Grafana imports the file (Dashboards, New, Import) and asks for the
Prometheus data source.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import prometheus as queries
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    VariableRefresh,
    VariableSort,
)

HIDDEN = {"Time": True, "Value #A": True}
FILE = Path(__file__).with_name("rlhf.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'run=~"$run", method=~"$method"'
BY_RUN = "{{run}}"


class Curve(NamedTuple):
    """Panel with one curve per run."""

    title: str
    expr: str  # `$` is replaced by the chosen runs
    unit: str
    description: str
    legend: str = BY_RUN


class Figure(NamedTuple):
    """Panel with one number."""

    title: str
    expr: str
    unit: str
    description: str


FIGURES = (
    Figure("Running", 'sum(rlhf_run_state{state="running", $}) or vector(0)', "short", "Runs that make steps."),
    Figure("Waiting", 'sum(rlhf_run_state{state="queued", $}) or vector(0)', "short", "Runs that wait for devices."),
    Figure("Devices", "sum(rlhf_run_devices{$})", "short", "GPUs reserved now; workers, where there are none."),
    Figure("Device-hours", "sum(rlhf_run_device_seconds_total{$}) / 3600", "short", "Reserved by all attempts."),
    Figure(
        "Failed or lost", 'sum(rlhf_run_state{state=~"failed|lost", $}) or vector(0)', "short", "rlhf why RUN explains."
    ),
    Figure("Active alarms", "sum(rlhf_run_alarm_active{$}) or vector(0)", "short", "Of the newest step of each run."),
)

LEARNING = (
    Curve("Reward", "rlhf_run_reward{$}", "short", "Mean reward of the newest step."),
    Curve("Held-out reward", "rlhf_run_eval_reward{$}", "short", "Mean reward on the held-out prompts."),
    Curve(
        "KL over its budget",
        "rlhf_run_kl_nats{$} / rlhf_run_kl_budget_nats{$}",
        "percentunit",
        "KL to the reference, as a share of alarms.kl_budget.max_kl.",
    ),
    Curve("KL", "rlhf_run_kl_nats{$}", "short", "Nats per completion."),
    Curve("Loss", "rlhf_run_loss{$}", "short", "Loss of the newest step."),
    Curve("Pair accuracy", "rlhf_run_pair_accuracy_ratio{$}", "percentunit", "Preference methods."),
    Curve("Entropy", "rlhf_run_entropy_nats{$}", "short", "Nats per token. A collapse ends learning."),
    Curve("Completion length", "rlhf_run_completion_tokens{$}", "short", "Mean number of tokens."),
)
SPEED = (
    Curve("Progress", "rlhf_run_step{$} / (rlhf_run_planned_steps{$} > 0)", "percentunit", "Steps, of those planned."),
    Curve(
        "Time since the last step, in steps",
        "(time() - rlhf_run_last_step_timestamp_seconds{$}) / rlhf_run_step_seconds{$}"
        ' and ignoring (state) rlhf_run_state{state="running", $}',
        "short",
        "A run that stays above 5 has stalled.",
    ),
    Curve("Step time", "rlhf_run_step_seconds{$}", "s", "Mean of the newest 10 steps."),
    Curve("Tokens per second", "rlhf_run_tokens_per_second{$}", "short", "Tokens trained on."),
    Curve("Staleness", "rlhf_run_staleness_versions{$}", "short", "Versions between sampling and training."),
)
CLUSTER = (
    Curve("Devices", "rlhf_run_devices{$}", "short", "GPUs reserved; workers, where there are none."),
    Curve("Waiting for devices", "rlhf_run_queue_wait_seconds{$}", "s", "Of the newest attempt."),
    Curve("Attempts", "rlhf_run_attempts_total{$}", "short", "One, and one more for each restart or preemption."),
    Curve(
        "Workers restarted in place",
        "sum by (run, role) (increase(rlhf_run_worker_restarts_total{$}[$__range]))",
        "short",
        "In the time shown.",
        "{{run}} {{role}}",
    ),
    Curve("Alarms", "rlhf_run_alarm_active{$}", "short", "1 while an alarm is active.", "{{run}} {{alarm}}"),
)

COLUMNS = (
    ("sum by (run, method, state) (rlhf_run_state{$})", "", ""),
    ("sum by (run, method) (rlhf_run_step{$})", "Step", "short"),
    ("sum by (run, method) (rlhf_run_planned_steps{$})", "Planned", "short"),
    ("1000 * max by (run, method) (rlhf_run_last_step_timestamp_seconds{$})", "Last step", "dateTimeFromNow"),
    ("sum by (run, method) (rlhf_run_reward{$})", "Reward", "short"),
    ("sum by (run, method) (rlhf_run_kl_nats{$})", "KL", "short"),
    ("sum by (run, method) (rlhf_run_tokens_per_second{$})", "Tokens/s", "short"),
    ("sum by (run, method) (rlhf_run_device_seconds_total{$}) / 3600", "Device-hours", "short"),
    ("sum by (run, method) (rlhf_run_attempts_total{$})", "Attempts", "short"),
)
"""Columns of the table of runs: expression, heading and unit. The first one gives the labels alone.

`by (run, method)` leaves only labels that all queries share: the rows are merged on them.
"""


def build() -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard("RLHF runs")
        .uid("rlhf-runs")
        .description("Runs of a directory, as `rlhf metrics` shows them.")
        .tags(["rlhf"])
        .readonly()
        .time("now-24h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("method", "label_values(rlhf_run_state, method)"))
        .with_variable(_variable("run", 'label_values(rlhf_run_state{method=~"$method"}, run)'))
    )
    board.with_row(dashboard.Row("Now"))
    for figure in FIGURES:
        board.with_panel(_figure(figure))
    board.with_panel(_table())
    for title, curves in (("Learning", LEARNING), ("Speed", SPEED), ("Cluster", CLUSTER)):
        board.with_row(dashboard.Row(title))
        for curve in curves:
            board.with_panel(_curve(curve))
    return board


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _query(expr: str, name: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr.replace("$}", f"{CHOSEN}}}")).ref_id(name).datasource(SOURCE)


def _figure(figure: Figure) -> stat.Panel:
    return (
        stat.Panel()
        .title(figure.title)
        .description(figure.description)
        .datasource(SOURCE)
        .unit(figure.unit)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]))
        .height(4)
        .span(4)
        .with_target(_query(figure.expr, "A").instant())
    )


def _curve(curve: Curve) -> timeseries.Panel:
    return (
        timeseries.Panel()
        .title(curve.title)
        .description(curve.description)
        .datasource(SOURCE)
        .unit(curve.unit)
        .fill_opacity(0)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
        .height(8)
        .span(8)
        .with_target(_query(curve.expr, "A").range().legend_format(curve.legend))
    )


def _table() -> table.Panel:
    """Return the table of runs: one row per run, one column per query."""
    names = [chr(ord("A") + i) for i in range(len(COLUMNS))]
    panel = (
        table.Panel()
        .title("Runs")
        .description("`rlhf why RUN` explains a state.")
        .datasource(SOURCE)
        .height(10)
        .span(24)
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(DataTransformerConfig(id_val="organize", options={"excludeByName": HIDDEN}))
    )
    for name, (expr, heading, unit) in zip(names, COLUMNS, strict=True):
        panel.with_target(_query(expr, name).instant().format(queries.PromQueryFormat.TABLE))
        if heading:
            display = DynamicConfigValue(id_val="displayName", value=heading)
            panel.override_by_name(f"Value #{name}", [display, DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def as_json() -> str:
    """Return the dashboard as the text of rlhf.json."""
    return JSONEncoder(sort_keys=True, indent=2).encode(build().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(as_json(), "utf-8")
    print(FILE)
