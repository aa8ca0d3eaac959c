"""Studies: many small models of several methods, strengths and seeds, scored and compared."""
