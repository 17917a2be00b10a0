"""What several tests use, and the programs that they start."""

import pathlib

PROGRAMS = pathlib.Path(__file__).parent / 'programs'
