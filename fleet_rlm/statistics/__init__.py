"""Uncertainty of scores and of differences; pure functions of arrays. Start at `clustered.py`."""
