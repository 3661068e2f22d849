"""What every study needs: runs side by side that are never done twice, results, comparisons, evidence, figures."""
