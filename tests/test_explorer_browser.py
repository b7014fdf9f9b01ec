"""The explorer in a real browser, in JupyterLab and through Voila. Screenshots go to results/quick/screenshots."""

import importlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saol_lib.lens import Lens, State
from saol_lib.shipped import load_shipped

pytestmark = pytest.mark.browser
CI = os.environ.get("CI") == "true"  # where nothing is skipped
sync_api = importlib.import_module("playwright.sync_api") if CI else pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
ROOT, LOCAL = Path(__file__).parents[1], "http://127.0.0.1"
SCREENSHOTS = ROOT / "results/quick/screenshots"
CHROMIUM = shutil.which("chromium")
if not CHROMIUM and not CI:
    pytest.skip("no chromium is installed (Debian's package chromium)", allow_module_level=True)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def serve(command, folder, environment):
    """Start a server on a free port of this machine and wait until it answers; its process and address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "server.log").open("w") as log:
        words = [sys.executable, "-m", *(word.format(port=port) for word in command)]
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return process, f"{LOCAL}:{port}"
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.3)
    process.kill()
    raise RuntimeError((folder / "server.log").read_text()[-2000:])


def open_lab(page, base):
    page.goto(f"{base}/lab/tree/explorer.ipynb?token=t0k&reset")
    page.wait_for_function("window.jupyterapp !== undefined")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for()
    page.evaluate("""async () => { const app = window.jupyterapp; await app.restored;
        const w = app.shell.currentWidget; await w.context.ready; await w.sessionContext.ready;
        if (!app.shell.leftCollapsed) await app.commands.execute('application:toggle-left-area');
        await app.commands.execute('notebook:run-all-cells'); }""")


LAB = ("jupyterlab --no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port={port} "
       "--ServerApp.port_retries=0 --IdentityProvider.token=t0k --LabApp.expose_app_in_browser=True")  # fmt: skip
SERVERS = {
    "lab": (LAB, open_lab),
    "voila": (
        "voila explorer.ipynb --no-browser --port={port} --Voila.ip=127.0.0.1",
        lambda page, base: page.goto(base),
    ),
}


@pytest.fixture(scope="module", params=SERVERS)
def app(request, tmp_path_factory):
    """The notebook's copy, served; yields the name and a function that opens it in a page."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(ROOT / "notebooks/explorer.ipynb", folder)
    settings = folder / "config/labconfig/page_config.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    private = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    environment = os.environ | private | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command, go = SERVERS[request.param]
    process, base = serve(command.split(), folder, environment)
    yield request.param, lambda page: go(page, base)
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="module")
def lens():
    return Lens(*load_shipped("digits"))


@pytest.fixture
def page():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = browser.new_context(
            viewport={"width": 1280, "height": 860}, permissions=["clipboard-read", "clipboard-write"]
        )
        page = context.new_page()
        page.set_default_timeout(120_000)
        expect.set_options(timeout=30_000)
        page.route(lambda url: not url.startswith((LOCAL, "blob:", "data:")), lambda route: route.abort())
        yield page
        browser.close()


