"""How fast and lean the suite is: each figure as a ratio to a baseline that runs beside it."""
