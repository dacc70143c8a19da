"""Acts that need a second person: asked for by one, decided by another, executed once."""
