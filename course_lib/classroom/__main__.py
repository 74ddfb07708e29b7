"""`python -m course_lib.classroom lab` is `course lab`, where no console script is on the path."""

import sys

from .cli import main

sys.exit(main())
