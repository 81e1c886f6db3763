"""What an owner measures for a merge: Gram matrices, also between models, and the Fisher information."""
