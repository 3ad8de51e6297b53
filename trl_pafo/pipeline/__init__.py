"""The stages of a run, from options and data to a published model. Nothing but the command line knows it."""
