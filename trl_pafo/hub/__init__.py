"""Models on the Hub of Hugging Face, with their cards. It knows no method."""
