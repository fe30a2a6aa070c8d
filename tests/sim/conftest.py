"""Makes `fake_world` importable here and, because spawned processes inherit the path, in worker processes."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
