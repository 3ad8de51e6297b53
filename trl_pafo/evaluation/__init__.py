"""Saved models on preference pairs: rewards, group and user fairness, the use of histories. It knows no training."""
