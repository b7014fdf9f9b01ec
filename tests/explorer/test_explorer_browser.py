"""The explorer in a real browser, in JupyterLab and through Voila. Screenshots go to results/quick/screenshots."""

import base64
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

from saol_lib.explorer.lens import Lens, State
from saol_lib.explorer.shipped import FOLDER, load_shipped

pytestmark = pytest.mark.browser
CI = os.environ.get("CI") == "true"  # where nothing is skipped
sync_api = importlib.import_module("playwright.sync_api") if CI else pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
ROOT, LOCAL = Path(__file__).parents[2], "http://127.0.0.1"
SCREENSHOTS = ROOT / "results/quick/screenshots"
CHROMIUM = shutil.which("chromium")
if not CHROMIUM and not CI:
    pytest.skip("no chromium is installed (Debian's package chromium)", allow_module_level=True)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
BOX = (5, 6, 21, 18)
START = State(model="digits", box=BOX)
LINKED = replace(START, base=2, overlay="attention", threshold=0.4)


# --- two servers, each with one page that all tests share ------------------------------------------------------------


def start(command, folder, port, **environment):
    """Start a server, wait until it listens; the process and its log."""
    log = folder / "server.log"
    with log.open("w") as file:
        environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(f"exec {command}", shell=True, cwd=folder, env=environment, stdout=file, stderr=file)
    for _ in range(300):
        if socket.socket().connect_ex(("127.0.0.1", port)) == 0:
            return process, log
        if process.poll() is not None:
            break
        time.sleep(0.3)
    process.kill()
    raise RuntimeError(log.read_text()[-2000:])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["lab", "voila"])
def app(request, browser, tmp_path_factory):
    """The page on which the explorer runs; `page.app` is "lab" or "voila", `page.log` what the server prints."""
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    private = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    if request.param == "lab":
        shutil.copy(ROOT / "notebooks/explorer.ipynb", folder)
        settings = folder / "config/labconfig/page_config.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
        command = (
            f'"{sys.executable}" -m jupyterlab --no-browser --allow-root --ServerApp.ip=127.0.0.1'
            f" --ServerApp.port={port} --ServerApp.port_retries=0 --IdentityProvider.token=t0k"
            " --LabApp.expose_app_in_browser=True"
        )
    else:  # what make explore runs
        told = subprocess.run(["make", "-n", "explore", f"VENV={sys.prefix}"], cwd=ROOT, capture_output=True, text=True)
        (command,) = (line for line in told.stdout.splitlines() if "-m voila" in line)
        command = f"{command} --no-browser --port={port}".replace("notebooks", str(ROOT / "notebooks"))
    process, log = start(command, folder, port, **private)
    context = browser.new_context(
        viewport={"width": 1280, "height": 860}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.app, page.log, page.port = request.param, log, port
    page.set_default_timeout(120_000)
    expect.set_options(timeout=30_000)
    page.route(lambda url: not url.startswith((LOCAL, "blob:", "data:")), lambda route: route.abort())
    link = "#saol=" + base64.urlsafe_b64encode(json.dumps(asdict(LINKED)).encode()).decode().rstrip("=")
    if page.app == "lab":
        open_lab(page, f"{LOCAL}:{port}/lab/tree/explorer.ipynb?token=t0k&reset{link}")
    else:
        page.goto(f"{LOCAL}:{port}/{link}")
    page.locator(".saol-stage").wait_for()
    yield page
    context.close()
    process.terminate()
    try:
        process.wait(20)
    finally:
        process.kill()


def open_lab(page, address):
    page.goto(address)
    page.wait_for_function("window.jupyterapp !== undefined")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for()
    page.evaluate("""async () => { const app = window.jupyterapp; await app.restored;
        const w = app.shell.currentWidget; await w.context.ready; await w.sessionContext.ready;
        if (!app.shell.leftCollapsed) await app.commands.execute('application:toggle-left-area');
        await app.commands.execute('notebook:run-all-cells'); }""")


@pytest.fixture(scope="module")
def lens():
    return Lens(*load_shipped("digits"))


@pytest.fixture
def page(app, lens):
    """The page in the state START, whatever the test before did."""
    app.set_viewport_size({"width": 1280, "height": 860})
    load(app, START)
    tells(app, lens, START)
    app.mouse.move(2, 2)
    return app


# --- what is seen ----------------------------------------------------------------------------------------------------


def load(page, state):
    text = json.dumps(asdict(state)).encode()
    page.get_by_label("Load a state").set_input_files({"name": "s.json", "mimeType": "text/json", "buffer": text})


def tells(page, lens, state):
    """The page comes to show what `Lens` makes of the state: patch, answer, predictions, attention inside, box."""
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


def stage(page):
    return page.locator(".saol-stage")


def unit(page):
    """Pixels of the screen for one of the picture."""
    return stage(page).bounding_box()["width"] / 32


def picture(locator):
    """What is drawn there, (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def eventually(check):
    """A picture is decoded a moment after the text that comes with it."""
    for _ in range(50):
        if check():
            return
        time.sleep(0.1)
    raise AssertionError("the pixels did not come to be as expected")


def changed(page, before, share):
    eventually(lambda: (np.abs(picture(stage(page)) - before).max(axis=2) > 8).mean() > share)


def shows(page, x, y, colour, within=2):
    """The middle of the picture's pixel has a colour."""

    def near():
        seen = picture(stage(page))[int((y + 0.5) * unit(page)), int((x + 0.5) * unit(page))]
        return np.abs(seen - np.asarray(colour)).max() <= within

    eventually(near)


def pull(page, locator, dx, dy, drop=True):
    box = locator.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=6)
    if drop:
        page.mouse.up()


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"explorer-{page.app}-{name}.png")


