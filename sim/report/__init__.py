"""The report of an evaluation: one HTML page with metrics, images and videos."""
