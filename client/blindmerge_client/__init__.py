"""An owner's side: private data, model and statistics stay here."""
