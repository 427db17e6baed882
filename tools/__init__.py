"""Tools that the project is made with; not part of the wheel."""
