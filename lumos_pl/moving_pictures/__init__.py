"""Moving pictures that look like nature's, drawn by the project: what a general visual tokenizer learns from."""
