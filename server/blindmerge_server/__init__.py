"""The server's side: plans, sums and solves; it never sees one owner's data."""
