"""What figures share: style, panels, files; draws arrays and words, and knows no result."""
