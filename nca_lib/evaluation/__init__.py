"""How good are the generated images? Extractors, metrics, judges, protocols (chapter 5).

Nothing is imported here: the metrics need the extra `evaluation`, the command line does not.
"""
