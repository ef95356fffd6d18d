"""The pages that `_toc.yml` promises; as a script, one per line."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def toc_files() -> list[str]:
    """Every file of the table of contents, without its suffix, the root first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


if __name__ == "__main__":
    print("index.html", "search.html", *(f"{name}.html" for name in toc_files()), sep="\n")
