"""The pictures of README and of the explorer's notebook: `python notebooks/pictures.py film` and `... attention`.

film drives the real page, as `make explore` serves it, in Debian's chromium, and writes notebooks/explorer.webp and,
of the whole page at rest, notebooks/explorer.png.
attention shows the first test pictures of a shipped network, and writes results/models/figures/attention.png and .svg.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from saol_lib.evidence.figures import attention_grid, save
from saol_lib.explorer.shipped import load_shipped

NOTEBOOKS = Path(__file__).parent
FILM = NOTEBOOKS / "explorer.webp"
STILL = NOTEBOOKS / "explorer.png"  # in explorer.ipynb, where the widget cannot run
HOST = "127.0.0.1"
VIEW = {"width": 1440, "height": 1100}  # so that nothing has to be scrolled
WIDTH = 960  # pixels of a frame
SIDE = 32  # pixels of the scene's pictures
MARGIN = 4  # pixels around the picture
WAIT = 500  # milliseconds before a frame is taken
MAX_BYTES = 2_000_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
ROUTE = (10, 0, -8, 0)  # where a corner of the patch goes, in pixels of the picture, to the right of its first place


# --- the explorer in motion -------------------------------------------------------------------------------------------


@contextmanager
def served():
    """The explorer's address while Voila serves it, with the settings of `make explore`."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", "explorer.ipynb", "--no-browser", f"--port={port}"]
    command += [f"--Voila.ip={HOST}", "--Voila.config_file_paths=.", "--template=offline"]
    with_template = os.environ | {"JUPYTER_PATH": str(NOTEBOOKS)}

    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=NOTEBOOKS, env=with_template, **silent)
    try:
        yield f"http://{HOST}:{port}/"
    finally:
        server.terminate()
        server.wait(20)


def connect(page, address, attempts=300):
    """Open the page as soon as the server listens."""
    from playwright.sync_api import Error

    for _ in range(attempts):
        try:
            page.goto(address)
            return
        except Error:
            time.sleep(0.5)
    raise TimeoutError(f"nothing answers at {address}: try make explore, which shows Voila's messages")


def frame(page):
    """The picture with the patch and what both layers say, once the last request had time to be answered."""
    page.wait_for_timeout(WAIT)
    stage = page.locator(".saol-stage").bounding_box()
    whole = page.locator(".saol").first.bounding_box()
    part = {
        "x": stage["x"] - MARGIN,
        "y": stage["y"] - MARGIN,
        "width": whole["x"] + whole["width"] - stage["x"] + MARGIN,
        "height": stage["height"] + 2 * MARGIN,
    }

    image = Image.open(io.BytesIO(page.screenshot(clip=part))).convert("RGB")
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def film():
    """Write the page as it opens, and an animated picture of a corner of its patch that is pulled along ROUTE."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        raise FileNotFoundError("there is no chromium here: install Debian's package chromium")
    with served() as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=VIEW)
        page.set_default_timeout(120_000)
        connect(page, address)
        page.locator(".saol-stage").wait_for()
        page.locator(".saol-skip").click()  # the walk through
        page.wait_for_timeout(WAIT)
        page.locator(".saol").screenshot(path=STILL)
        frames = _pull(page)
        browser.close()
    write(frames, FILM)


def _pull(page):
    """Frames while the patch's left side goes along ROUTE, a pixel of the picture at a time; then it is let go."""
    pixel = page.locator(".saol-stage").bounding_box()["width"] / SIDE
    corner = page.locator(".saol-nw").bounding_box()
    x, y = corner["x"] + corner["width"] / 2, corner["y"] + corner["height"] / 2
    frames = [frame(page)]

    page.mouse.move(x, y)
    page.mouse.down()
    here = 0
    for there in ROUTE:
        while here != there:
            here += 1 if there > here else -1
            page.mouse.move(x + here * pixel, y)
            frames.append(frame(page))
    page.mouse.up()
    return frames


def write(frames, path):
    """The frames as one animated WebP, as fine as fits into MAX_BYTES."""
    durations = [1200] + [160] * (len(frames) - 1)  # milliseconds
    for quality in (80, 65, 50, 35):
        file = io.BytesIO()
        frames[0].save(
            file, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=quality, method=4
        )
        if file.tell() < MAX_BYTES:
            path.write_bytes(file.getvalue())
            print(f"{path.name}: {len(frames)} frames, {file.tell()} bytes, quality {quality}")
            return
    raise ValueError(f"{len(frames)} frames of {WIDTH} pixels' width do not fit into {MAX_BYTES} bytes")


# --- where a network looks --------------------------------------------------------------------------------------------


def attention(name="digits", count=5):
    """The first test pictures of a shipped network: what it sees, where it looks, what it says, how sure it is."""
    model, pictures, classes, (mean, std) = load_shipped(name)
    images = pictures.images[:count]
    scaled = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.inference_mode():
        outputs = model(scaled)

    labels = pictures.labels[:count].tolist()
    says = {"SAOL": outputs.saol_log_probs.exp(), "GAP-FC": outputs.gap_logits.softmax(dim=1)}
    titles = []
    for i, label in enumerate(labels):
        own = {layer: shares[i] for layer, shares in says.items()}
        titles.append(title(label, own, classes))
    save(attention_grid(images, outputs.attention, titles=titles), "results/models", "attention")


def title(label, says, classes):
    """What is there, and what each layer says of it by its shares (K,), how sure it is, and whether it is wrong."""
    lines = [f"a {classes[label]}"]
    for layer, shares in says.items():
        share, k = shares.max(dim=0)
        wrong = "" if k == label else " WRONG"
        lines.append(f"{layer}: {classes[k]}, {100 * share:.0f} %{wrong}")
    return "\n".join(lines)


if __name__ == "__main__":
    commands = {"film": film, "attention": attention}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: python notebooks/pictures.py {'|'.join(commands)}")
    commands[sys.argv[1]]()
