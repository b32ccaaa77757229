"""The notebook editor in a real browser: JupyterLab, Chromium, nothing that leaves this machine.

The tests are steps of one session and run in their order; each leaves the editor usable. With
FASTEDIT_SHOTS=FOLDER they write screenshots there, to be looked at."""

import ast, base64, io, json, os, runpy, shlex, shutil
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from lab import CHROMIUM, DRIVER, asked_for, browser, lab, lab_is_whole

MISSING = [name for name, at in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not at]
if not lab_is_whole():
    MISSING.append("JupyterLab with the extensions of ipywidgets and anywidget")
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"a browser test needs {' and '.join(MISSING)}"
    " (on Debian: apt-get install chromium chromium-driver)",
)

SOURCE = "a drawing of a large red ball on a meadow"
TARGET = "a drawing of a large blue ball on a meadow"
PAINTED = """const c = document.querySelector(".fe-mask")
return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some(v => v)"""
AFTER = "img.fastedit-after"
CODE = "from fastedit.widgets import EditorWidget\nwidget = EditorWidget('mini')\nwidget"


def picture() -> Image.Image:
    from fastedit import world
    from fastedit.pictures import load_image

    ball = world.Thing("ball", "red", "plain", "large", 0.0, 0.5, 0.5)
    return load_image(world.render(world.Scene((ball,), "meadow", "flat", 0.3), 64))