# --- the tests -------------------------------------------------------------------------------------------------------


def test_a_link_opens_its_state_and_another_is_copied(app, lens):
    tells(app, lens, LINKED)
    expect(app.locator(".saol-message")).to_contain_text("Drag the patch")
    load(app, START)
    tells(app, lens, START)
    app.locator(".saol-link").click()
    expect(app.locator(".saol-message")).to_contain_text("copied")
    address, text = app.evaluate("navigator.clipboard.readText()").split("#saol=")
    assert State.of(json.loads(base64.urlsafe_b64decode(text + "==="))) == START
    assert app.url.startswith(address) and "t0k" not in address


def test_a_drag_follows_the_pointer_and_the_drop_is_answered(page, lens):
    before, answer = picture(stage(page)), page.locator(".saol-sum").text_content()
    screenshot(page, "1-start")
    pull(page, page.locator(".saol-patch"), 7 * unit(page), 9 * unit(page), drop=False)
    clip = page.locator(".saol-stage .pasted").evaluate("e => e.style.clipPath")
    assert clip.startswith(f"inset({15 / 0.32:g}%"), clip
    mixed = lens.mixed((0, 1, (12, 15, 28, 27)))[0]
    for x, y in ((14, 17), (26, 24), (30, 16), (6, 8)):
        shows(page, x, y, mixed[:, y, x])
    assert page.locator(".saol-sum").text_content() == answer  # Python hears of the drop alone
    screenshot(page, "2-drag")
    page.mouse.up()
    tells(page, lens, replace(START, box=(12, 15, 28, 27)))
    changed(page, before, 0.2)


def test_a_corner_and_the_keys_resize_and_move(page, lens):
    before = picture(stage(page))
    pull(page, page.locator(".saol-sw"), -4 * unit(page), 6 * unit(page))
    tells(page, lens, replace(START, box=(1, 6, 21, 24)))
    changed(page, before, 0.02)
    page.locator(".saol-patch").focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    tells(page, lens, replace(START, box=(2, 4, 23, 21)))
    page.locator(".saol-box-x").fill("9")
    page.locator(".saol-box-height").fill("20")
    tells(page, lens, replace(START, box=(9, 4, 30, 24)))


def test_overlay_class_and_threshold(page, lens):
    before = picture(stage(page))
    page.locator(".tile").filter(has_text="CAM").first.click()
    page.locator(".saol-rows .row").nth(3).click()
    k = sorted(range(10), key=lambda k: -lens.numbers(START)["saol"][k])[3]
    state = replace(START, overlay="cam", k=k)
    tells(page, lens, state)
    changed(page, before, 0.2)
    page.locator(".tile").filter(has_text="Mask").click()
    page.locator(".saol-threshold").fill("0.8")
    numbers = tells(page, lens, replace(state, overlay="mask", threshold=0.8))
    found, whole = page.locator(".saol-found").bounding_box(), stage(page).bounding_box()
    assert (found["x"] - whole["x"]) / unit(page) == pytest.approx(numbers["box"][0], abs=0.1)
    assert found["height"] / unit(page) == pytest.approx(numbers["box"][3] - numbers["box"][1] + 1, abs=0.1)
    before = picture(page.locator(".tiles"))
    page.get_by_label("Colours").select_option("cividis")
    eventually(lambda: (np.abs(picture(page.locator(".tiles")) - before).max(axis=2) > 8).mean() > 0.05)
    screenshot(page, "3-mask")


def test_opacity_and_what_a_position_says(page, lens):
    mixed, before = lens.mixed(START.scene)[0], picture(stage(page))
    page.locator(".saol-opacity").fill("0")
    changed(page, before, 0.2)
    shows(page, 2, 30, mixed[:, 30, 2])
    whole = stage(page).bounding_box()
    page.mouse.move(whole["x"] + 5.5 * whole["width"] / 8, whole["y"] + 2.5 * whole["height"] / 8)
    votes = lens.look(START.scene)[0].spatial_log_probs[0].exp()[:, 2, 5]
    attention = float(lens.map(START.scene, "attention", 0)[2, 5])
    told = f"A {percent(attention)}, says “{int(votes.argmax())}” with {percent(float(votes.max()))}"
    expect(page.locator(".saol-hover")).to_have_text(f"Row 3, column 6: {told}")


