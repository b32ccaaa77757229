"""The built site in a real browser, wide and narrow, light and dark.

`make docs` builds it into `_docs`; without that the tests are skipped, unless FASTEDIT_SITE=build
asks for it (minutes), or FASTEDIT_SITE names a folder with a built site. With
FASTEDIT_SHOTS=FOLDER screenshots are written there, to be looked at."""

import http.server, os, subprocess, sys, threading
from functools import partial
from pathlib import Path
import pytest
from lab import CHROMIUM, DRIVER, asked_for, browser

ROOT = Path(__file__).resolve().parents[1]
ASKED = os.environ.get("FASTEDIT_SITE", "")
BUILT = Path(ASKED) if ASKED not in ("", "build") else ROOT / "_docs"
MISSING = [name for name, at in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not at]
if ASKED != "build" and not (BUILT / "index.html").is_file():
    MISSING.append("a built site (make docs)")
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"looking at the site needs {' and '.join(MISSING)}"
)

PAGES = (
    "index",
    "gallery",
    "tutorials/your_photo",
    "methods/110_ddcm",
    "experiments/methods",
    "editor/209_editor",
)
WIDTHS = dict(desktop=(1300, 900), phone=(390, 844))
SPILLS = """const boxed = '.cell_output, table, pre, .highlight, math, .sig, .sidebar-drawer, ' +
    '.toc-drawer, .fe-two'
return [...document.querySelectorAll('body *')].filter(x => {
    const at = x.getBoundingClientRect()
    return at.width && at.right > innerWidth + 1 && at.left < innerWidth && !x.closest(boxed)
}).map(x => x.tagName + '.' + x.className)"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


class Reader:
    "A browser on the site."

    def __init__(self, driver, address):
        self.driver, self.address, self.asked = driver, address, []

    def open(self, page, size="desktop", dark=False):
        width, height = WIDTHS[size]
        told = dict(width=width, height=height, deviceScaleFactor=1, mobile=size == "phone")
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", told)
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[scheme]))
        self.driver.get(f"{self.address}/{page}")

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def css(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, element):
        "Click on an element, wherever it is on the page; furo scrolls slowly unless told."
        scroll = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
        self.js(scroll, element)
        element.click()

    def wait(self, told, seconds=20):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: told())

    def shot(self, name):
        if folder := os.environ.get("FASTEDIT_SHOTS"):
            self.driver.save_screenshot(str(Path(folder) / f"site-{name}.png"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    root = folder / "html" if ASKED == "build" else BUILT
    if ASKED == "build":
        cmd = [sys.executable, ROOT / ".ci" / "site" / "build.py", root]
        done = subprocess.run(cmd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browser(folder) as driver:
        yield Reader(driver, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_nothing_overflows(site, page, size, dark):
    site.open(f"{page}.html", size, dark)
    site.shot(f"{page.replace('/', '-')}-{size}-{'dark' if dark else 'light'}")
    assert site.js("return document.documentElement.scrollWidth") <= WIDTHS[size][0]
    assert site.js(SPILLS) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_stand_out_from_their_ground(site, dark):
    site.open("methods/110_ddcm.html", dark=dark)
    light = """const of = (x, what) => getComputedStyle(x)[what].match(/[0-9.]+/g).slice(0, 3)
        .reduce((sum, v) => sum + +v, 0)/765
    return [of(document.querySelector('article p'), 'color'), of(document.body, 'backgroundColor')]
    """
    words, ground = site.js(light)
    assert abs(words - ground) > 0.5 and (ground < 0.5) == dark


def test_the_divider_moves(site):
    from selenium.webdriver.common.action_chains import ActionChains

    site.open("index.html")
    drag = site.css(".fe-hero .fe-drag")
    at = "return document.querySelector('.fe-hero .fe-ba').style.getPropertyValue('--at')"
    ActionChains(site.driver).move_to_element_with_offset(drag, 100, 0).click().perform()
    right = site.wait(lambda: site.js(at))
    ActionChains(site.driver).move_to_element_with_offset(drag, -100, 0).click().perform()
    site.wait(lambda: site.js(at) != right)
    assert 0 <= float(site.js(at)[:-1]) < 50 < float(right[:-1]) <= 100


def test_the_gallery_opens_its_pages(site):
    site.open("gallery.html")
    wide = "return [...document.querySelectorAll('.fe-gallery img')].map(x => x.naturalWidth)"
    site.js("document.querySelectorAll('.fe-gallery img').forEach(x => x.loading = 'eager')")
    site.wait(lambda: all(site.js(wide)))
    assert len(site.js(wide)) > 20
    card = site.css(".fe-gallery a[href='methods/110_ddcm.html']")
    site.click(card)
    site.wait(lambda: site.css("h1").text.startswith("ddcm"))


def test_search_finds_ddcm(site):
    site.open("search.html?q=ddcm")
    found = "return [...document.querySelectorAll('#search-results li a')].map(x => x.href)"
    site.wait(lambda: site.js(found))
    site.wait(lambda: any("methods/110_ddcm.html" in a for a in site.js(found)))


def test_a_picture_grows_by_a_click_and_goes_again(site):
    site.open("methods/110_ddcm.html")
    picture = site.css(".cell_output img.fe-zoomable")
    site.click(picture)
    box = site.css("dialog.fe-zoom")
    assert site.js("return arguments[0].open", box)
    box.click()
    assert not site.js("return arguments[0].open", box)


def test_next_leads_through_the_tutorials(site):
    site.open("tutorials/quickstart.html")
    seen = []
    for _ in range(3):
        site.js("document.querySelector('.next-page').click()")
        site.wait(lambda: site.js("return document.readyState") == "complete")
        seen.append(site.js("return location.pathname").rpartition("/")[2])
    assert seen == ["your_photo.html", "low_vram.html", "piebench.html"]


def test_names_lead_to_their_entries(site):
    site.open("tutorials/quickstart.html")
    link = site.js("return document.querySelector('a.fe-name')?.getAttribute('href')")
    if link:
        site.open(f"tutorials/{link}")
        assert site.js("return !!document.getElementById(location.hash.slice(1))")


def test_plain_copies_are_beside_the_pages(site):
    for path in ("llms.txt", "methods/110_ddcm.md", "colab/methods/110_ddcm.ipynb"):
        said = site.js(
            "const x = new XMLHttpRequest(); x.open('GET', arguments[0], false); x.send();"
            "return [x.status, x.responseText.length]",
            f"{site.address}/{path}",
        )
        assert said[0] == 200 and said[1] > 500


def test_no_request_leaves_the_host(site):
    asked = asked_for(site.driver)
    assert asked
    assert [a for a in asked if not a.startswith((site.address, "data:", "blob:", "chrome"))] == []
