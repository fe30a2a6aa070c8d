"""LIBERO's own recordings: read them, and draw them anew."""
