"""Files and folders: complete or not there, locked, named safely. It knows nothing of what they hold."""
