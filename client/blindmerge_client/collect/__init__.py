"""What an owner measures for a merge: Gram matrices and the Fisher information."""
