"""The paper's claims and table as experiments, each with a verdict by a rule written beforehand."""
