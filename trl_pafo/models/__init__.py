"""Saved models: where they are, how they are loaded safely, and rewards of token sequences. It knows no pairs and no groups."""
