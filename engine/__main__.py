"""``python -m engine`` is the ``classpulse`` command."""

import sys

from engine.cli import main

sys.exit(main())
