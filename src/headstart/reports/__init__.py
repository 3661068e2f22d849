"""Reports of runs: tables, figures and a page."""
