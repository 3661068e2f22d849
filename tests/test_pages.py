"""The code in README and guide runs as it stands."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)

# What README's commands are given besides, so that they take seconds.
SMALLER_COMMANDS = ["sample", "data", "run", "report", "sample", "personalize", "predict", "export"]
SMALLER = {
    "sample": ("--rows", "30"),
    "run": ("--set", "stages.0.rounds=3", "--set", "trial=null", "--no-baselines"),
    "export": ("--platforms", "cpu"),
}


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


def test_the_commands_of_the_readme_for_your_own_data_run_one_after_another(command, tmp_path):
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in found if "headstart sample" in block)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [line[1] for line in lines] == SMALLER_COMMANDS
    for line in lines:
        code, out, err = command(*line[1:], *SMALLER.get(line[1], ()))
        assert code == 0, (line, out, err)
    assert {"clients.csv", "report.html"} <= {path.name for path in (tmp_path / "runs/hospitals").iterdir()}
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) > 100
    assert (tmp_path / "artifact/artifact.json").exists()
