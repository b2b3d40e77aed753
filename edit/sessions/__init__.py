"""Many edits, one batch after the other: remembered, kept on disk, undone."""
