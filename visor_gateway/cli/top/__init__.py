"""`visor top`: transfers as they move, on the whole screen, steered by keys."""
