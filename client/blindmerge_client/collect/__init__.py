"""What an owner measures for a merge: moments of inputs, and the Fisher information."""
