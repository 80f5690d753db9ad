"""INT8: ranges seen over prompts, and graphs quantised by them."""
