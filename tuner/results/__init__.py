"""Results of studies: rows, comparisons, plots, files."""
