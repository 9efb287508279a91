"""Studies: many runs that differ in what is asked about, and one report with intervals."""
