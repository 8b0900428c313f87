"""What is scored and compiled. Start at `rlm.py`; `registry.py` names the programs."""
