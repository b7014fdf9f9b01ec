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

from saol_lib.explorer.lens import Lens
from saol_lib.explorer.shipped import FOLDER, SCENES, load_shipped
from saol_lib.explorer.state import State

pytestmark = pytest.mark.browser
CI = os.environ.get("CI") == "true"  # where nothing is skipped
sync_api = importlib.import_module("playwright.sync_api") if CI else pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
ROOT, LOCAL = Path(__file__).parents[2], "http://127.0.0.1"
AXE = ROOT / "node_modules/axe-core/axe.min.js"  # npm ci
SCREENSHOTS = ROOT / "results/quick/screenshots"
CHROMIUM = shutil.which("chromium")
if not CHROMIUM and not CI:
    pytest.skip("no chromium is installed (Debian's package chromium)", allow_module_level=True)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
BOX = (5, 6, 21, 18)
START = State(model="digits", box=BOX, overlay="saol")
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
        viewport={"width": 1280, "height": 860},
        permissions=["clipboard-read", "clipboard-write"],
        has_touch=True,
    )
    page = context.new_page()
    page.app, page.log, page.port = request.param, log, port
    page.set_default_timeout(120_000)
    expect.set_options(timeout=30_000)
    page.asked = []  # all that is asked for, what a policy of the page then blocks included
    page.on("request", lambda request: page.asked.append(request.url))
    page.route(_is_elsewhere, lambda route: route.abort())
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


def _is_elsewhere(url):
    return not url.startswith((LOCAL, "blob:", "data:"))


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
    app.locator(".move:has(input[value=window])").click()
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
    numbers = lens.numbers(state)
    x0, y0, x1, y1 = state.box
    label = re.compile(f"^Patch at {x0}, {y0}, {x1 - x0} wide, {y1 - y0} high")
    expect(page.locator(".saol-patch")).to_have_attribute("aria-label", label)
    expect(page.locator(".saol-total")).to_contain_text(f"SAOL's answer: {percent(numbers['saol'][numbers['k']])}")
    order = sorted(range(10), key=lambda k: -numbers["saol"][k])
    rows = [f"{k}{percent(numbers['saol'][k])} | {percent(numbers['gap'][k])}" for k in order]
    expect(page.locator(".saol-rows .row")).to_have_text(rows)
    area = (x1 - x0) * (y1 - y0) / 1024
    told = f"covers {percent(area)} of the picture and holds {percent(numbers['held'])} of the attention"
    expect(page.locator(".saol-patch-told")).to_contain_text(told if area else "nothing is pasted")
    overlap = "No box"
    if numbers["box"]:
        overlap = "no true box" if numbers["iou"] is None else f": {numbers['iou']:.2f}"
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


def shows(page, x, y, colour, within=2):
    """The middle of the picture's pixel has a colour."""

    def near():
        seen = picture(stage(page))[int((y + 0.5) * unit(page)), int((x + 0.5) * unit(page))]
        return np.abs(seen - np.asarray(colour)).max() <= within

    eventually(near)


def pull(page, locator, dx, dy, drop=True):
    stage(page).scroll_into_view_if_needed()
    x, y = centre(locator)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx, y + dy, steps=6)
    if drop:
        page.mouse.up()


def screenshot(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"explorer-{page.app}-{name}.png")


def overlay(page):
    """What the canvas over the picture holds."""
    return page.locator(".saol-overlay").evaluate("canvas => canvas.toDataURL()")