def load(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


class Page:
    "A notebook with the editor, in the browser; `ask` asks its kernel."

    def __init__(self, driver, address, token, work):
        self.driver, self.address, self.token, self.work = driver, address, token, work
        self.asked = []

    def wait(self, told, seconds=60):
        "Wait until `told()` holds, and give what it gave."
        from selenium.common.exceptions import (
            NoSuchElementException,
            StaleElementReferenceException,
        )
        from selenium.webdriver.support.ui import WebDriverWait

        gone = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, seconds, 0.05, gone).until(lambda _: told())

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def later(self, script, *args):
        "Run a script that ends with a promise."
        whole = (
            "const done = arguments[arguments.length-1];"
            f"(async () => {{{script}}})().then(done, e => done('failed: ' + e))"
        )
        return self.driver.execute_async_script(whole, *args)

    def open(self, name, kernel=True):
        self.driver.get(f"{self.address}/doc/tree/{name}?token={self.token}")
        self.wait(lambda: self.js("return !!document.querySelector('.jp-Notebook .jp-Cell')"))
        if not kernel:
            return
        status = "return jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status"
        self.wait(lambda: self.js(status) == "idle")

    def command(self, name, **args):
        return self.later("await jupyterapp.commands.execute(...arguments)", name, args)

    def ask(self, code):
        "Evaluate an expression in the kernel: what it is as JSON."
        told = self.later(
            """const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel
            const asked = kernel.requestExecute({code: "", store_history: false,
                                                 user_expressions: {it: arguments[0]}})
            return (await asked.done).content.user_expressions.it""",
            f"__import__('json').dumps({code})",
        )
        assert told["status"] == "ok", told
        return json.loads(ast.literal_eval(told["data"]["text/plain"]))

    def css(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def xpath(self, path):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.XPATH, path)

    def button(self, words):
        shown = f"//button[normalize-space()='{words}' or @title='{words}']"
        return self.xpath(f"//*[contains(@class,'fastedit-editor')]{shown}")

    def click(self, words):
        found = self.button(words)
        self.js("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def field(self, label):
        "The input beside a label."
        return self.xpath(f"//label[normalize-space()='{label}']/following-sibling::*[1]")

    def type(self, label, text):
        from selenium.webdriver.common.keys import Keys

        field = self.field(label)
        self.js("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    def choose(self, label, value):
        from selenium.webdriver.support.ui import Select

        Select(self.field(label)).select_by_visible_text(value)

    def tick(self, label, on):
        box = self.xpath(f"//label[.//span[normalize-space()='{label}']]/input")
        if box.is_selected() != on:
            box.click()

    def unfold(self, title):
        self.xpath(
            f"//*[contains(@class,'jupyter-widget-Collapse-header')][contains(., '{title}')]"
        ).click()

    def words(self):
        return self.js("return document.querySelector('.fastedit-words').innerText")

    def pixels(self, selector) -> np.ndarray:
        "What a picture shows, (H,W,3), as the browser decoded it."
        address = self.later(
            """const image = document.querySelector(arguments[0])
            await image.decode()
            const c = document.createElement("canvas")
            c.width = image.naturalWidth
            c.height = image.naturalHeight
            c.getContext("2d").drawImage(image, 0, 0)
            return c.toDataURL("image/png")""",
            selector,
        )
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")
        )

    def settled(self):
        "Wait until no edit runs or waits, and the browser has the kernel's picture."
        self.wait(lambda: self.ask("not widget.worker.busy"))
        sent = self.ask("__import__('base64').b64encode(widget.c['after'].value).decode()")
        shown = """const got = await fetch(document.querySelector(arguments[0]).src)
            return btoa(String.fromCharCode(...new Uint8Array(await got.arrayBuffer())))"""
        return self.wait(lambda: self.later(shown, AFTER) == sent)

    def edited(self, n):
        "Wait until there are `n` edits, and the last one is shown."
        return self.wait(lambda: self.ask(f"len(widget.history) == {n}")) and self.settled()

    def _canvas(self):
        canvas = self.css(".fe-mask")
        self.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        return canvas, self.js("return arguments[0].getBoundingClientRect().toJSON()", canvas)

    def drag(self, *points):
        "Draw on the brush's picture by mouse: points as shares of its sides."
        from selenium.webdriver.common.action_chains import ActionChains

        canvas, box = self._canvas()
        at = [
            (round((x - 0.5) * box["width"]), round((y - 0.5) * box["height"])) for x, y in points
        ]
        steps = ActionChains(self.driver, 20)
        steps.move_to_element_with_offset(canvas, *at[0]).click_and_hold()
        for xy in at[1:]:
            steps.move_to_element_with_offset(canvas, *xy)
        steps.release().perform()

    def touch(self, *points):
        "Draw on the brush's picture with a finger."
        _, box = self._canvas()

        def send(kind, *at):
            told = [
                dict(x=box["x"] + x * box["width"], y=box["y"] + y * box["height"]) for x, y in at
            ]
            self.driver.execute_cdp_cmd(
                "Input.dispatchTouchEvent", dict(type=kind, touchPoints=told)
            )

        send("touchStart", points[0])
        for p in points[1:]:
            send("touchMove", p)
        send("touchEnd")

    def size(self, width, height=1000):
        self.driver.set_window_size(width, height)

    def shot(self, name):
        if not (folder := os.environ.get("FASTEDIT_SHOTS")):
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def no_kernel(self):
        "Take away the one kernel that the server knows."
        shutil.rmtree(self.work.parent / "state" / "data" / "kernels" / "tested")

    def note_requests(self):
        self.asked += asked_for(self.driver)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    work, state = folder / "work", folder / "state"
    for f in (work, state):
        f.mkdir()
    cell = dict(
        cell_type="code", id="a", source=CODE, outputs=[], execution_count=None, metadata={}
    )
    kernel = dict(name="tested", display_name="tested", language="python")
    nb = dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (work / "editor.ipynb").write_text(json.dumps(nb))
    picture().save(work / "ball.png")
    with lab(state, work) as (address, token), browser(state) as driver:
        page = Page(driver, address, token, work)
        driver.set_script_timeout(120)
        page.size(1400)
        page.open("editor.ipynb")
        page.js("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait(lambda: page.js("return !!document.querySelector('.fe-brush')"), 180)
        yield page


def test_an_uploaded_picture_is_shown(page):
    # What opens the browser's own dialog puts the input into the page instead.
    page.js("""HTMLInputElement.prototype.click = function() {
        if (this.type == "file") document.body.append(this) }""")
    page.shot("empty")
    page.click("Upload (0)")
    page.css("body > input[type=file]").send_keys(str(page.work / "ball.png"))
    page.wait(lambda: page.js("return document.querySelector('.fe-picture').naturalWidth == 64"))
    assert np.array_equal(page.pixels(".fe-picture"), np.asarray(picture()))
    page.wait(lambda: "64x64 pixels" in page.words())


def test_a_prompt_and_a_run_show_an_edit(page):
    page.type("prompt", TARGET)
    page.type("source", SOURCE)
    page.click("Run")
    assert page.edited(1)
    shown = page.pixels(AFTER)
    assert shown.tobytes().hex() == page.ask("widget.result.image.tobytes().hex()")
    assert not np.array_equal(shown, np.asarray(picture()))
    page.shot("edit")


def outside_stays(page):
    "Whether the edit that is shown has the picture's very bytes outside of the mask."
    shown, source = page.pixels(AFTER), np.asarray(picture())
    mask = np.asarray(page.ask("widget.mask.tolist()"))
    page.note_requests()
    same = (shown == source).all(-1)
    return bool((mask == 0).any() and same[mask == 0].all() and not same[mask > 0].all())


def test_a_painted_mask_keeps_the_rest(page):
    page.drag((0.3, 0.4), (0.5, 0.45), (0.4, 0.6))
    page.wait(lambda: page.ask("widget.mask is not None"))
    assert page.edited(2)  # by itself: the editor is live
    assert outside_stays(page)
    page.shot("masked")


def test_the_brush_draws_erases_undoes_inverts_and_clears(page):
    page.tick("live", False)
    painted = "0 if widget.mask is None else int((widget.mask > 0).sum())"
    page.click("Clear")
    page.wait(lambda: page.ask(painted) == 0)
    page.drag((0.2, 0.5), (0.8, 0.5))
    some = page.wait(lambda: page.ask(painted))
    page.click("Erase")
    page.drag((0.5, 0.5), (0.8, 0.5))
    less = page.wait(lambda: (n := page.ask(painted)) != some and n)
    page.click("Undo")
    page.wait(lambda: page.ask(painted) == some)
    page.click("Invert")
    page.wait(lambda: page.ask(painted) > some)
    whole = page.ask("int((widget.mask == 1).sum())")
    page.click("Paint")
    page.click("Clear")
    page.wait(lambda: page.ask(painted) == 0)
    assert 0 < less < some and some + whole <= 64 * 64


def test_a_finger_paints(page):
    page.touch((0.3, 0.3), (0.6, 0.4))
    assert page.wait(lambda: page.ask("0 if widget.mask is None else int(widget.mask.sum())"))
    page.click("Undo")
    page.wait(lambda: page.ask("widget.mask is None"))


def test_an_edit_is_cancelled_in_the_middle(page):
    before = page.ask("len(widget.history)")
    page.choose("method", "ddim")
    page.wait(lambda: page.ask("widget.knobs.knobs[0].high") == 100)
    page.ask("setattr(widget.knobs.controls['steps'], 'value', 100)")
    page.click("Run")
    page.wait(lambda: page.ask("0 < widget.c['progress'].value < 90"))
    page.shot("running")
    page.click("Cancel")
    page.wait(lambda: "Cancelled" in page.words(), 10)
    assert page.settled() and page.ask("len(widget.history)") == before


def test_a_step_back_restores_settings_and_mask(page):
    page.click("back to 1")
    page.wait(lambda: page.ask("widget.result is widget.history[0].result"))
    assert page.ask("widget.c['method'].value == widget.history[0].asked.method != 'ddim'")
    assert page.ask("widget.mask is None")
    page.click("back to 2")
    page.wait(lambda: page.ask("widget.result is widget.history[1].result"))
    assert page.settled() and outside_stays(page)
    page.wait(lambda: page.js(PAINTED))  # the brush shows the mask again


def test_two_edits_are_compared(page):
    page.click("compare")
    page.xpath("(//button[normalize-space()='compare'])[2]").click()
    page.wait(lambda: page.js("return document.querySelectorAll('.fastedit-editor .fe-ba').length"))
    page.shot("compared")


def test_what_is_exported_makes_the_same_bytes(page, monkeypatch):
    "The JSON, the script and the command line that it shows, each run again."
    from fastedit import EditRequest, FastEditor
    from fastedit.cli import app
    from typer.testing import CliRunner

    shown = page.pixels(AFTER).tobytes()
    page.unfold("Export")
    page.type("folder", "export")  # where the notebook is
    page.click("Write")
    page.wait(lambda: "Written" in page.words())
    monkeypatch.chdir(page.work / "export")
    page.shot("exports")
    script, line, told, _ = page.js(
        "return [...document.querySelectorAll('.fastedit-text textarea')].map(t => t.value)"
    )
    request = EditRequest.from_json(told)
    again = FastEditor("mini")("picture.png", mask="mask.png", request=request)
    assert again.image.tobytes() == shown
    Path("shown.py").write_text(script)
    runpy.run_path("shown.py")
    assert load("edit.png").tobytes() == shown
    Path("edit.png").unlink()
    ran = CliRunner().invoke(app, shlex.split(line)[1:])
    assert not ran.exit_code and load("edit.png").tobytes() == shown


def test_a_turned_knob_shows_another_picture(page, record_property):
    "And is told how long that takes, from the key to the picture: knob.json beside screenshots."
    page.tick("live", True)
    knob = page.field("strength").find_element("css selector", "[role=slider], .noUi-handle")
    page.js("arguments[0].scrollIntoView({block: 'center'})", knob)
    seconds, before = [], page.ask("len(widget.history)")
    for i in range(6):
        page.js(
            """const image = document.querySelector(arguments[0])
            window.turned = window.shown = null
            addEventListener("keydown", e => { window.turned ??= e.timeStamp }, true)
            const drawn = () => requestAnimationFrame(now => { window.shown = now })
            window.watch?.disconnect()
            window.watch = new MutationObserver(() => image.decode().then(drawn))
            window.watch.observe(image, {attributes: true, attributeFilter: ["src"]})""",
            AFTER,
        )
        knob.send_keys("\ue014" if i % 2 else "\ue012")
        assert page.edited(before + i + 1)
        seconds.append(page.js("return (window.shown - window.turned) / 1000"))  # the last picture
    page.tick("live", False)
    told = dict(seconds=seconds, median=float(np.median(seconds)), load=os.getloadavg()[0])
    record_property("seconds", told)
    if folder := os.environ.get("FASTEDIT_SHOTS"):
        (Path(folder) / "knob.json").write_text(json.dumps(told))


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
@pytest.mark.parametrize("width", [1400, 560])
def test_it_fits_wide_and_narrow_light_and_dark(page, theme, width):
    page.command("apputils:change-theme", theme=theme)
    page.size(width, 2600)
    page.wait(lambda: page.js("return innerWidth") <= width)
    page.wait(lambda: not page.js("return document.querySelector('#jupyterlab-splash')"))
    light = page.js("return document.body.dataset.jpThemeLight")
    page.js("document.querySelector('.fastedit-editor').scrollIntoView()")
    page.shot(f"{theme.split()[1].lower()}-{width}")
    assert light == str(theme.endswith("Light")).lower()
    assert (
        page.js("""const all = document.querySelector(".fastedit-editor")
        const right = all.getBoundingClientRect().right + 1
        return [...all.querySelectorAll("button, input, select, img, canvas, textarea")]
            .filter(x => x.getBoundingClientRect().right > right).map(x => x.outerHTML)""")
        == []
    )


def test_nothing_was_asked_for_from_elsewhere(page):
    page.note_requests()
    own = (page.address, page.address.replace("http", "ws"), "blob:" + page.address)
    others = [a for a in page.asked if not a.startswith((*own, "data:", "chrome:"))]
    assert page.asked and not others


@pytest.fixture(scope="module")
def explorer():
    from fastedit.studies.sweep import Sweep
    from fastedit.widgets import SweepExplorer

    settings = dict(model="mini", method="img2img", strength=[0.4, 0.8], seed=[0, 1])
    return SweepExplorer(Sweep(picture(), TARGET, **settings).run(quiet=True))


def test_a_saved_notebook_shows_pictures_without_a_kernel(page, explorer):
    page.size(1400)
    page.command("docmanager:save")
    saved = json.loads((page.work / "editor.ipynb").read_text())
    assert any("image/png" in o["data"] for o in saved["cells"][0]["outputs"])
    shown = dict(output_type="display_data", metadata={}, data=explorer._repr_mimebundle_())
    saved["cells"].append(dict(saved["cells"][0], id="b", outputs=[shown]))
    (page.work / "saved.ipynb").write_text(json.dumps(saved))
    page.no_kernel()
    page.open("saved.ipynb", kernel=False)
    page.wait(lambda: page.css(".jp-Dialog-button.jp-mod-reject")).click()
    page.wait(lambda: not page.js("return document.querySelector('.jp-Dialog')"))
    picture = ".jp-OutputArea img"
    assert page.js("return arguments[0].checkVisibility()", page.css(picture))
    assert page.pixels(picture).std() > 20
    still = ".jp-OutputArea .fe-still"  # scripts of a notebook that is not trusted do not run
    assert page.js("return arguments[0].checkVisibility()", page.css(still))
    page.shot("reopened")


def test_a_slider_over_a_sweep_needs_no_kernel(page, explorer):
    page.driver.get(explorer.save(page.work / "sweep.html").as_uri())
    words = "return document.querySelector('.fe-say').textContent"
    assert page.js(words).startswith("strength 0.4, seed 0")
    edit = ".fe-over img"
    before = page.pixels(edit)
    page.css("input[aria-label=strength]").send_keys("\ue014")  # the right arrow
    assert page.js(words).startswith("strength 0.8, seed 0")
    assert not np.array_equal(page.pixels(edit), before)
    page.shot("sweep")
    page.note_requests()
    assert not [a for a in page.asked if a.startswith("http") and page.address not in a]
