"""From an arm and a suite to a stored run. Start at `run.py`."""
