"""Human labelling: tasks of pairwise comparison for Argilla and Label Studio, and what annotators answered."""