def picture(locator):
    """What is drawn there, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def change(locator, before):
    """How much of it looks otherwise than before, 0 to 1."""
    return float((np.abs(picture(locator) - before).max(axis=2) > 8).mean())


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def pull(page, locator, dx, dy, drop=True):
    x, y = centre(locator)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=6)
    if drop:
        page.mouse.up()


def tells(page, lens, state):
    """The page shows what `Lens` makes of the state: patch, answer, predictions, attention inside, box."""
    state = lens.check(state)
    numbers, (x0, y0, x1, y1) = lens.numbers(state) | lens.found(state), state.box
    label = re.compile(f"^Patch at {x0}, {y0}, {x1 - x0} wide, {y1 - y0} high")
    expect(page.locator(".saol-patch")).to_have_attribute("aria-label", label)
    expect(page.locator(".saol-sum")).to_contain_text(f"answer: {percent(numbers['saol'][numbers['k']])}")
    order = sorted(range(10), key=lambda k: -numbers["saol"][k])
    rows = [f"{k}{percent(numbers['saol'][k])} | {percent(numbers['gap'][k])}" for k in order]
    expect(page.locator(".saol-rows .row")).to_have_text(rows)
    area = (x1 - x0) * (y1 - y0) / 1024
    told = f"covers {percent(area)} of the picture and holds {percent(numbers['held'])} of the attention"
    expect(page.locator(".saol-patch-told")).to_contain_text(told)
    overlap = "no known true box" if numbers["iou"] is None else f": {numbers['iou']:.2f}"
    expect(page.locator(".saol-iou")).to_contain_text(overlap)
    return numbers


def percent(share):
    """As the page writes it."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def test_the_patch_follows_the_pointer_and_everything_answers(app, page, lens):
    name, go = app
    go(page)
    stage, patch = page.locator(".saol-stage"), page.locator(".saol-patch")
    state = lens.check(State(model="digits"))
    stage.wait_for()
    tells(page, lens, state)
    unit = stage.bounding_box()["width"] / 32
    screenshot(page, f"{name}-1-start")

    # a drag: the pixels follow at once, Python hears of the drop alone
    x0, y0, x1, y1 = state.box
    before, answer = picture(stage), page.locator(".saol-sum").text_content()
    pull(page, patch, -5 * unit, -7 * unit, drop=False)
    assert (
        page.locator(".saol-stage .pasted").evaluate("e => e.style.clipPath").startswith(f"inset({(y0 - 7) / 0.32:g}%")
    )
    mixed = lens.mixed((0, 1, (x0 - 5, y0 - 7, x1 - 5, y1 - 7)))[0].permute(1, 2, 0).numpy()
    shown = picture(stage)[int(unit * (y0 - 5)) + 4, int(unit * (x0 - 3)) + 4]
    assert np.abs(shown - mixed[y0 - 5, x0 - 3]).max() <= 2
    assert page.locator(".saol-sum").text_content() == answer
    screenshot(page, f"{name}-2-drag")
    page.mouse.up()
    state = replace(state, box=(x0 - 5, y0 - 7, x1 - 5, y1 - 7))
    tells(page, lens, state)
    assert change(stage, before) > 0.2

    # a corner, then the keys
    before = picture(stage)
    pull(page, page.locator(".saol-sw"), -4 * unit, 6 * unit)
    x0, y0, x1, y1 = state.box
    state = replace(state, box=(x0 - 4, y0, x1, y1 + 6))
    tells(page, lens, state)
    assert change(stage, before) > 0.02
    patch.focus()
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    x0, y0, x1, y1 = state.box
    state = replace(state, box=(x0 - 1, y0 - 2, x1, y1 - 3))
    tells(page, lens, state)

    # overlay, class, threshold, opacity, hover
    before = picture(stage)
    page.locator(".tile").filter(has_text="CAM").first.click()
    page.locator(".saol-rows .row").nth(3).click()
    k = sorted(range(10), key=lambda k: -lens.numbers(state)["saol"][k])[3]
    state = replace(state, overlay="cam", k=k)
    tells(page, lens, state)
    assert change(stage, before) > 0.2
    page.locator(".tile").filter(has_text="Mask").click()
    page.locator(".saol-threshold").fill("0.8")
    state = replace(state, overlay="mask", threshold=0.8)
    numbers = tells(page, lens, state)
    found, whole = page.locator(".saol-found").bounding_box(), stage.bounding_box()
    assert (found["x"] - whole["x"]) / unit == pytest.approx(numbers["box"][0], abs=0.1)
    assert found["height"] / unit == pytest.approx(numbers["box"][3] - numbers["box"][1] + 1, abs=0.1)
    screenshot(page, f"{name}-3-mask")
    page.locator(".saol-opacity").fill("0")
    mixed = lens.mixed(state.scene)[0].permute(1, 2, 0).numpy()
    shown = picture(stage)[int(30.5 * unit), int(2.5 * unit)]
    assert np.abs(shown - mixed[30, 2]).max() <= 2
    state = replace(state, opacity=0.0)
    page.mouse.move(whole["x"] + 5.5 * whole["width"] / 8, whole["y"] + 2.5 * whole["height"] / 8)
    spatial = lens.look(state.scene)[0].spatial_log_probs[0].exp()[:, 2, 5]
    attention = float(lens.map(state.scene, "attention", 0)[2, 5])
    told = (
        f"Row 3, column 6: A {percent(attention)}, says “{int(spatial.argmax())}” with {percent(float(spatial.max()))}"
    )
    expect(page.locator(".saol-hover")).to_have_text(told)

    # files: a state, the figure, uploads good and bad
    with page.expect_download() as download:
        page.locator(".saol-json").click()
    saved = State.of(json.loads(Path(download.value.path()).read_text()))
    assert saved == state
    with page.expect_download() as download:
        page.locator(".saol-svg").click()
    assert "<svg" in Path(download.value.path()).read_text() and download.value.suggested_filename == "saol.svg"
    upload = page.get_by_label("Upload: Picture")
    upload.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"these are notes"})
    expect(page.locator(".saol-message")).to_contain_text("notes.png is no whole picture; give a PNG")
    file = io.BytesIO()
    Image.new("RGB", (500, 400), (200, 30, 40)).save(file, "JPEG", quality=95)
    upload.set_input_files({"name": "red.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()})
    expect(page.locator(".saol-base small")).to_have_text("your picture")
    expect(page.locator(".saol-message")).to_contain_text("Drag the patch")
    shown = picture(stage)[int(30.5 * unit), int(2.5 * unit)]
    assert np.abs(shown - [200, 30, 40]).max() <= 6
    screenshot(page, f"{name}-4-upload")
    page.get_by_label("Load a state").set_input_files(
        {"name": "state.json", "mimeType": "application/json", "buffer": json.dumps(asdict(saved)).encode()}
    )
    tells(page, lens, saved)
    check_controls(page)
    if name == "voila":
        check_link(page, lens, saved)


def check_controls(page):
    """Everything has a name, can be reached by keys, and fits into 1024 x 700."""
    nameless = """() => [...document.querySelectorAll('.saol input, .saol select, .saol button')]
        .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.locator(".saol button").first.focus()
    reached = set()
    for _ in range(24):
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.type"))
        page.keyboard.press("Tab")
    assert {
        "saol-svg",
        "saol-link",
        "saol-threshold",
        "saol-opacity",
        "saol-box-x",
        "select-one",
        "checkbox",
    } <= reached
    assert any("patch" in name for name in reached) and "hidden" in reached
    page.set_viewport_size({"width": 1024, "height": 700})
    assert page.locator(".saol").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
    screenshot(page, "small")


def check_link(page, lens, state):
    """Voila shows no source, and the copied link opens the same state in a page of its own."""
    assert "AttentionExplorer" not in page.locator("body").inner_text()
    page.locator(".saol-link").click()
    expect(page.locator(".saol-message")).to_contain_text("copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert "token" not in link
    page.goto("about:blank")
    page.goto(link)
    tells(page, lens, state)


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"explorer-{name}.png")
