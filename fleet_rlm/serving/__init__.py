"""Programs as services: an HTTP server, and what a chat needs to outlive it. Start at `app.py`."""
