"""What is in a folder or file that moetrt wrote, or that it reads: in words, as JSON, with every hash if asked."""

from .found import Inspection
from .kinds import KINDS, inspect

__all__ = ["KINDS", "Inspection", "inspect"]
