"""Language models: connect by name, price, meter. Start at `connect.py`."""
