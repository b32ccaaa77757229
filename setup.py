"Hand the metadata and requirements of settings.ini to setuptools."

from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters="=", interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key: str, sep: str = "\n") -> list:
    return [o.strip() for o in cfg[key].split(sep) if o.strip()]


setup(
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    license_expression=cfg["license"],
    url=cfg["git_url"],
    project_urls={"Source": cfg["git_url"], "Issues": cfg["git_url"] + "/issues"},
    keywords=lines("keywords", ","),
    classifiers=lines("classifiers"),
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    install_requires=lines("requirements"),
    extras_require={
        k.removesuffix("_requirements"): lines(k) for k in cfg if k.endswith("_requirements")
    },
    packages=find_packages(include=["fastedit", "fastedit.*"]),
    package_data={
        "fastedit": [
            f"weights/**/*.{ext}" for ext in ("json", "txt", "md", "csv", "safetensors", "png")
        ]
        + [
            "studies/sweep/sweep.html",
            "failures/thresholds.json",
            "widgets/*.js",
            "widgets/*.css",
            "widgets/*.html",
        ]
    },
)
