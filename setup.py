"Hand the metadata and requirements of settings.ini to setuptools."

import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters="=", interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def lines(key: str, sep: str = "\n") -> list:
    return [o.strip() for o in cfg[key].split(sep) if o.strip()]


repository = cfg["git_url"].rstrip("/")
owner, name = repository.split("/")[-2:]


def readme() -> str:
    "Read README.md with whole addresses: an index of packages has no files beside it."
    text = (here / "README.md").read_text(encoding="utf-8")

    def whole(m):
        way = "raw" if m[1].startswith("!") else "blob"
        return f"{m[1]}({repository}/{way}/main/{m[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)]+)\)", whole, text)


setup(
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    license_expression=cfg["license"],
    url=repository,
    project_urls={
        "Documentation": f"https://{owner}.github.io/{name}/",
        "Source": repository,
        "Issues": f"{repository}/issues",
        "Changes": f"{repository}/blob/main/CHANGELOG.md",
    },
    keywords=lines("keywords", ","),
    classifiers=lines("classifiers"),
    long_description=readme(),
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
