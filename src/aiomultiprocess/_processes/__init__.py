"""How processes start and end, and what is common to all of them."""
