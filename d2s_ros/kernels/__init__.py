"""The compiled part: what would be many small calls of NumPy and PyTorch in every frame.

Each function has the contract of one written with these elsewhere in the package, which is taken
where the compiled part is not there (no compiler at installation).
"""
