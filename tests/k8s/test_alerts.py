"""Every alert fires and is silent when it should, by promtool, and has its page."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("promql_parser", reason="make k8s-check installs what this needs")
from k8s.expressions import MONITORING, ROOT, rules
from tests.patience import PATIENCE

pytestmark = [
    pytest.mark.k8s,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: make k8s-check"),
]
TESTS: dict[str, Any] = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())
RULES: dict[str, Any] = {
    rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]
}


def promtool(
    folder: Path, spec: dict[str, Any], tests: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yaml").write_text(yaml.safe_dump(spec))
    (folder / "alerts_test.yaml").write_text(yaml.safe_dump(tests))
    command = ["promtool", "test", "rules", str(folder / "alerts_test.yaml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def of(alert: str) -> dict[str, Any]:
    """The unit tests of one alert alone."""
    tests = copy.deepcopy(TESTS)
    for test in tests["tests"]:
        test["alert_rule_test"] = [
            case for case in test["alert_rule_test"] if case["alertname"] == alert
        ]
    tests["tests"] = [test for test in tests["tests"] if test["alert_rule_test"]]
    return tests


def with_expression(alert: str, expression: str) -> dict[str, Any]:
    spec = rules()
    for group in spec["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == alert:
                rule["expr"] = expression
    return spec


def test_prometheus_takes_the_rules_and_their_unit_tests_pass(tmp_path: Path) -> None:
    done = promtool(tmp_path, rules(), TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    check = ["promtool", "check", "rules", str(tmp_path / "rules.yaml")]
    checked = subprocess.run(check, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_that_never_fires_fails_its_unit_test(tmp_path: Path, alert: str) -> None:
    done = promtool(
        tmp_path,
        with_expression(alert, f"({RULES[alert]['expr']}) and on () vector(1) == 0"),
        of(alert),
    )
    assert done.returncode != 0
    assert "got:[]" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "alert", [name for name, rule in RULES.items() if "ebm_training" in rule["expr"]]
)
def test_an_alert_that_does_not_ask_whether_the_run_trains_fails_its_unit_test(
    tmp_path: Path, alert: str
) -> None:
    expression, condition, _ = re.split(r"\b(and on|unless on)\b", RULES[alert]["expr"])
    assert condition
    done = promtool(tmp_path, with_expression(alert, expression), of(alert))
    assert done.returncode != 0, "no silent unit test is of a run that does not train"


@pytest.mark.parametrize("alert", RULES)
def test_every_alert_has_a_firing_and_a_silent_unit_test(alert: str) -> None:
    cases = [case for test in of(alert)["tests"] for case in test["alert_rule_test"]]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)
    assert any(
        not any("ebm_" in series["series"] for series in test["input_series"])
        for test in of(alert)["tests"]
    ), "none without any series"


@pytest.mark.parametrize("alert", RULES)
def test_every_alert_says_what_is_wrong_and_where_it_is_explained(alert: str) -> None:
    rule = RULES[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert "$labels.run" in rule["annotations"]["summary"]
    assert "$value" in rule["annotations"]["description"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    sections = {
        slug(heading): text
        for heading, text in re.findall(
            r"^#+ (.+)\n((?:(?!#).*\n)*)", (ROOT / page).read_text(), re.M
        )
    }
    assert anchor == alert.lower()
    assert "**Look at**" in sections[anchor], "a section, and what to look at"
    assert "**Do**" in sections[anchor]


def slug(heading: str) -> str:
    """The anchor that a heading has on the usual sites."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
