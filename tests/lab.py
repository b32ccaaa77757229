"A JupyterLab server and a browser without a window, for tests: local, and ended in all cases."

import json, os, secrets, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": dict(
        fetchNews="false", checkForUpdates=False, doNotDisturbMode=True
    ),
    "@jupyterlab/docmanager-extension/plugin": dict(autosave=False),
}
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # a container's root has none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--hide-scrollbars",
)


def lab_is_whole() -> bool:
    "Whether JupyterLab is here, and finds what ipywidgets and anywidget add to it."
    with suppress(ImportError):
        import anywidget, jupyterlab, selenium  # noqa: F401
        from jupyter_core.paths import jupyter_path

        def found(name):
            return any(
                (Path(p) / name / "package.json").exists() for p in jupyter_path("labextensions")
            )

        return found("anywidget") and found("@jupyter-widgets/jupyterlab-manager")
    return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _configured(folder: Path) -> dict:
    "An environment in which Jupyter reads and writes below one folder only, and its one kernel."
    for name, told in SETTINGS.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told))
    kernel = folder / "data" / "kernels" / "tested"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    told = dict(argv=argv, display_name="tested", language="python")
    (kernel / "kernel.json").write_text(json.dumps(told))
    places = dict(
        JUPYTER_CONFIG_DIR="config",
        JUPYTER_DATA_DIR="data",
        JUPYTER_RUNTIME_DIR="runtime",
        JUPYTERLAB_SETTINGS_DIR="settings",
        JUPYTERLAB_WORKSPACES_DIR="workspaces",
        IPYTHONDIR="ipython",
    )
    quiet = dict(HF_HUB_OFFLINE="1", JUPYTER_PLATFORM_DIRS="1")
    return {**os.environ, **quiet, **{k: str(folder / v) for k, v in places.items()}}


def _answers(url: str, server, log: Path, seconds: float = 40):
    "Wait until a server answers."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as told:
            return json.load(told)
        time.sleep(0.1)
    raise RuntimeError(f"the Jupyter server did not come up:\n{log.read_text()[-2000:]}")


@contextmanager
def lab(folder: Path, work: Path):
    "Serve the folder `work`; yields (address, token)."
    port, token = free_port(), secrets.token_hex(16)
    env = {**_configured(folder), "JUPYTER_TOKEN": token}
    flags = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={work}"]
    flags += ["--allow-root", "--expose-app-in-browser", "--LabApp.extension_manager=readonly"]
    flags += ["--ServerApp.port_retries=0", "--LabApp.news_url="]
    flags += ["--KernelSpecManager.allowed_kernelspecs=tested"]
    log, address = folder / "server.log", f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *flags], env=env, stdout=out, stderr=out
        )
    try:
        _answers(f"{address}/api", server, log)
        yield address, token
    finally:
        server.terminate()  # its kernels end with it
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def browser(folder: Path):
    "A browser that reaches this machine only and writes down what it asks for."
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(DRIVER, log_output=str(folder / "driver.log"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()
        service.stop()


def asked_for(driver) -> list:
    "Addresses that the browser asked for since the last call."
    found = []
    for line in driver.get_log("performance"):
        told = json.loads(line["message"])["message"]
        if told["method"] == "Network.requestWillBeSent":
            found.append(told["params"]["request"]["url"])
        elif told["method"] == "Network.webSocketCreated":
            found.append(told["params"]["url"])
    return found
