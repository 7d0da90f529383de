"""The page in a real browser: clicked through, without an error on its console and without a
request."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import golden_incidents
import pytest
from golden_incidents import RECEIVER, SENDER
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from freezeframe.harness.incidents.dossier import Dossier
from freezeframe.harness.report.html import page

WAIT_S = 60


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed: .ci/setup test installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    profile = tmp_path_factory.mktemp("profile")
    for one in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run",
                "disable-dev-shm-usage", f"user-data-dir={profile}", "window-size=1280,1000"):  # fmt: skip
        options.add_argument(f"--{one}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    opened.set_page_load_timeout(WAIT_S)
    yield opened
    opened.quit()


def show(browser: webdriver.Chrome, path: Path) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    WebDriverWait(browser, WAIT_S).until(
        lambda driver: (
            driver.execute_script("return document.documentElement.dataset.ready") == "yes"
        )
    )


def assert_silent(browser: webdriver.Chrome, path: Path) -> None:
    """No message on the console, no request but for the page itself, no dialog."""
    assert browser.get_log("browser") == []
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        one["params"]["request"]["url"]
        for one in told
        if one["method"] == "Network.requestWillBeSent"
    ]
    # the browser's own first tab asks for itself, which a page cannot
    own = ("data:", "chrome:", "chrome-untrusted:")
    assert [url for url in asked if not url.startswith(own)] == [path.as_uri()]
    assert not [one for one in told if one["method"] == "Page.javascriptDialogOpening"]


def write(folder: Path, evidence: Dossier) -> Path:
    path = folder / "incident.html"
    path.write_text(page(evidence))
    return path


@pytest.mark.parametrize("name", [RECEIVER, SENDER])
def test_a_person_clicks_through_it(browser: webdriver.Chrome, tmp_path: Path, name: str) -> None:
    evidence = Dossier(golden_incidents.unpack(name, tmp_path))
    path = write(tmp_path, evidence)
    show(browser, path)
    said = [browser.find_element(By.ID, one).text for one in ("headline", "seen", "why", "now")]
    assert said[0].startswith("the deliberate fault was detected")
    assert "Digest integrity check FAILED" in said[1] and evidence.verdict.text in said[2]
    assert "console.log at byte" in said[3]
    cards = browser.find_element(By.ID, "summary").text
    assert "digest-failed" in cards and "complete" in cards

    # the way: one dot a step, and the row lights up with its dot
    dots = browser.find_elements(By.CSS_SELECTOR, "#way circle")
    assert len(dots) == len(evidence.path.steps)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#way path.arrow")) == len(
        evidence.path.arrows
    )
    webdriver.ActionChains(browser).move_to_element(dots[2]).perform()
    lit = browser.find_elements(By.CSS_SELECTOR, "#way li.lit .name")
    assert [one.text for one in lit] == [evidence.path.steps[2].name]

    # timeline: one picture at a time
    panels = {
        key: browser.find_element(By.ID, f"panel-{key}")
        for key in ("close", "whole", "primary", "secondary")
    }
    assert panels["close"].is_displayed() and not panels["whole"].is_displayed()
    browser.find_element(By.CSS_SELECTOR, "label[for=tab-whole]").click()
    assert panels["whole"].is_displayed() and not panels["close"].is_displayed()
    assert panels["whole"].find_elements(By.CSS_SELECTOR, "line.zero")

    # the failing byte
    marked = browser.find_elements(By.CSS_SELECTOR, "table.hex i.x")
    diff = evidence.diff
    assert diff is not None
    at = diff.offsets[0]
    shown = [one.text for one in marked if re.fullmatch(r"[0-9a-f]{2}", one.text)]
    assert shown == [f"{diff.expected[at]:02x}", f"{diff.found[at]:02x}"]
    assert f"byte {at} from sector {diff.sector}" in browser.find_element(By.ID, "diff").text

    # consoles: the other side, filter, back to the trigger
    browser.find_element(By.CSS_SELECTOR, "label[for=tab-primary]").click()
    assert panels["primary"].is_displayed() and not panels["secondary"].is_displayed()
    box = panels["primary"].find_element(By.CSS_SELECTOR, "input[type=search]")
    box.send_keys("pair state")
    lines = [
        one
        for one in browser.find_elements(By.CSS_SELECTOR, "#lines-primary div")
        if one.is_displayed()
    ]
    assert lines and all("pair state" in one.text for one in lines)
    browser.find_element(By.ID, "jump").click()
    assert panels["secondary"].is_displayed()
    trigger = browser.find_element(By.ID, "trigger-line")
    assert trigger.is_displayed() and "Digest integrity check FAILED" in trigger.text

    # the rest
    browser.find_element(By.CSS_SELECTOR, "#rows summary").click()
    assert browser.find_element(By.ID, "rows-body").is_displayed()
    assert browser.find_elements(By.CSS_SELECTOR, "#state tr.differs")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#latencies circle")) == len(
        evidence.link.writes
    )
    assert len(browser.find_elements(By.CSS_SELECTOR, "#latencies circle.failing")) == 1
    assert_silent(browser, path)


LUMA = "return (c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))(getComputedStyle(arguments[0])[arguments[1]])"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1000, 1600])
def test_the_answer_is_above_the_fold_and_nothing_sticks_out(
    browser: webdriver.Chrome, tmp_path: Path, width: int, scheme: str
) -> None:
    path = write(tmp_path, Dossier(golden_incidents.unpack(RECEIVER, tmp_path)))
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        show(browser, path)
        tops = [browser.find_element(By.ID, one).rect for one in ("headline", "seen", "why", "now")]
        assert sorted(tops, key=lambda one: one["y"]) == tops
        assert tops[-1]["y"] + tops[-1]["height"] < 900
        sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
        needed, there = browser.execute_script(sizes)
        assert needed <= there
        ink, paper = (
            sum(browser.execute_script(LUMA, browser.find_element(By.TAG_NAME, "body"), one))
            for one in ("color", "backgroundColor")
        )
        assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 400
        # Narrow views of the timeline: each is drawn anew, with its own axis.
        views = browser.find_elements(By.CSS_SELECTOR, "#timeline .panel")
        axes = {tuple(one.get_attribute("textContent").split()) for one in views}
        assert len(views) == len(axes) >= 4
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_only_what_failed_looks_like_a_failure(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The same evidence as a pass and as a failure: the badge, the edge and the marks differ."""
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    looks = {}
    for outcome in ("pass", "fail", "inconclusive", "rig-trouble"):
        changed = json.loads((stored.path / "incident.json").read_text()) | {"outcome": outcome}
        (stored.path / "incident.json").write_text(json.dumps(changed))
        show(browser, write(tmp_path, Dossier(type(stored).open(stored.path))))
        badge = browser.find_element(By.CSS_SELECTOR, ".badge")
        assert badge.text == outcome.upper()
        marks = (
            (badge, "backgroundColor"),
            (browser.find_element(By.TAG_NAME, "header"), "borderLeftColor"),
            (browser.find_element(By.CSS_SELECTOR, "#summary .bad b"), "color"),
            (browser.find_element(By.ID, "trigger-line"), "backgroundColor"),
        )
        looks[outcome] = [tuple(browser.execute_script(LUMA, *one)) for one in marks]
    for at in (0, 1):
        assert len({look[at] for look in looks.values()}) == len(looks)
    is_red = {name: look[2][0] > look[2][2] for name, look in looks.items()}
    assert not is_red["pass"] and is_red["fail"] and looks["pass"][3] != looks["fail"][3]


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onmouseover=alert(3) '\x1b[2J{{7*7}}</style>\u202e"


