"""Files that are read and written: inputs of the command line, folders of members, pictures."""
