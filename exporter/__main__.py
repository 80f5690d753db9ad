"""``python -m exporter`` is ``moetrt``."""

from .cli import main

main()
