"""Clean against corrupted, base against edited: two runs, which rows belong together, and what is asked."""
