"""The three command lines; each imports only Typer until a command runs."""
