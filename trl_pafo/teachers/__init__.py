"""The teachers of the groups: what they are, how they are loaded and shared out, and their margins. They know no student."""
