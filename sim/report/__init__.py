"""The report of an evaluation: one HTML page with figures, pictures and videos."""
