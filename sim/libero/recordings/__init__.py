"""LIBERO's recorded human demonstrations: read them, and replay them in the simulator."""