def test_the_state_and_the_figure_are_saved(page):
    page.locator(".saol-threshold").fill("0.3")
    expect(page.locator(".slider:has(.saol-threshold) output")).to_have_text("0.30")
    with page.expect_download() as download:
        page.locator(".saol-json").click()
    assert State.of(json.loads(Path(download.value.path()).read_text())) == replace(START, threshold=0.3)
    for kind, first in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        with page.expect_download() as download:
            page.locator(f".saol-{kind}").click()
        assert download.value.suggested_filename == f"saol.{kind}"
        assert Path(download.value.path()).read_bytes().startswith(first)


def test_uploads_bad_and_good(page, lens):
    upload, small, file = page.get_by_label("Upload: Picture"), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1, 1)).save(small, "PNG")
    for data, sentence in (
        (b"these are notes", "notes.png is no whole picture; give a PNG"),
        (b"\0" * 8_000_001, "notes.png is too large: at most 8 MB"),
        (small.getvalue(), "notes.png is 1 x 1 pixels"),
    ):
        upload.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": data})
        expect(page.locator(".saol-message")).to_contain_text(sentence)
    Image.new("RGB", (500, 400), (200, 30, 40)).save(file, "JPEG", quality=95)
    upload.set_input_files({"name": "red.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()})
    expect(page.locator(".saol-base small")).to_have_text("your picture")
    expect(page.locator(".saol-message")).to_contain_text("Drag the patch")
    page.locator(".tile").filter(has_text="None").click()
    shows(page, 2, 30, (200, 30, 40), within=6)
    screenshot(page, "4-upload")
    load(page, replace(START, box=(1, 2, 3)))
    expect(page.locator(".saol-message")).to_contain_text("box=(1, 2, 3) must be")
    load(page, START)
    tells(page, lens, START)


def test_another_model_brings_its_pictures(page):
    if not (FOLDER / "cifar10.json").exists():
        pytest.skip("only the model of digits is here")
    other = Lens(*load_shipped("cifar10"))
    before = picture(stage(page))
    page.get_by_label("Model and pictures").select_option("cifar10")
    first = other.numbers(other.check(State()))
    expect(page.locator(".saol-rows .row").first).to_contain_text(other.classes[int(np.argmax(first["saol"]))])
    expect(page.locator(".saol-base small")).to_have_text("cat")
    changed(page, before, 0.5)
    screenshot(page, "5-cifar10")


def test_every_control_has_a_name_keys_reach_it_and_it_fits(page):
    nameless = """() => [...document.querySelectorAll('.saol input, .saol select, .saol button')]
        .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.locator(".saol button").first.focus()
    reached = set()
    for _ in range(26):
        reached.add(page.evaluate("document.activeElement.className || document.activeElement.type"))
        page.keyboard.press("Tab")
    wanted = {"saol-svg", "saol-link", "saol-threshold", "saol-opacity", "saol-box-x", "select-one", "checkbox"}
    assert wanted <= reached, wanted - reached
    assert any("patch" in name for name in reached) and "hidden" in reached
    if page.app == "lab":  # whose own keys would add a cell
        page.locator(".saol-patch").focus()
        page.keyboard.press("b")
        assert page.locator(".jp-Cell").count() == 2
    wide = """() => [...document.querySelectorAll('.saol, .saol .grid > *, .saol .tiles, .saol .row')]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className)"""
    for width, height in ((1280, 900), (1024, 700)):
        page.set_viewport_size({"width": width, "height": height})
        eventually(lambda: page.evaluate(wide) == [])
    screenshot(page, "6-small")


PROBE = """async ([id, file]) => {
    const socket = new WebSocket(`ws://${location.host}/api/kernels/${id}/channels?session_id=probe`), heard = [];
    await new Promise((open) => { socket.onopen = open; });
    const answered = new Promise((done) => { socket.onmessage = (e) => {
        const type = JSON.parse(e.data).header.msg_type;
        heard.push(type);
        if (type === 'kernel_info_reply') done();
    }; });
    const say = (msg_type, content, channel) => socket.send(JSON.stringify({ channel, content, metadata: {},
        parent_header: {}, buffers: [], header: { msg_id: msg_type + channel, msg_type, session: 'probe', username: '',
        version: '5.3', date: new Date().toISOString() } }));
    const code = `open(${JSON.stringify(file)}, 'w')`;
    for (const channel of ['control', 'shell']) say('execute_request', { code }, channel);
    say('kernel_info_request', {}, 'shell');
    await answered;
    socket.close();
    return heard; }"""


def test_voila_shows_no_source_runs_no_foreign_code_and_stays_on_this_machine(page, tmp_path):
    find = "JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId"
    if page.app == "lab":
        find = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.id"
    heard = page.evaluate(PROBE, [page.evaluate(find), str(tmp_path / "ran")])
    ran = (tmp_path / "ran").exists() or "execute_reply" in heard
    assert ran == (page.app == "lab"), heard  # Lab shows that the probe works
    assert ("saol_lib" in page.content()) == (page.app == "lab")
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", page.port)) != 0
    if page.app == "voila":
        assert f"{LOCAL}:{page.port}/" in page.log.read_text()
        assert page.request.get(f"{LOCAL}:{page.port}/voila/files/explorer.ipynb").status in (403, 404)
