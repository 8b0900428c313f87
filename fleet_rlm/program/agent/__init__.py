"""The chat agent: one turn at a time, with documents, memory and an RLM. Start at `agent.py`."""
