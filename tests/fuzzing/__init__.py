"""Files made invalid in many small ways, and everything that reads them. `python tests/fuzzing`: see run.py."""
