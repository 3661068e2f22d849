"""The code in README and guide runs as it stands."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text())


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md")
    smaller = code.replace('"writers": 100', '"writers": 24, "examples": 20')
    smaller = smaller.replace("rounds=30", "rounds=2").replace("rounds=10", "rounds=1")
    assert smaller.count("rounds=") == 2 and smaller != code
    exec(compile(smaller, "README.md", "exec"), {})
    assert (tmp_path / "runs/mine/report.html").exists()


@pytest.mark.parametrize("number", range(len(blocks("docs/guide.md"))))
def test_the_code_of_the_guide_runs(number, monkeypatch):
    code = blocks("docs/guide.md")[number]
    # Classes are looked up by the module they were defined in.
    module = type(sys)("guide")
    monkeypatch.setitem(sys.modules, "guide", module)
    vars(module)["hs"] = __import__("headstart")
    exec(compile(code, "docs/guide.md", "exec"), vars(module))
