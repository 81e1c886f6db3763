"""Noise with a proof: what is added to Gram matrices, why that is enough, what it costs.

PROOF.md has the argument in numbered steps, which the code cites.
"""
