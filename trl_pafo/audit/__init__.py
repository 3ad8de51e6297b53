"""What a dataset can give, before anything is trained: counts, bias, annotator noise, and what teachers of their own would add."""