def test_an_attackers_incident_is_only_text(browser: webdriver.Chrome, tmp_path: Path) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    record = json.loads((stored.path / "incident.json").read_text())

    def poisoned(value: object) -> object:
        if isinstance(value, str):
            return value + HOSTILE
        if isinstance(value, list):
            return [poisoned(one) for one in value]
        if isinstance(value, dict):
            return {key: poisoned(one) for key, one in value.items()}
        return value

    bad = poisoned(record)
    assert isinstance(bad, dict)
    bad["trigger"] |= {"side": "secondary", "source": "console"}
    bad["verdict"] = {
        "conclusive": True, "stage": HOSTILE, "reasons": [HOSTILE], "text": HOSTILE, HOSTILE: HOSTILE, "bit_mask": HOSTILE,
        "also": [{"kind": HOSTILE}], "state_differences": [{"field": HOSTILE}], "evidence_lacks": [HOSTILE],
    }  # fmt: skip
    bad["outcome"] = "fail"
    bad["versions"] = {HOSTILE: HOSTILE, "packages": {HOSTILE: HOSTILE}}
    (stored.path / "incident.json").write_text(json.dumps(bad))
    for side in ("primary", "secondary"):
        with (stored.path / side / "console.log").open("ab") as log:
            log.write(HOSTILE.encode() + b"\n" + b"\xff\xfe\x00" * 5000)
    with (stored.path / "timeline.jsonl").open("a") as rows:
        rows.write(
            json.dumps({"t_ns": 1, "source": HOSTILE, "event": HOSTILE, HOSTILE: HOSTILE}) + "\n"
        )
    evidence = Dossier(type(stored).open(stored.path))
    path = write(tmp_path, evidence)
    assert "<img" not in path.read_text() and "\x1b" not in path.read_text()
    assert path.read_text().count("<script>") == 1
    show(browser, path)
    assert "<script>alert(1)</script>" in browser.find_element(By.ID, "summary").text
    for label in browser.find_elements(By.TAG_NAME, "label"):
        label.click()
    assert_silent(browser, path)


def test_the_verdict_comes_first(browser: webdriver.Chrome, tmp_path: Path) -> None:
    evidence = Dossier(golden_incidents.unpack(RECEIVER, tmp_path))
    path = write(tmp_path, evidence)
    show(browser, path)
    assert browser.find_element(By.ID, "why").text == evidence.verdict.text
    said = browser.find_element(By.ID, "verdict").text
    assert (
        "secondary before check" in said and "0x20" in said and evidence.verdict.reasons[0] in said
    )
    assert "connection" in browser.find_element(By.ID, "state").text
    assert_silent(browser, path)


def test_an_empty_incident_is_a_page_too(browser: webdriver.Chrome, tmp_path: Path) -> None:
    stored = golden_incidents.unpack(RECEIVER, tmp_path)
    for part in list(stored.path.rglob("*")):
        if part.is_file():
            part.unlink()
    (stored.path / "incident.json").write_text("{}")
    path = write(tmp_path, Dossier(type(stored).open(stored.path)))
    show(browser, path)
    assert browser.find_element(By.ID, "headline").text == "the run was stopped before its end."
    assert "there is no capture of the link" in browser.find_element(By.ID, "about").text
    assert_silent(browser, path)
