"""Files and folders: written whole or not at all, locked, named safely. It knows nothing of what they hold."""
