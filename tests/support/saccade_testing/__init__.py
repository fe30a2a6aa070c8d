"""Code shared by tests; processes that tests spawn can import it, too."""

from pathlib import Path

SUPPORT = Path(__file__).parents[1]
"""The folder to add to the path of a process that imports this package."""

TESTS = SUPPORT.parent
"""The folder of all tests, in which recorded data lies."""
