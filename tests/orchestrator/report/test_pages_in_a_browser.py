"""Reports in a real browser, offline: on a desktop and a phone, in the light and the dark scheme."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, executable
from run_on_disk import exit_alarm, run_on_disk

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

from test_comparison import compared, curve, task_runs

from orchestrator.compare.known_optimum import KnownOptimum, known_card
from orchestrator.compare.page import Section, page
from orchestrator.report.page import report
from orchestrator.report.run_record import RunRecord

BROWSER = executable()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine (RLHF_TEST_BROWSER names one)"),
]
LONG = "a-very-long-word-without-any-break-" * 12
SCREENS = [(1200, 900), (390, 844)]

PICTURES = """[...document.querySelectorAll('figure svg')].map(svg => {
  for (let d = svg.closest('details'); d; d = d.parentElement.closest('details')) d.open = true;
  const box = svg.getBoundingClientRect();
  const size = path => { const b = path.getBBox(); return b.width + b.height; };
  const drawn = [...svg.querySelectorAll('path')].filter(path => size(path) > 0);
  const texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
  return {
    title: svg.getAttribute('aria-label').split('.')[0], width: box.width, height: box.height, left: box.left,
    right: box.right, drawn: drawn.length, texts: texts.length,
    outside: texts.filter(t => t.left < box.left - 3 || t.right > box.right + 3).length,
    smallest: Math.min(...texts.map(t => Math.min(t.height, t.width * 3))),
  };
})"""
CONTRASTS = """(() => {
  const probe = document.createElement('i'); document.body.append(probe);
  const rgb = name => { probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number); };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ratio = (a, b) => { const [x, y] = [a, b].map(light).sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const names = ['ink', 'muted', 'warn', 'good', ...[0, 1, 2, 3, 4, 5, 6, 7].map(i => `s${i}`)];
  const least = n => Math.min(...['paper', 'raised'].map(ground => ratio(rgb(n), rgb(ground))));
  const found = Object.fromEntries(names.map(n => [n, least(n)]));
  probe.remove(); return found;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER is not None
    with Browser.started(BROWSER, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the report of a run with an alarm and a long prompt, the report of two runs, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    alarmed = run_on_disk(root, "grpo-a", exit={"alarms": [exit_alarm()]}, prompt=LONG, answer=LONG)
    failed = run_on_disk(root, "ppo-b", kind="ppo", exit={"cause": "worker_failed", "message": LONG, "exit_code": 4})
    settings = (("PPO", "kl_coef 0.01", 0.5), ("PPO", "kl_coef 0.1", 0.2), ("offline DPO", "beta 0.1", 1.0))
    curves = [curve(m, x, s, gain=g, kl=3 * g) for m, x, g in settings for s in (0, 1)]
    records = [RunRecord.read(run_on_disk(root, f"run-{i}"), one.name) for i, one in enumerate(curves)]
    optimum = KnownOptimum.model_validate(
        {
            "about": "a small world",
            "x": "KL",
            "y": "reward",
            "best": ((0.0, 0.0), (1.0, 0.8), (2.0, 1.0)),
            "methods": ({"name": "PPO", "points": ({"setting": "b", "runs": ((0.5, 0.3), (1.5, 0.8))},)},),
        }
    )
    pages = {
        "run": report([alarmed]).html,
        "runs": report([alarmed, failed]).html,
        "comparison": page("a comparison", [Section(answer=compared(task_runs(*curves)), records=records, lost=[])],
                           [known_card(optimum)])["report.html"],
    }  # fmt: skip
    keep = os.environ.get("RLHF_KEEP_PAGES")
    target = Path(keep) if keep else root
    for name, html in pages.items():
        (target / f"{name}.html").write_text(html)
    return {name: target / f"{name}.html" for name in pages}


@pytest.mark.parametrize(("width", "height"), SCREENS)
@pytest.mark.parametrize("name", ["run", "runs", "comparison"])
def test_a_page_is_readable(browser: Browser, pages: dict[str, Path], name: str, width: int, height: int) -> None:
    browser.open(pages[name], width=width, height=height)
    assert browser.requested() == [pages[name].as_uri()], "the page requests another resource"
    assert browser.complaints() == []
    pictures = browser.evaluate(PICTURES)
    assert len(pictures) >= 5
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    for found in pictures:
        assert found["width"] >= 280, found
        assert found["height"] >= 60, found
        assert found["left"] >= 0, found
        assert found["right"] <= width, found
        assert found["drawn"] >= 3, found
        assert found["texts"] >= 3, found
        assert found["outside"] == 0, found
        assert found["smallest"] >= 6.5, found
    if os.environ.get("RLHF_KEEP_PAGES"):
        browser.picture(pages[name].with_name(f"{name}-{width}.png"))


@pytest.mark.parametrize("dark", [False, True])
def test_every_colour_has_enough_contrast(browser: Browser, pages: dict[str, Path], dark: bool) -> None:
    """Check the contrast ratios of WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for graphics."""
    browser.open(pages["comparison"], width=1200, height=900, dark=dark)
    ratios = browser.evaluate(CONTRASTS)
    assert {name: ratio for name, ratio in ratios.items() if ratio < (3 if name.startswith("s") else 4.5)} == {}
    if os.environ.get("RLHF_KEEP_PAGES"):
        browser.picture(pages["comparison"].with_name(f"colours-{'dark' if dark else 'light'}.png"))


def test_the_browser_sees_a_page_that_is_too_wide(browser: Browser, tmp_path: Path) -> None:
    """Check the tests themselves: they detect a page that is too wide, requests a resource and has an empty chart."""
    bad = tmp_path / "bad.html"
    picture = '<figure><svg aria-label="x. y" viewBox="0 0 9 9" width="700" height="9"></svg></figure>'
    bad.write_text(f'<meta name="viewport" content="width=device-width"><img src="http://127.0.0.1:9/x.png">{picture}')
    browser.open(bad, width=390, height=844)
    assert browser.evaluate("document.documentElement.scrollWidth") > 390
    assert len(browser.requested()) == 2
    assert browser.evaluate(PICTURES)[0]["drawn"] == 0
