"""What people read of studies: rows, comparisons, plots, files."""
