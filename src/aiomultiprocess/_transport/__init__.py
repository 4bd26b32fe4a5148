"""How frames travel between the parent and one worker. It knows no pool, job or task."""
