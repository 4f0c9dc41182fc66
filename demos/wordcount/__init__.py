"""How often each word occurs in many files, counted where the machines are."""
