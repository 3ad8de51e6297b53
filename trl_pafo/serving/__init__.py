"""A saved reward model over HTTP: what a request may hold, which requests are scored together, and when a server stops. It knows no training.

What it needs besides the package is the extra `serve`; nothing else imports this wing but its command.
"""
