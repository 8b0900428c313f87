"""Where generated code runs.

Inside the box: `driver` (supervisor, zygote, workers) and `confine` (how a worker locks itself in).
Outside: `levels` (which isolation holds here), `local` (a box on this machine), `link` (frames to
and from it), `session` (one namespace in it), `values` (inputs that travel once), `redact` (secrets
never leave), and, on top, `interpreter`, which dspy sees. Start reading there.
"""
