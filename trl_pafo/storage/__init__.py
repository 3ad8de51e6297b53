"""Files and folders: complete or not there, locked, named safely, and by which version. It knows nothing of what they hold."""
