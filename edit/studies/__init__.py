"""Many edits, each by itself: located, made, judged and followed in one call."""
