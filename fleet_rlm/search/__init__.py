"""Compilation of programs. Start at `job.py`, which runs a recipe from baseline to sealed test."""
