"""Checks that every relative link and picture in the project's pages leads somewhere: `python tests/check_links.py`."""

import re
import sys
from pathlib import Path

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for match in LINK.finditer(page.read_text()):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(f"{page}: {link}")
    return found


if __name__ == "__main__":
    pages = [*Path().glob("*.md"), *Path("docs").rglob("*.md")]
    problems = [problem for page in pages for problem in broken(page)]
    print("\n".join(problems) or f"links in {len(pages)} pages are good")
    sys.exit(bool(problems))
