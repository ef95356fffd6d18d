"""What the notebooks show: figures, explorers, players, brushes, and demos for the pages."""
