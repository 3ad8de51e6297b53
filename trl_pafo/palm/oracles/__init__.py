"""Oracles: the best policy for some weights, looked up among candidates, trained, or mixed at decoding."""
