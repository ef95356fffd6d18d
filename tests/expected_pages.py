"""The pages that `_toc.yml` promises; as a script, one per line."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def toc_files() -> list[str]:
    """Every file of the table of contents, without its suffix, the root first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"]]
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            files += [chapter["file"], *(section["file"] for section in chapter.get("sections", []))]
    return files


if __name__ == "__main__":
    print("index.html", "search.html", *(f"{name}.html" for name in toc_files()), sep="\n")
