"""How good are the generated images? Extractors, metrics, judges, protocols (chapter 5)."""