def centre(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def touch(page, locator, dx, dy):
    """A finger that drags."""
    x, y = centre(locator)
    session = page.context.new_cdp_session(page)

    def tell(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    tell("touchStart", (x, y))
    for step in range(1, 6):
        tell("touchMove", (x + dx * step / 5, y + dy * step / 5))
    tell("touchEnd")
    session.detach()


# --- the tests -------------------------------------------------------------------------------------------------------


def test_a_link_opens_its_state_and_another_is_copied(app, lens):
    tells(app, lens, LINKED)
    expect(app.locator(".saol-message")).to_be_hidden()
    load(app, START)
    tells(app, lens, START)
    app.locator(".saol-link").click()
    expect(app.locator(".saol-note")).to_contain_text("copied")
    address, text = app.evaluate("navigator.clipboard.readText()").split("#saol=")
    assert State.of(json.loads(base64.urlsafe_b64decode(text + "==="))) == START
    assert app.url.startswith(address) and "t0k" not in address


def test_nothing_is_asked_for_from_elsewhere(app):
    assert any(url.startswith(LOCAL) for url in app.asked), "requests are seen"
    assert [url for url in app.asked if _is_elsewhere(url)] == []


def test_the_first_minute(page, lens):
    opening = lens.check(SCENES["digits"][0].state)
    whole = replace(opening, box=(0, 0, 0, 0), model="digits")
    page.locator(".saol-walk").click()
    heading, text, onward = page.locator(".tour h2"), page.locator(".saol-step"), page.locator(".saol-next")
    expect(heading).to_have_text("1 of 4 · A whole picture, two answers")
    tells(page, lens, replace(whole, overlay="none"))
    expect(text).to_contain_text("SAOL says “3” with 98 %, GAP-FC says “3” with 98 %")
    expect(page.locator(".saol-overlay")).to_have_count(0)

    onward.click()
    expect(heading).to_have_text("2 of 4 · A: where it looks")
    tells(page, lens, replace(whole, overlay="attention"))
    most = lens.map(whole.scene, "attention", 0).max()
    expect(text).to_contain_text(f"{percent(float(most))} lie on a single one")

    onward.click()
    expect(heading).to_have_text("3 of 4 · Y: what each place says")
    tells(page, lens, replace(whole, overlay="spatial"))
    stage(page).click(position={"x": 2.5 * 4 * unit(page), "y": 1.5 * 4 * unit(page)})
    a, y, product = (float(lens.map(whole.scene, name, 3)[1, 2]) for name in ("attention", "spatial", "saol"))
    expect(page.locator(".saol-piece")).to_have_text(
        f"The place in row 2, column 3: A {percent(a)} × Y {percent(y)} = {percent(product)}."
    )
    bar, piece = page.locator(".stack").bounding_box(), page.locator(".stack .chosen").bounding_box()
    assert piece["width"] / bar["width"] == pytest.approx(product, abs=0.02)
    page.mouse.move(*middle(page, 6, 5))  # another place is hovered: the chosen one stays marked and told
    expect(page.locator(".saol-hover")).to_contain_text("In row 7, column 6:")
    expect(page.locator(".saol-piece")).to_contain_text("in row 2, column 3:")
    kept, whole = page.locator(".saol-kept").bounding_box(), stage(page).bounding_box()
    assert (kept["x"] - whole["x"], kept["y"] - whole["y"]) == pytest.approx((8 * unit(page), 4 * unit(page)), abs=2)
    screenshot(page, "2-step3")

    onward.click()
    expect(heading).to_have_text("4 of 4 · Together: the sum")
    expect(text).to_contain_text("add up to 98 % for “3”: that is SAOL's answer")
    onward.click()
    expect(heading).to_have_text("Now you: drag the patch")
    tells(page, lens, replace(opening, overlay="attention"))
    page.locator(".saol-skip").click()
    expect(page.locator(".tour")).to_have_count(0)
    screenshot(page, "1-start")


WATCH = """() => {
    window.blank = 0;
    window.watching = true;
    const look = () => {
        const cover = document.querySelector('.saol-overlay');
        const pictures = [...document.querySelectorAll('.saol-stage img')];
        if (!cover || pictures.some((picture) => !picture.naturalWidth)) window.blank += 1;
        if (window.watching) requestAnimationFrame(look);
    };
    look();
}"""


def test_while_the_patch_is_dragged_all_follows_and_nothing_is_ever_blank(page, lens):
    before = overlay(page)
    page.evaluate(WATCH)
    pull(page, page.locator(".saol-patch"), 7 * unit(page), 9 * unit(page), drop=False)
    there = replace(START, box=(12, 15, 28, 27))
    tells(page, lens, there)  # bars, sentences, box: before the mouse is let go
    assert overlay(page) != before
    page.locator(".saol-opacity").fill("0")
    mixed, _ = lens.mixed(lens.check(there).scene)
    for x, y in ((14, 17), (26, 24), (30, 16), (2, 30)):
        shows(page, x, y, mixed[:, y, x])
    screenshot(page, "3-drag")
    page.mouse.up()
    tells(page, lens, there)
    page.evaluate("window.watching = false")
    assert page.evaluate("window.blank") == 0


def test_every_overlay_goes_on_through_a_drag(page, lens):
    x = BOX[0]
    for name in lens.overlays:
        page.locator(f".tile:has(input[value={name}])").click()
        step = 2 if x < 10 else -6
        x += step
        pull(page, page.locator(".saol-patch"), step * unit(page), 0, drop=False)
        state = replace(START, overlay=name, box=(x, BOX[1], x + 16, BOX[3]))
        tells(page, lens, state)
        page.mouse.up()
    assert name == "grad_cam"


def test_the_picture_moves_under_the_window_or_with_it(page, lens):
    page.locator(".saol-opacity").fill("0")
    page.locator(".move:has(input[value=picture])").click()
    pull(page, page.locator(".saol-patch"), 3 * unit(page), -4 * unit(page))
    state = replace(START, shift=(3, -4))
    tells(page, lens, state)
    mixed, _ = lens.mixed(lens.check(state).scene)
    for x, y in ((8, 9), (14, 15), (19, 12)):
        shows(page, x, y, mixed[:, y, x])
    page.locator(".move:has(input[value=both])").click()
    pull(page, page.locator(".saol-patch"), -2 * unit(page), 5 * unit(page))
    state = replace(START, box=(3, 11, 19, 23), shift=(1, 1))
    tells(page, lens, state)
    mixed, _ = lens.mixed(lens.check(state).scene)
    shows(page, 8, 14, mixed[:, 14, 8])


def test_a_corner_and_the_keys_resize_and_move(page, lens):
    pull(page, page.locator(".saol-sw"), -4 * unit(page), 6 * unit(page))
    tells(page, lens, replace(START, box=(1, 6, 21, 24)))
    page.locator(".saol-patch").focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    tells(page, lens, replace(START, box=(2, 4, 23, 21)))
    page.locator(".saol-box-x").fill("9")
    page.locator(".saol-box-height").fill("20")
    tells(page, lens, replace(START, box=(9, 4, 30, 24)))


def test_class_threshold_and_colours(page, lens):
    order = sorted(range(10), key=lambda k: -lens.numbers(lens.check(START))["saol"][k])
    page.locator(".saol-rows .row").nth(3).click()
    state = replace(START, overlay="mask", k=order[3], threshold=0.8)
    page.locator(".tile").filter(has_text="pasted").click()
    page.locator(".saol-threshold").fill("0.8")
    numbers = tells(page, lens, state)
    found, whole = page.locator(".saol-found").bounding_box(), stage(page).bounding_box()
    assert (found["x"] - whole["x"]) / unit(page) == pytest.approx(numbers["box"][0], abs=0.1)
    assert found["height"] / unit(page) == pytest.approx(numbers["box"][3] - numbers["box"][1] + 1, abs=0.1)
    before = overlay(page)
    page.get_by_label("Colours").select_option("cividis")
    eventually(lambda: overlay(page) != before)


def middle(page, row, column):
    """The middle of a place of the 8 x 8 map, in the window's pixels."""
    whole = stage(page).bounding_box()
    return whole["x"] + (column + 0.5) * whole["width"] / 8, whole["y"] + (row + 0.5) * whole["height"] / 8


def test_what_a_place_says(page, lens):
    page.mouse.move(*middle(page, 6, 5))
    state = lens.check(START)
    votes = lens.look(state.scene)[0].spatial_log_probs[0].exp()[:, 6, 5]
    attention = float(lens.map(state.scene, "attention", 0)[6, 5])
    told = f"A {percent(attention)}, says “{int(votes.argmax())}” with {percent(float(votes.max()))}"
    expect(page.locator(".saol-hover")).to_have_text(f"In row 7, column 6: {told}")


def test_the_state_and_the_figure_are_saved(page):
    page.locator(".saol-threshold").fill("0.3")
    expect(page.locator(".slider:has(.saol-threshold) output")).to_have_text("0.30")
    with page.expect_download() as download:
        page.locator(".saol-json").click()
    assert State.of(json.loads(Path(download.value.path()).read_text())) == replace(START, threshold=0.3)
    for kind, first in (("svg", b"<?xm"), ("png", b"\x89PNG")):
        with page.expect_download() as download:
            page.locator(f".saol-{kind}").click()
        assert download.value.suggested_filename == f"saol.{kind}"
        assert Path(download.value.path()).read_bytes().startswith(first)


def test_uploads_bad_and_good(page, lens):
    upload, small, file = page.get_by_label("Upload: Picture"), io.BytesIO(), io.BytesIO()
    message = page.locator(".saol-message")
    Image.new("RGB", (1, 1)).save(small, "PNG")
    for data, sentence in (
        (b"these are notes", "notes.png is no whole picture; give a PNG"),
        (b"\0" * 8_000_001, "notes.png is too large: at most 8 MB"),
        (small.getvalue(), "notes.png is 1 x 1 pixels"),
    ):
        upload.set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": data})
        expect(message).to_contain_text(sentence)
    Image.new("RGB", (500, 400), (200, 30, 40)).save(file, "JPEG", quality=95)
    upload.set_input_files({"name": "red.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()})
    known = "The network knows only: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9."
    expect(message).to_have_text(f"red.jpg was cut and shrunk to 32 x 32 pixels. {known}")
    expect(page.locator(".saol-base small")).to_have_text("your picture, class unknown")
    expect(page.locator(".saol-true-told")).to_contain_text("unknown 81 %, “5” 19 %")
    page.locator(".tile:has(input[value=none])").click()
    shows(page, 2, 30, (200, 30, 40), within=6)
    screenshot(page, "4-upload")
    load(page, replace(START, box=(1, 2, 3)))
    expect(message).to_contain_text("box=(1, 2, 3) must be")


def test_another_model_brings_its_pictures(page):
    if not (FOLDER / "cifar10.json").exists():
        pytest.skip("only the model of digits is here")
    other = Lens(*load_shipped("cifar10"))
    page.get_by_label("Model and pictures").select_option("cifar10")
    first = other.numbers(other.check(SCENES["cifar10"][0].state))
    expect(page.locator(".saol-rows .row").first).to_contain_text(other.classes[int(np.argmax(first["saol"]))])
    expect(page.locator(".saol-base small")).to_have_text("ship")
    expect(page.locator(".saol-caption")).to_have_text(SCENES["cifar10"][0].caption)
    screenshot(page, "5-cifar10")
    page.get_by_role("button", name="A class it does not know").click()
    expect(page.locator(".saol-true-told")).to_contain_text("unknown 100 %")


def test_the_answer_is_announced_politely(page, lens):
    region = page.locator(".saol-live")
    assert region.get_attribute("aria-live") == "polite" and region.get_attribute("role") == "status"
    pull(page, page.locator(".saol-patch"), 7 * unit(page), 9 * unit(page))
    state = lens.check(replace(START, box=(12, 15, 28, 27)))
    numbers = lens.numbers(state)
    saol, gap = (int(np.argmax(numbers[layer])) for layer in ("saol", "gap"))
    said = f"SAOL says “{saol}” with {percent(numbers['saol'][saol])}, GAP-FC says “{gap}” with"
    expect(region).to_contain_text(said)
    row = page.locator(".saol-rows input").first.get_attribute("aria-label").replace("\N{NO-BREAK SPACE}", " ")
    assert row.startswith(f"{saol}, SAOL {percent(numbers['saol'][saol])}, GAP-FC ")


WIDE = """() => [...document.querySelectorAll('.saol, .saol .grid > *, .saol .tiles, .saol .row, .saol button')]
    .filter((part) => part.scrollWidth > part.clientWidth + 1).map((part) => part.className)"""


ROWS_OF_TILES = """() => { const rows = {};
    for (const tile of document.querySelectorAll('.saol .tile')) {
        const top = Math.round(tile.getBoundingClientRect().top);
        rows[top] = (rows[top] ?? 0) + 1;
    }
    return Object.values(rows); }"""


def test_it_fits_every_width_and_a_finger_drags(page, lens):
    for width, height in ((1920, 1080), (1440, 900), (1024, 700), (390, 800)):
        page.set_viewport_size({"width": width, "height": height})
        eventually(lambda: page.evaluate(WIDE) == [])
        rows = page.evaluate(ROWS_OF_TILES)
        assert max(rows) - min(rows) <= 1, (width, rows)
        used = page.evaluate("""() => { const right = (part) => part.getBoundingClientRect().right;
            const root = document.querySelector('.saol');
            const most = Math.max(...[...root.querySelectorAll('.answers, .stage')].map(right));
            return (most - root.getBoundingClientRect().left) / root.clientWidth; }""")
        assert used > 0.95 or width in (1024, 390), (width, used)
        screenshot(page, f"6-{width}")
    assert page.locator(".tile").first.bounding_box()["width"] >= 50
    tops = [page.locator(f".saol-{part}").bounding_box()["y"] for part in ("stage", "rows")]
    assert tops[1] < page.locator(".tiles").bounding_box()["y"] and tops[0] < tops[1], "the answers are in sight"

    page.locator(".saol-patch").scroll_into_view_if_needed()
    touch(page, page.locator(".saol-patch"), 7 * unit(page), 9 * unit(page))
    tells(page, lens, replace(START, box=(12, 15, 28, 27)))


LUMINANCE = """() => { const canvas = document.createElement('canvas').getContext('2d');
    return ['backgroundColor', 'color'].map((what) => {
        canvas.fillStyle = getComputedStyle(document.querySelector('.saol'))[what];
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
        return (red + green + blue) / 765; }); }"""


def test_dark_mode_is_the_systems_and_in_lab_labs(page):
    page.emulate_media(color_scheme="dark")
    paper, ink = page.evaluate(LUMINANCE)
    assert (paper < 0.2 and ink > 0.8) == (page.app == "voila")
    screenshot(page, "7-dark")
    if page.app == "lab":
        theme = "(name) => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
        page.evaluate(theme, "JupyterLab Dark")
        eventually(lambda: page.evaluate(LUMINANCE)[0] < 0.2 and page.evaluate(LUMINANCE)[1] > 0.8)
        screenshot(page, "7-dark")
        page.evaluate(theme, "JupyterLab Light")
    page.emulate_media(color_scheme="light")


def test_axe_finds_no_violation(page):
    if not AXE.exists() and not CI:
        pytest.skip("axe-core is not here: npm ci")
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(f"() => {{ const module = undefined, define = undefined; {AXE.read_text()} }}")
    run = """async () => { const found = await window.axe.run('.saol', { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a',
        'wcag21aa', 'wcag22aa'] });
        return found.violations.map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 120) +
            node.failureSummary)]); }"""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(run) == []
    page.emulate_media(color_scheme="light")


def test_every_control_has_a_name_and_keys_reach_it(page):
    nameless = """() => [...document.querySelectorAll('.saol input, .saol select, .saol button')]
        .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.locator(".saol button").first.focus()
    reached = set()
    for _ in range(45):
        reached |= set(
            page.evaluate("(document.activeElement.className || document.activeElement.type || '').split(' ')")
        )
        page.keyboard.press("Tab")
    wanted = {"saol-svg", "saol-link", "saol-threshold", "saol-opacity", "saol-box-x", "saol-colours", "checkbox"}
    wanted |= {"saol-patch", "saol-cell", "hidden"}
    assert wanted <= reached, wanted - reached
    if page.app == "lab":  # whose own keys would add a cell
        page.locator(".saol-patch").focus()
        page.keyboard.press("b")
        assert page.locator(".jp-Cell").count() == 2


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
    assert ("set_num_threads" in page.content()) == (page.app == "lab")
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", page.port)) != 0
    if page.app == "voila":
        assert f"{LOCAL}:{page.port}/" in page.log.read_text()
        assert page.request.get(f"{LOCAL}:{page.port}/voila/files/explorer.ipynb").status in (403, 404)
