"""The main job in one call, and the page it writes."""
