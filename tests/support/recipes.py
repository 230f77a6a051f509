"""What the documents tell an operator to write or to run."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def blocks(language: str, page: str) -> list[str]:
    """Return the code blocks of a page that are in this language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def recipe(language: str, part: str, page: str = "clients.md") -> str:
    """Return the code block of a page that has this part."""
    (block,) = (block for block in blocks(language, page) if part in block)
    return block
